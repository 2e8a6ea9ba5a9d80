"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Any

from engine.checkpoint import Checkpoint, CheckpointFolder, load_checkpoint
from engine.config import TrainConfig
from engine.display import Display
from engine.errors import CheckpointError, UsageError
from engine.session import Session


def find_checkpoint(
    config: TrainConfig, session: Session, folder: CheckpointFolder, facts: dict[str, Any], display: Display
) -> Checkpoint | None:
    """The checkpoint to go on from; rank 0 reads it for all, so that RUN need not be on a shared disk. Collective.

    Args:
        facts: of the dataset, its digest among them.

    Raises:
        UsageError: on every rank: --resume forbids it, none is usable, or it belongs to another run or dataset.
    """
    found: tuple[Path, Checkpoint] | None = None
    problem: Exception | None = None
    if session.root:
        try:
            found = _read(config, folder, display)
            if found is not None:
                _check(config, *found, facts)
        except UsageError as error:
            problem = error
    session.together(problem)
    checkpoint: Checkpoint | None = session.comm.bcast(found[1] if found else None, root=0)
    return checkpoint


def _read(config: TrainConfig, folder: CheckpointFolder, display: Display) -> tuple[Path, Checkpoint] | None:
    if config.resume == "never":
        if folder.steps():
            raise UsageError(
                f"{config.out}: holds checkpoints, and --resume never would overwrite them; name another --out, or "
                "leave --resume out to go on"
            )
        return None
    if config.resume == "auto":
        path, checkpoint, problems = folder.latest_good()
        for bad, text in problems:
            folder.set_aside(bad)
            display.say(f"warning: {text} (set aside as unusable-{bad.name})")
        if problems and path is None:
            display.say(f"warning: {folder.folder}: no usable checkpoint is left, so training starts over")
        return None if path is None or checkpoint is None else (path, checkpoint)
    path = Path(config.resume)
    checkpoint = load_checkpoint(path)
    if folder.steps() and path.resolve().parent != folder.folder.resolve():
        # It would cut this run's metrics and checkpoints at a step of another run.
        raise UsageError(
            f"--resume {path}: lies outside {config.out}, which holds checkpoints of its own; name another --out"
        )
    return path, checkpoint


_KINDS: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "dataset": dict,
    "progress": dict,
    "schedule": list,
    "clocks": list,
    "ranks": list,
    "micro_steps": list,
    "balancer": (dict, NoneType),
    "exchange": str,
    "optimizer": dict,
    "precision": dict,
    "best": (dict, NoneType),
}
"""what the values of a checkpoint hold"""


def _check(config: TrainConfig, path: Path, checkpoint: Checkpoint, facts: dict[str, Any]) -> None:
    wrong = [name for name, kind in _KINDS.items() if not isinstance(checkpoint.values.get(name, ...), kind)]
    if wrong:
        raise CheckpointError(f"{path}: holds no usable {', '.join(wrong)}; name another checkpoint, or another --out")
    different = config.differences(checkpoint.values["config"])
    then = checkpoint.values["dataset"]
    if then.get("digest") != facts["digest"]:
        # Where none of these differs, it is the rows themselves.
        fields = [name for name in facts if name != "digest" and facts[name] != then.get(name)] or ["rows"]
        different.append(
            f"--data {config.data} is another dataset than the checkpoint's (it differs in {', '.join(fields)})"
        )
    if different:
        raise CheckpointError(
            f"{path}: cannot go on from it: {'; '.join(different)}; give the same options, or another --out"
        )
