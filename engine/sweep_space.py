"""What a sweep tries: every combination of values, or so many drawn at random; each with one or more seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from engine.command_line import parse_train_config
from engine.config import TrainConfig, flag
from engine.errors import UsageError

OWN = ("out", "seed", "data", "resume")
"""options that a sweep sets itself, or that are no matter of the model"""


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, evenly on a logarithmic scale where both are above 0."""

    low: float
    high: float
    whole: bool

    def value(self, part: float) -> str:
        """The number at a part (0 to 1) of the way, as the command line takes it."""
        if self.low > 0:
            number = self.low * (self.high / self.low) ** part
        else:
            number = self.low + (self.high - self.low) * part
        return str(round(number)) if self.whole else f"{number:.4g}"


Values = tuple[str, ...] | Range


@dataclass(frozen=True)
class Trial:
    """One training: settings as on the command line, by option name, and its seed."""

    number: int
    settings: tuple[tuple[str, str], ...]
    seed: int

    @property
    def name(self) -> str:
        """Of its folder; made of the settings, so that a sweep that tries more values finds its earlier trials."""
        parts = [f"{name}={value}" for name, value in self.settings]
        return "_".join([*parts, f"seed={self.seed}"]).replace("/", "-")

    def config(self, given: Sequence[str], out: str) -> TrainConfig:
        """The configuration of the training.

        Args:
            given: options of engine.train that all trials share.
            out: folder of the trial.

        Raises:
            UsageError: a setting that engine.train does not take.
        """
        own = [word for name, value in self.settings for word in (flag(name), value)]
        try:
            return parse_train_config([*given, *own, "--seed", str(self.seed), "--out", out])
        except UsageError as error:
            shown = ", ".join(f"{name}={value}" for name, value in self.settings) or "without settings"
            raise UsageError(f"the trial {shown}: {error}") from None


def parse_values(text: str) -> tuple[str, Values]:
    """Read NAME=A,B,.. or NAME=LOW..HIGH.

    Raises:
        UsageError: neither.
    """
    name, _, values = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    if not name or not values:
        raise UsageError(f"--try {text!r}: write NAME=VALUE,VALUE,.. or NAME=LOW..HIGH, as learning_rate=0.001,0.002")
    if name in OWN:
        raise UsageError(f"--try {text!r}: {flag(name)} is not for trying; see --help")
    low, dots, high = values.partition("..")
    if not dots:
        return name, tuple(dict.fromkeys(value.strip() for value in values.split(",")))
    try:
        bounds = float(low), float(high)
    except ValueError:
        raise UsageError(f"--try {text!r}: a range is two numbers, as learning_rate=0.0005..0.005") from None
    if not (all(map(math.isfinite, bounds)) and bounds[0] < bounds[1]):
        raise UsageError(f"--try {text!r}: a range goes from a smaller to a larger number")
    return name, Range(*bounds, whole=low.strip().lstrip("-").isdigit() and high.strip().lstrip("-").isdigit())


def make_trials(values: Sequence[tuple[str, Values]], count: int, seeds: Sequence[int], draw_seed: int) -> list[Trial]:
    """The trials of a sweep, all seeds of one setting after those of the one before.

    Args:
        values: per option what may be taken.
        count: settings drawn at random; 0 for every combination.
        seeds: of the trainings of each setting.
        draw_seed: of the random draws; draw n is the same however many are made.

    Raises:
        UsageError: an option twice, or a range without random draws.
    """
    names = [name for name, _ in values]
    if len(set(names)) < len(names):
        raise UsageError(f"--try names {max(names, key=names.count)} twice: give all its values in one")
    if count:
        chosen = [_draw(values, draw_seed, number) for number in range(count)]
    else:
        lists = []
        for name, some in values:
            if isinstance(some, Range):
                raise UsageError(f"--try {name}: a range needs --random N, which draws from it; or list the values")
            lists.append(some)
        chosen = [tuple(zip(names, combination, strict=True)) for combination in product(*lists)]
    settings = list(dict.fromkeys(chosen))  # a draw may come twice
    return [
        Trial(number + 1, setting, seed)
        for number, (setting, seed) in enumerate((setting, seed) for setting in settings for seed in seeds)
    ]


def _draw(values: Sequence[tuple[str, Values]], seed: int, number: int) -> tuple[tuple[str, str], ...]:
    parts = np.random.Generator(np.random.Philox(key=[seed, number])).random(len(values))
    return tuple(
        (name, some.value(part) if isinstance(some, Range) else some[int(part * len(some))])
        for (name, some), part in zip(values, parts.tolist(), strict=True)
    )
