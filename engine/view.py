"""What is shown of a run, as text: a live view's lines, and the plain line of a log file. No terminal and no clock.

epoch 2/5  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━      120/480  loss 0.4312, mean 0.4508     0:31 left
run        ━━━━━━━━━━━                            26 %  12,345 rows/s                6:12 left
rank host   share        compute█ input▒ wait·              %    memory state
   0 node-a   512  50.0% ██████████████████▒······  82   1  17    1.21G computing
step 150: rank 1 was the slowest; its share goes from 256 to 212; 12.0% expected, 11.2% gained
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.watch import RankFigures

MOST_RANKS = 16
"""lines for ranks, however high the terminal is"""
DECISIONS = 3
"""of the balancer's, that are shown"""
WIDEST = 120
_LINES_BESIDE = 5
"""the empty one at the top, two of progress, the head of the ranks, and the one that the shell wants at the end"""


@dataclass(frozen=True)
class Decision:
    """What the balancer did."""

    step: int
    reason: str
    predicted_gain: float
    changed: bool
    achieved_gain: float | None = None

    def text(self) -> str:
        """One line."""
        if not self.changed or not self.predicted_gain:
            return f"step {self.step}: {self.reason}"
        gained = "" if self.achieved_gain is None else f", {self.achieved_gain:.1%} gained"
        return f"step {self.step}: {self.predicted_gain:.1%} expected{gained}: {self.reason}"


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment."""

    epoch: int
    """that is under way, from 1"""
    epochs: int
    step: int
    """steps done of the epoch"""
    steps: int
    loss: float | None = None
    """of the last step"""
    mean_loss: float | None = None
    """of this epoch's steps since the process began"""
    rows_per_second: float | None = None
    epoch_left: float | None = None
    """seconds"""
    run_left: float | None = None
    activity: str = ""
    """what is done instead of steps"""
    ranks: Sequence[RankFigures] = ()
    decisions: Sequence[Decision] = ()

    @property
    def part(self) -> float:
        """Part of the run that is done."""
        return (self.epoch - 1 + self.step / max(1, self.steps)) / max(1, self.epochs)


def plain_line(now: Snapshot) -> str:
    """The line of a log file."""
    text = f"epoch {now.epoch}/{now.epochs}: step {now.step} of {now.steps}"
    if now.loss is not None:
        text += f", loss {now.loss:.4f}"
    if now.rows_per_second is not None:
        text += f", {now.rows_per_second:,.0f} rows/s"
    if now.activity:
        text += f", {now.activity}"
    if now.epoch_left is not None:
        text += f", {duration(now.epoch_left)} left of the epoch"
    if now.run_left is not None and now.epochs > 1:
        text += f", {duration(now.run_left)} of the run"
    known = [rank for rank in now.ranks if rank.known]
    if len(known) > 1:
        slowest = max(known, key=lambda rank: rank.step_compute)
        text += f"; slowest: rank {slowest.rank}, computing {slowest.compute:.0%} of the time"
    for rank in [rank for rank in now.ranks if rank.alarming][:DECISIONS]:
        text += f"; rank {rank.rank} on {rank.host}: {rank.state}"
    return text


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes, or days and hours."""
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def selected(ranks: Sequence[RankFigures], room: int) -> tuple[list[RankFigures], list[RankFigures]]:
    """Ranks to show a line each, above and below a line that sums up the others; in their order where all fit.

    The slowest stand above, after those that somebody should look at; the fastest stand below.
    """
    if len(ranks) <= room:
        return list(ranks), []
    by_need = sorted(ranks, key=lambda rank: (not rank.alarming, -rank.step_compute, rank.rank))
    lines = max(1, room - 1)
    fastest = lines // 2
    return by_need[: lines - fastest], by_need[len(by_need) - fastest :]


class Renderer:
    """Makes the lines of a view.

    Args:
        unicode: whether the terminal can show block characters.
        color: None for what the environment says (TERM, COLORTERM, NO_COLOR); False for none.
    """

    def __init__(self, unicode: bool = True, color: bool | None = None) -> None:
        from rich.console import Console

        self._parts = ("█", "▒", "·") if unicode else ("#", "i", ".")
        self._done, self._rest = ("━", "─") if unicode else ("=", "-")
        self._out = io.StringIO()
        self._console = Console(
            file=self._out,
            force_terminal=True,
            color_system=None if color is False else "auto",
            legacy_windows=False,
            width=WIDEST,
        )

    def lines(self, now: Snapshot, columns: int, rows: int) -> list[str]:
        """The view's lines for a terminal of this size, each narrower than it; with escape codes for colours."""
        width = min(WIDEST, columns - 1)
        decisions = list(now.decisions)[-DECISIONS:]
        room = rows - _LINES_BESIDE - len(decisions)
        if room < min(3, len(now.ranks)):
            room, decisions = room + len(decisions), []
        shown = [*self._progress(now, width)]
        if room >= 1 and now.ranks:
            shown += self._ranks(now.ranks, min(room, MOST_RANKS), width)
        shown += [_text((decision.text(), "" if decision.changed else "dim")) for decision in decisions]
        self._out.seek(0)
        self._out.truncate()
        for line in shown:
            line.truncate(max(1, width), overflow="ellipsis")
            self._console.print(line, width=max(1, width), no_wrap=True, overflow="crop", crop=True)
        return self._out.getvalue().splitlines()[: max(1, rows - 2)]

    def _progress(self, now: Snapshot, width: int) -> list[Any]:
        loss = "" if now.loss is None else f"loss {now.loss:.4f}"
        if now.mean_loss is not None:
            loss += f", mean {now.mean_loss:.4f}"
        rate = "" if now.rows_per_second is None else f"{now.rows_per_second:,.0f} rows/s"
        if now.activity:
            rate += f"{', ' if rate else ''}{now.activity}"
        rows = (
            (f"epoch {now.epoch}/{now.epochs}", now.step / max(1, now.steps), f"{now.step}/{now.steps}", loss,
             now.epoch_left),
            ("run", now.part, f"{now.part:.0%}", rate, now.run_left),
        )  # fmt: skip
        left = ["" if row[4] is None else f"{duration(row[4])} left" for row in rows]
        names, counts, figures, times = (
            max(map(len, column)) for column in ([row[0] for row in rows], [row[2] for row in rows], (loss, rate), left)
        )
        bar = max(4, min(40, width - names - counts - figures - times - 7))
        lines = []
        for (name, part, count, figure, _), time in zip(rows, left, strict=True):
            cells = min(bar, int(part * bar))
            lines.append(
                _text(
                    (f"{name:<{names}} ", "bold"),
                    (self._done * cells, "green"),
                    (self._rest * (bar - cells), "bright_black"),
                    f" {count:>{counts}}  {figure:<{figures}}  {time:>{times}}",
                )
            )
        return lines

    def _ranks(self, ranks: Sequence[RankFigures], room: int, width: int) -> list[Any]:
        columns = _Columns(ranks, width)
        above, below = selected(ranks, room)
        lines = [columns.head(self._parts)]
        lines += [columns.rank(rank, self._parts) for rank in above]
        if below:
            shown = {rank.rank for rank in (*above, *below)}
            lines.append(_text((_summary([rank for rank in ranks if rank.rank not in shown]), "dim")))
        return lines + [columns.rank(rank, self._parts) for rank in below]


