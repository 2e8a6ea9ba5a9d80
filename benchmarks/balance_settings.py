"""The settings that benchmarks.balance measures: speed ratios, networks, batch sizes, lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.rows import LENGTH

RATIOS = {"1:1.78": (1.0, 1 / 1.78), "1:1:1:0.56": (1.0, 1.0, 1.0, 0.56), "1:4.8": (1.0, 1 / 4.8), "1:1": (1.0, 1.0)}
"""the faster rank first: its speed is 1"""
METHODS = ("off", "original", "epoch", "auto", "oracle", "ddp")
"""see benchmarks.balance_methods"""
ADAPTIVE = ("original", "epoch", "auto")
"""they need an epoch to find their shares"""
NETWORKS = ("local", "1gbit")
BATCH_SIZES = (512, 2048)
STEPS = {512: 20, 2048: 8}
"""of a turn, with balanced shares; an even split takes fewer steps in the same time"""


@dataclass(frozen=True)
class Setting:
    """One job's conditions."""

    ratio: str
    network: str
    batch_size: int
    kind: str = "plain"
    """plain, varying (lengths) or reaction"""

    @property
    def name(self) -> str:
        """RATIO/NETWORK/BATCH, with the kind behind it where it is a special one."""
        return "/".join((self.ratio, self.network, str(self.batch_size), *([self.kind] * (self.kind != "plain"))))

    @property
    def speeds(self) -> tuple[float, ...]:
        """Per rank, as a part of the fastest one's."""
        return RATIOS[self.ratio]

    @property
    def bounds(self) -> tuple[int, ...]:
        """Padded lengths of the rows."""
        return (32, 64, LENGTH) if self.kind == "varying" else (LENGTH,)

    def as_json(self) -> dict[str, Any]:
        """What identifies it."""
        names = {"name": self.name, "kind": self.kind, "ratio": self.ratio}
        return names | {"network": self.network, "batch_size": self.batch_size}


def all_settings() -> list[Setting]:
    """In the order in which they run."""
    plain = [Setting(ratio, network, size) for network in NETWORKS for ratio in RATIOS for size in BATCH_SIZES]
    return [*plain, Setting("1:1.78", "local", 512, "varying"), Setting("1:1.78", "local", 512, "reaction")]


def choose(wanted: str | None) -> list[Setting]:
    """All settings, or those whose name is, or else whose parts hold, one of the comma-separated words.

    Raises:
        ValueError: a word fits none.
    """
    settings = all_settings()
    if not wanted:
        return settings
    chosen: list[Setting] = []
    for word in wanted.split(","):
        exact = [setting for setting in settings if setting.name == word]
        parts = set(word.strip("/").split("/"))
        fitting = exact or [setting for setting in settings if parts <= set(setting.name.split("/"))]
        if not fitting:
            raise ValueError(f"--settings: no setting fits {word!r}; --list names them")
        chosen += [setting for setting in fitting if setting not in chosen]
    return sorted(chosen, key=settings.index)
