"""When shares change: timings are gathered over MPI, rank 0 decides, the decision is broadcast."""

from __future__ import annotations

from collections.abc import Sequence

from engine.balance import EPOCH_THRESHOLD, Decision, decide, even_shares, proportional_shares
from engine.errors import UsageError
from engine.session import Session
from engine.timing import RankClock


class Rebalancer:
    """Holds the shares of all ranks and changes them at epochs, or also inside them.

    Args:
        session: the ranks.
        batch_size: rows of a global batch: the sum of the shares.
        mode: "off", "epoch" or "auto".
        every: steps between decisions inside an epoch ("auto").
        proportions: fixed proportions per rank ("off" only).
        caps: most rows per rank, 0 for none.

    Raises:
        UsageError: another number of proportions or caps than ranks, or caps without room for the batch.
    """

    def __init__(
        self,
        session: Session,
        batch_size: int,
        mode: str = "auto",
        every: int = 50,
        proportions: Sequence[float] = (),
        caps: Sequence[int] = (),
    ) -> None:
        for name, values in (("--shares", proportions), ("--rank-caps", caps)):
            if values and len(values) != session.size:
                raise UsageError(
                    f"{name} names {len(values)} ranks, this run has {session.size}; give a number per rank"
                )
        if proportions and mode != "off":
            raise UsageError(f"shares fix the proportions by hand, balance {mode!r} would change them: leave one out")
        self._session, self.mode, self._every = session, mode, every
        self._caps = [cap or batch_size for cap in caps] or None
        try:
            self.shares = (
                proportional_shares(proportions, batch_size, self._caps)
                if proportions
                else even_shares(session.size, batch_size, self._caps)
            )
        except ValueError as error:
            raise UsageError(f"--rank-caps and --shares: {error}") from None

    def resume(self, schedule: Sequence[Sequence[int]]) -> bool:
        """Take over the shares of a checkpoint where all of them fit this run; whether they do."""
        limits = self._caps or self._session.size * [sum(self.shares)]
        fits = self.mode != "off" and all(
            len(shares) == self._session.size
            and sum(shares) == sum(self.shares)
            and all(share <= limit for share, limit in zip(shares, limits, strict=True))
            for shares in schedule
        )
        if fits:
            self.shares = tuple(schedule[-1])
        return fits

    def due(self, step: int) -> bool:
        """Whether shares are looked at after this step of an epoch (counted from 1); the same on every rank."""
        return self.mode == "auto" and self._session.size > 1 and step % self._every == 0

    def decide(self, clock: RankClock, epoch_ends: bool) -> Decision:
        """Gather all ranks' timings, decide on rank 0, broadcast. Collective; every rank returns the same.

        Args:
            clock: this rank's timings; those since the last decision are taken out of it.
            epoch_ends: all timings since the last change count, not only those since the last look.
        """
        timings = clock.take_timings(epoch_ends)
        if self.mode == "off" or self._session.size == 1:
            return Decision(
                self.shares,
                False,
                "kept: balancing is off" if self._session.size > 1 else "kept: there is one rank",
                0.0,
            )
        most = EPOCH_THRESHOLD if epoch_ends else 1.0
        everyone = self._session.comm.gather(timings, root=0)
        decision = decide(everyone, self.shares, self._caps, most) if everyone is not None else None
        chosen: Decision = self._session.comm.bcast(decision, root=0)
        self.shares = chosen.shares
        if chosen.changed:
            clock.forget()
        return chosen