class _Columns:
    """Widths of the columns of the ranks' lines, and the lines.

    Args:
        ranks: all that there are.
        width: of the whole.
    """

    def __init__(self, ranks: Sequence[RankFigures], width: int) -> None:
        from rich.cells import cell_len, set_cell_size

        self._fit = set_cell_size
        self._batch = max(1, sum(rank.share for rank in ranks))
        self._gpu = any(rank.gpu_memory for rank in ranks)
        self._number = max(4, len(str(len(ranks) - 1)))
        self._rows = max(5, len(str(self._batch)))
        self._state = max(10, max(cell_len(rank.state) for rank in ranks))
        hosts = max(4, max(cell_len(rank.host) for rank in ranks))
        # number, host, rows, part, bar, three parts, memory, maybe the GPU's, state; a blank or two between them
        fixed = self._number + 1 + 1 + self._rows + 8 + 12 + 8 + (7 if self._gpu else 0) + 1 + self._state
        self._host = max(4, min(hosts, 24, width - fixed - 16))
        self._bar = max(4, min(40, width - fixed - self._host))

    def head(self, parts: tuple[str, str, str]) -> Any:
        """What stands above the columns."""
        compute, read, wait = parts
        legend = f"compute{compute} input{read} wait{wait}"
        if self._bar + 12 < len(legend) + 1:
            legend = f"{compute} {read} {wait}"
        text = f"{'rank':>{self._number}} {'host':<{self._host}} {'share':>{self._rows}}{'':8} "
        text += f"{legend:<{self._bar + 10}} %{'memory':>8}" + ("    GPU" if self._gpu else "") + " state"
        return _text((text, "bold"))

    def rank(self, rank: RankFigures, parts: tuple[str, str, str]) -> Any:
        """A rank's line."""
        cells = [round(rank.compute * self._bar), 0, 0]
        cells[1] = min(self._bar - cells[0], max(round(rank.input * self._bar), int(rank.input >= 0.01)))
        cells[2] = self._bar - cells[0] - cells[1]
        styles = ("green", "yellow", "bright_black")
        bar = [(sign * count, style) for sign, count, style in zip(parts, cells, styles, strict=True)]
        percent = f"{rank.compute * 100:3.0f} {rank.input * 100:3.0f} {rank.wait * 100:3.0f}"
        gpu = f" {size(rank.gpu_memory):>6}" if self._gpu else ""
        return _text(
            f"{rank.rank:>{self._number}} {self._fit(rank.host, self._host)} ",
            f"{rank.share:>{self._rows}} {rank.share / self._batch:>6.1%} ",
            *(bar if rank.known else [" " * self._bar]),
            f" {percent if rank.known else '':<11}{size(rank.memory):>8}{gpu} ",
            (rank.state, "bold red" if rank.alarming else ""),
        )


def _summary(ranks: Sequence[RankFigures]) -> str:
    """One line for those between the slowest and the fastest."""
    known = [rank for rank in ranks if rank.known]
    text = f"  … {len(ranks)} ranks between: {sum(rank.share for rank in ranks)} rows"
    if known:
        low, high = min(rank.compute for rank in known), max(rank.compute for rank in known)
        text += f", compute {low:.0%} to {high:.0%}, input up to {max(rank.input for rank in known):.0%}"
    return text + f", memory up to {size(max(rank.memory for rank in ranks))}"


def size(memory: int) -> str:
    """Bytes in six characters at most, in units of 1024."""
    if not memory:
        return ""
    value, unit = float(memory), 0
    while value >= 999.5 and unit < 6:
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}{' KMGTPE'[unit].strip()}"


def _text(*parts: str | tuple[str, str]) -> Any:
    from rich.text import Text

    return Text.assemble(*parts, no_wrap=True, end="\n")
