"""When shares change: timings are gathered over MPI, rank 0 decides, the decision is broadcast.

At an epoch's end that is done at once. Inside an epoch nobody waits for it: every rank posts the same non-blocking
collectives at the same steps, whether anything changes or not.

    step k      all: timings since the last look --Igather--> rank 0
    step k + 1  rank 0: decides;  all: --Ibcast--> shares, and the step at which they begin
    step k + 2  all: take the decision; it holds for the batches that are not read ahead yet
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.balance import EPOCH_THRESHOLD, Balancer, Decision
from engine.errors import UsageError
from engine.input import READ_AHEAD
from engine.progress import gain_event, profile_event, shares_event
from engine.reduction import wait_for
from engine.session import Session
from engine.shares import Table, as_table, even_shares, mean_shares, proportional_shares
from engine.speed import ProfilePoint
from engine.timing import LOOK_FIELDS, RankClock

LOOKS = 5
"""looks per window: a sudden slow-down is seen before the window ends"""
SHORTEST_LOOK = 3
"""steps that a look takes until its decision is taken"""


class Rebalancer:
    """Holds the shares of all ranks and changes them at epochs, or also inside them.

    Args:
        session: the ranks.
        bounds: padded length of each bucket.
        batches: how many batches an epoch has of each bucket.
        batch_size: rows of a global batch: the sum of the shares.
        mode: "off", "epoch" or "auto".
        every: steps of a window ("auto").
        proportions: fixed proportions per rank ("off" only).
        caps: most rows per rank, 0 for none.

    Raises:
        UsageError: another number of proportions or caps than ranks, or caps without room for the batch.
    """

    def __init__(
        self,
        session: Session,
        bounds: Sequence[int],
        batches: Sequence[float],
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
        self._bounds, self._batches, self._batch_size = bounds, batches, batch_size
        self._look_steps = max(SHORTEST_LOOK, every // LOOKS if every >= LOOKS * SHORTEST_LOOK else every)
        self._caps = [cap or batch_size for cap in caps] or None
        try:
            shares = (
                proportional_shares(proportions, batch_size, self._caps)
                if proportions
                else even_shares(session.size, batch_size, self._caps)
            )
        except ValueError as error:
            raise UsageError(f"--rank-caps and --shares: {error}") from None
        self.table: Table = as_table(shares, len(bounds))
        """rows of a full batch per rank, for each bucket"""
        self.active = mode != "off" and session.size > 1
        """whether shares may change"""
        self._comm: Any = session.comm.Dup() if self.active else None
        self._balancer: Balancer | None = None
        self._request: Any = None
        self._stage = 0
        # Fixed sizes, so that nobody need ask: a look with two numbers beside it, and a decision with one.
        self._sent = np.zeros(len(bounds) * LOOK_FIELDS + 1)
        self._gathered = np.zeros((session.size, len(self._sent)))
        self._decided = np.zeros(1 + len(bounds) * session.size)
        self.first_step = 1
        """number of the first step with the present table"""
        self._events: list[dict[str, Any]] = []

    @property
    def shares(self) -> tuple[int, ...]:
        """Rows of a full batch per rank; where buckets differ, their mean over an epoch's batches."""
        return self._mean(self.table)

    def resume(self, schedule: Sequence[Table]) -> bool:
        """Take over the shares of a checkpoint where all of them fit this run; whether they do."""
        limits = self._caps or self._session.size * [self._batch_size]
        fits = self.mode != "off" and all(
            len(shares) == self._session.size
            and sum(shares) == self._batch_size
            and all(share <= limit for share, limit in zip(shares, limits, strict=True))
            for table in schedule
            for shares in table
        )
        if fits:
            self.table = schedule[-1]
        return fits

    def start(self, points: Sequence[ProfilePoint], keep: bool, total_steps: int = 0) -> None:
        """Begin with every rank's start-up profile. Collective.

        Args:
            points: this rank's; may be empty.
            keep: the present shares stay until training has timed something.
            total_steps: steps done since training began.
        """
        if not self.active:
            return
        profiles = self._session.comm.gather(list(points), root=0)
        decision = None
        if profiles is not None:
            self._balancer = Balancer(self._bounds, self._batches, self.table, self._caps, profiles)
            self._events.append(profile_event(total_steps, profiles))
            decision = None if keep else self._balancer.decide(total_steps, self._every, EPOCH_THRESHOLD)
            if decision is not None:
                self._record(decision, total_steps, total_steps + 1, "start-up profile: ")
        self.table = self._session.comm.bcast(self.table if decision is None else decision.table, root=0)

    def state(self) -> dict[str, Any] | None:
        """The cost models as plain values, on rank 0; None where there are none."""
        return self._balancer.state() if self._balancer is not None else None

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with the cost models of a checkpoint, in place of a start-up profile; after `resume`."""
        if self.active and self._session.root:
            self._balancer = Balancer(self._bounds, self._batches, self.table, self._caps)
            self._balancer.load_state(state)

    def follow(self, table: Table) -> None:
        """Take over shares that were chosen elsewhere (mode "off")."""
        self.table = table

    def tell(self, schedule: Sequence[Table], done: int, reason: str) -> None:
        """Record the shares of coming steps, bucket by bucket, on rank 0.

        Args:
            schedule: of step done + 1, done + 2, ...; the last entry stays in force.
        """
        before: Table | None = None
        for number, table in enumerate(schedule):
            if table != before and self._session.root:
                self._record(Decision(table, True, reason, 0.0), done, done + 1 + number)
            before = table

    def after_step(self, step: int, total_steps: int, left: int, clock: RankClock, most_rows: int) -> bool:
        """Do what is due inside an epoch; whether `table` has changed. The same on every rank.

        Args:
            step: steps done of the epoch.
            total_steps: steps done since training began.
            left: steps left of the epoch.
            clock: this rank's timings.
            most_rows: this rank's limit of memory, 0 for none.
        """
        if not self.active or self.mode != "auto":
            return False
        if self._stage == 0:
            if step % self._look_steps == 0 and left > SHORTEST_LOOK + READ_AHEAD:
                self._post(clock, most_rows)
            return False
        if self._stage == 1:
            if self._session.root:
                wait_for(self._request.Test)
                self._decide(total_steps, step % self._every <= self._look_steps)
            self._request = self._comm.Ibcast(self._decided, root=0)
            self._stage = 2
            return False
        wait_for(self._request.Test)
        self._stage = 0
        return self._take(clock)

    def at_epoch_end(self, total_steps: int, clock: RankClock, most_rows: int) -> None:
        """Gather, decide and broadcast at once; `table` may have changed. Collective."""
        assert self._stage == 0, "a look inside the epoch is not over"
        if not self.active:
            if self._session.root:
                reason = "balancing is off" if self._session.size > 1 else "there is one rank"
                self._record(Decision(self.table, False, f"kept: {reason}", 0.0), total_steps, total_steps + 1)
            return
        self._post(clock, most_rows)
        self._request.Wait()
        if self._session.root:
            self._decide(total_steps, True, EPOCH_THRESHOLD)
        self._comm.Bcast(self._decided, root=0)
        self._stage = 0
        self._take(clock)

    def probe(self, points: Sequence[ProfilePoint]) -> None:
        """Ranks that have had no rows timed some all the same. Collective.

        Args:
            points: this rank's timings; none where it has had rows.
        """
        known = self._session.comm.gather(list(points), root=0)
        for rank, found in enumerate(known or []):
            if found and self._balancer is not None:
                self._balancer.speeds.forget(rank, found)

    def take_events(self) -> list[dict[str, Any]]:
        """Events for metrics.jsonl since the last call; on rank 0."""
        events, self._events = self._events, []
        return events

    def _post(self, clock: RankClock, most_rows: int) -> None:
        self._sent[:-1], self._sent[-1] = clock.look().ravel(), most_rows
        self._request = self._comm.Igather(self._sent, self._gathered if self._session.root else None, root=0)
        self._stage = 1

    def _decide(self, total_steps: int, tell: bool, most_threshold: float = 1.0) -> None:
        """On rank 0: from the looks to shares, ready to be broadcast."""
        if self._balancer is None:
            self._balancer = Balancer(self._bounds, self._batches, self.table, self._caps)
        balancer = self._balancer
        balancer.lower_caps(self._gathered[:, -1].tolist())
        balancer.observe(self._gathered[:, :-1].reshape(self._session.size, len(self._bounds), LOOK_FIELDS))
        achieved = balancer.achieved()
        if achieved is not None:
            self._events.append(gain_event(total_steps, achieved))
        decision = balancer.decide(total_steps, self._every, most_threshold)
        first = total_steps + READ_AHEAD + 1 + (most_threshold == 1.0)
        if decision.changed or tell:
            self._record(decision, total_steps, first)
        self._decided[0] = first if decision.changed else 0
        self._decided[1:] = np.array(decision.table).ravel()

    def _take(self, clock: RankClock) -> bool:
        if not self._decided[0]:
            return False
        self.first_step = int(self._decided[0])
        rows = self._decided[1:].astype(int).reshape(len(self._bounds), self._session.size)
        self.table = tuple(tuple(shares) for shares in rows.tolist())
        clock.forget()
        return True

    def _record(self, decision: Decision, step: int, first_step: int, prefix: str = "") -> None:
        # What was kept is one event; what was changed is told for every bucket, where they differ.
        alike = len(set(decision.table)) == 1
        same = alike or not decision.changed
        mean = decision.table[0] if alike else self._mean(decision.table)
        for bucket, shares in enumerate([mean] if same else decision.table):
            self._events.append(
                shares_event(
                    step,
                    shares,
                    prefix + decision.reason,
                    decision.predicted_gain,
                    None if same else self._bounds[bucket],
                    first_step,
                    decision.changed,
                )
            )

    def _mean(self, table: Table) -> tuple[int, ...]:
        return mean_shares(table, self._batches)
