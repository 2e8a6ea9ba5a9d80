"""The configuration of a training run: options, their defaults and meaning, and which values are right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from engine.errors import UsageError

MOST_TRACED = 10_000
"""steps that --trace-steps takes"""


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    choices: Sequence[Any] | None = None,
    metavar: str | None = None,
    may_change: bool = False,
) -> Any:
    """A documented field. `may_change`: a resumed run may set it to another value."""
    return field(
        default=default, metadata={"help": help, "choices": choices, "metavar": metavar, "may_change": may_change}
    )


_BEFORE = {"ngrams": 0, "ngram_entries": 1 << 20, "recurrent_dropout": 0.0}
"""what a model had of options that came later"""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The recurrent network and its loss; all that a checkpoint needs to build the model again."""

    cell: str = option("lstm", "recurrent cell", choices=("lstm", "gru"))
    embedding_size: int = option(100, "numbers per word vector")
    hidden_size: int = option(128, "units of each recurrent layer and direction")
    layers: int = option(1, "recurrent layers")
    directions: int = option(2, "1 reads forwards, 2 reads backwards as well", choices=(1, 2))
    pooling: str = option(
        "attention",
        "how the states of a review become one vector: of the last valid word, or over the valid words their mean, "
        "their maximum, or a mean with learnt weights",
        choices=("last", "mean", "max", "attention"),
    )
    loss: str = option(
        "bce",
        "bce: binary cross-entropy (two classes); cross_entropy: one score per class; mse: mean squared error",
        choices=("bce", "cross_entropy", "mse"),
    )
    classes: int = option(
        2,
        "2: negative and positive (4 or 5 stars); 5: the stars themselves, with another --loss than bce",
        choices=(2, 5),
    )
    ngrams: int = option(
        2,
        "words of the longest n-grams that have a score of their own beside the recurrent network; 0: none",
        choices=(0, 1, 2, 3),
    )
    ngram_entries: int = option(
        1 << 20,
        "n-grams are hashed to so many scores, and some share one; fewer take less memory and less time to exchange",
        metavar="N",
    )
    dropout: float = option(
        0.5,
        "probability of dropout, half of it for what is read; 0 switches off all that is random by default",
        metavar="P",
    )
    recurrent_dropout: float = option(
        0.0,
        "probability with which a weight between a layer's own states is left out, in all steps of a batch's rows",
        metavar="P",
    )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelConfig:
        """From a checkpoint's values; an option that is younger than the checkpoint is as it was then.

        Raises:
            TypeError, UsageError: not the values of a model.
        """
        return cls(**(_BEFORE | values))

    def __post_init__(self) -> None:
        for name in ("embedding_size", "hidden_size", "layers"):
            _require(getattr(self, name) >= 1, name, "at least 1")
        _require(self.directions in (1, 2), "directions", "1 or 2")
        _require(self.classes in (2, 5), "classes", "2 or 5")
        _require(self.ngrams in (0, 1, 2, 3), "ngrams", "0, 1, 2 or 3")
        _require(2 <= self.ngram_entries < 1 << 31, "ngram_entries", "at least 2 and below 2^31")
        for name in ("dropout", "recurrent_dropout"):
            _require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1")
        if self.loss == "bce" and self.classes != 2:
            raise UsageError("--loss bce tells two classes apart; take --loss cross_entropy or mse with --classes 5")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything `python -m engine.train` can be told."""

    data: str = option(help="dataset folder made by python -m mr", metavar="DATA", may_change=True)
    out: str = option(
        help="folder of this run; made when missing, nothing outside it is written", metavar="RUN", may_change=True
    )
    epochs: int = option(4, "passes over the training split", metavar="N", may_change=True)
    batch_size: int = option(256, "rows of a GLOBAL batch, whatever the number of ranks", metavar="B")
    seed: int = option(7, "seed of the order of rows, the initial weights and dropout", metavar="S")
    balance: str = option(
        "auto",
        "how shares of a batch follow the ranks' speeds: not at all (an even split), at every "
        "epoch, or also inside an epoch",
        choices=("off", "epoch", "auto"),
        may_change=True,
    )
    rebalance_every: int = option(
        50,
        "steps of a window with --balance auto: five looks at the timings, and a change's gain is told after one",
        metavar="STEPS",
        may_change=True,
    )
    shares: tuple[float, ...] = option(
        (),
        "fixed proportions, a number per rank, 0 allowed (3,1); implies --balance off",
        metavar="A,B,..",
        may_change=True,
    )
    rank_caps: tuple[int, ...] = option(
        (),
        "most rows of a batch that each rank takes (its memory), a number per rank, 0 for no cap (0,0,256)",
        metavar="A,B,..",
        may_change=True,
    )
    micro_batch: int = option(
        0,
        "most rows computed at once, gradients adding up; 0: the size at which each rank is fastest, by a profile at "
        "the start, where shares are balanced, and no limit otherwise; -1: no limit",
        metavar="ROWS",
        may_change=True,
    )
    exchange: str = option(
        "auto",
        "how gradients travel: dense, or an embedding's by its touched rows while the rest is computed (exact too); "
        "auto: rows on several CPU hosts with a slow network between them",
        choices=("auto", "dense", "rows"),
        may_change=True,
    )
    compression: str = option(
        "none",
        "fp16: gradients travel as 16-bit numbers; half the traffic, and no longer the very same trajectory",
        choices=("none", "fp16"),
        may_change=True,
    )
    resume: str = option(
        "auto",
        "auto: go on from RUN's last good checkpoint; never: refuse a RUN that has one; or the path of a checkpoint",
        metavar="auto|never|CHECKPOINT",
        may_change=True,
    )
    checkpoint_every: int = option(
        0, "steps between checkpoints inside an epoch; 0: only at its end", metavar="STEPS", may_change=True
    )
    checkpoint_minutes: float = option(
        10.0, "minutes between checkpoints inside an epoch; 0: only at its end", metavar="M", may_change=True
    )
    keep_checkpoints: int = option(3, "checkpoints kept besides the best one", metavar="K", may_change=True)
    on_nonfinite: str = option(
        "stop",
        "what a loss or gradient that is not a finite number does: stop the run before the step is applied, naming "
        "rank and rows, or skip the step, counted and recorded",
        choices=("stop", "skip"),
        may_change=True,
    )
    shares_from: str = option(
        "",
        "metrics.jsonl of another run on as many ranks, whose shares are used step for step, so that it can be "
        "repeated bit for bit; implies --balance off",
        metavar="FILE",
        may_change=True,
    )
    rank_timeout: float = option(
        60.0,
        "seconds after which a rank that gives no sign of life ends the job; 0: wait for it for ever",
        metavar="SECONDS",
        may_change=True,
    )
    step_timeout: float = option(
        1800.0,
        "seconds after which a rank that is still at the input or compute of the same step, or at saving, ends the "
        "job, where there are several; 0: wait for it for ever",
        metavar="SECONDS",
        may_change=True,
    )
    stage_dir: str = option(
        "",
        "folder on a disk of each node's own: the dataset is copied there once per node, verified, and read from there",
        metavar="DIR",
        may_change=True,
    )
    log_every: int = option(50, "steps between 'step' lines in metrics.jsonl", metavar="STEPS", may_change=True)
    view: str = option(
        "auto",
        "what rank 0 shows meanwhile; auto: a live view where standard error leads to a terminal, else lines",
        choices=("auto", "lines", "none"),
        may_change=True,
    )
    log_seconds: float = option(
        10.0, "seconds between lines of progress where there is no live view; 0: none", metavar="S", may_change=True
    )
    tensorboard: bool = option(
        False,
        "write the figures for TensorBoard too, into RUN/tensorboard (needs the extra tensorboard)",
        may_change=True,
    )
    trace_steps: str = option(
        "",
        "first and last step whose time line is recorded on all ranks, into RUN/trace-FIRST-LAST.json, for "
        "ui.perfetto.dev (100:110)",
        metavar="FIRST:LAST",
        may_change=True,
    )
    horovod_timeline: bool = option(
        False,
        "have Horovod record its own time line, of the steps of --trace-steps or of all, into RUN",
        may_change=True,
    )
    device: str = option(
        "auto",
        "auto takes one GPU per local rank where there are GPUs",
        choices=("auto", "cpu", "cuda"),
        may_change=True,
    )
    threads: int = option(
        0, "CPU threads per rank; 0: this host's cores divided by its ranks", metavar="N", may_change=True
    )
    precision: str = option(
        "float32",
        "number type of the computation; the 16-bit ones keep float32 weights",
        choices=("float64", "float32", "bfloat16", "float16"),
    )
    optimizer: str = option("adam", "update rule", choices=("sgd", "adam", "adamw"))
    learning_rate: float = option(0.004, "step size after warm-up", metavar="RATE", may_change=True)
    momentum: float = option(0.9, "momentum of sgd")
    weight_decay: float = option(
        0.0, "how much weights are pulled towards 0 at each step (L2 penalty; decoupled with adamw)"
    )
    warmup_steps: int = option(
        0, "steps over which the learning rate rises linearly from 0", metavar="STEPS", may_change=True
    )
    schedule: str = option(
        "constant",
        "the learning rate after warm-up: constant, falling as 1 / (1 + epochs done), or falling to 0 at the end of "
        "--epochs on a line or half a cosine, so that a run of more epochs is another one from the start",
        choices=("constant", "inverse", "linear", "cosine"),
        may_change=True,
    )
    average_decay: float = option(
        0.99,
        "what is left of a running average of the weights at each step; the average is what is validated and used "
        "afterwards, training goes on from the weights themselves; 0: no average",
        metavar="D",
        may_change=True,
    )
    patience: int = option(
        0,
        "epochs without a better score (macro-F1 on the validation split) after which training ends early; 0: never",
        metavar="N",
        may_change=True,
    )
    clip_norm: float = option(
        1.0, "largest norm of the whole gradient; 0: no clipping", metavar="NORM", may_change=True
    )
    word_vectors: str = option(
        "cooccurrence",
        "first word vectors: random, or from which words stand near which in the training split",
        choices=("random", "cooccurrence"),
        may_change=True,
    )
    class_weights: str = option(
        "root",
        "how much a row of each class counts: none: all alike; balanced: every class as much as any other in sum; "
        "root: the square roots of these weights, between the two; or a number per class (2,1)",
        metavar="none|balanced|root|A,B,..",
    )
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "rebalance_every", "keep_checkpoints", "log_every"):
            _require(getattr(self, name) >= 1, name, "at least 1")
        for name in (
            "checkpoint_every",
            "checkpoint_minutes",
            "rank_timeout",
            "step_timeout",
            "threads",
            "patience",
            "momentum",
            "weight_decay",
            "warmup_steps",
            "clip_norm",
            "log_seconds",
        ):
            _require(getattr(self, name) >= 0, name, "at least 0")
        _require(self.micro_batch >= -1, "micro_batch", "at least -1")
        _require(self.batch_size < 1 << 31, "batch_size", "below 2^31")
        _require(self.threads <= 1024, "threads", "at most 1024")
        _require(0 <= self.seed < 1 << 63, "seed", "at least 0 and below 2^63")
        _require(self.learning_rate > 0, "learning_rate", "above 0")
        _require(0 <= self.average_decay < 1, "average_decay", "at least 0 and below 1")
        for item in fields(self):
            value = getattr(self, item.name)
            _require(not isinstance(value, float) or math.isfinite(value), item.name, "a finite number")
        if self.shares:
            _require(
                all(math.isfinite(share) and share >= 0 for share in self.shares) and sum(self.shares) > 0,
                "shares",
                "numbers of at least 0, not all 0",
            )
        _require(all(cap >= 0 for cap in self.rank_caps), "rank_caps", "numbers of at least 0")
        self.class_weight_values(None)
        self.traced_steps()

    def traced_steps(self) -> tuple[int, int] | None:
        """First and last step of --trace-steps, None where there are none."""
        if not self.trace_steps:
            return None
        words = self.trace_steps.split(":")
        right = len(words) == 2 and all(word.isascii() and word.isdigit() for word in words)
        first, last = (int(words[0]), int(words[1])) if right else (0, 0)
        _require(1 <= first <= last, "trace_steps", "the first and the last of some steps, counted from 1 (100:110)")
        _require(last - first < MOST_TRACED, "trace_steps", f"at most {MOST_TRACED} steps, all are kept in memory")
        return first, last

    def class_weight_values(self, counts: Sequence[int] | None) -> tuple[float, ...] | None:
        """Weight per class, or None for equal weights.

        Args:
            counts: rows per class in the training split, for 'balanced' and 'root'; None only checks the option.
        """
        if self.class_weights == "none":
            return None
        if self.class_weights in ("balanced", "root"):
            if counts is None:
                return None
            there = sum(1 for count in counts if count)
            # A class that nothing is trained on may still be met in validation.
            power = 1.0 if self.class_weights == "balanced" else 0.5
            return tuple((sum(counts) / (there * count)) ** power if count else 1.0 for count in counts)
        try:
            values = tuple(float(item) for item in self.class_weights.split(","))
        except ValueError:
            raise UsageError(f"--class-weights {self.class_weights!r}: not numbers separated by commas") from None
        _require(
            len(values) == self.model.classes and all(math.isfinite(v) and v >= 0 for v in values) and sum(values) > 0,
            "class_weights",
            f"none, balanced, root, or {self.model.classes} numbers of at least 0",
        )
        return values

    def to_json(self) -> dict[str, Any]:
        """Plain values, for config.json and checkpoints."""
        return asdict(self)

    def shared(self) -> dict[str, Any]:
        """Options that must be the same on all ranks, by their flags; paths and hardware may differ by host."""
        own = {"data", "out", "device", "threads", "stage_dir", "model"}
        values = self.to_json()
        return {flag(name): value for name, value in {**values, **values["model"]}.items() if name not in own}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Options that a resumed run may not change and that differ from those of `other`, each told in words."""
        mine = self.to_json()
        fixed = [item.name for item in fields(self) if item.name != "model" and not item.metadata["may_change"]]
        pairs = [(name, mine[name], other.get(name)) for name in fixed]
        then = _BEFORE | other.get("model", {})
        pairs += [(name, value, then.get(name)) for name, value in mine["model"].items()]
        return [
            f"{flag(name)} is {now!r}, the checkpoint has {then!r}"
            for name, now, then in pairs
            if _plain(now) != _plain(then)
        ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def require_choice(name: str, value: Any) -> None:
    """For what comes from a script, past the command line.

    Raises:
        UsageError: TrainConfig's option of this name has no such choice.
    """
    choices = TrainConfig.__dataclass_fields__[name].metadata["choices"]
    if value not in choices:
        raise UsageError(f"{name}={value!r}: give one of {', '.join(choices)}")


def flag(name: str) -> str:
    """The command line's name of a field."""
    return "--" + name.replace("_", "-")


def _require(condition: bool, name: str, what: str) -> None:
    if not condition:
        raise UsageError(f"{flag(name)} must be {what}")
