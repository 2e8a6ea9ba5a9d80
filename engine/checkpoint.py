"""Checkpoints: tensors and plain values in one safetensors file, no pickle; loading one runs no code.

A checkpoint is written beside, flushed, renamed; its digest is inside. RUN/checkpoints holds step-NNNNNNNN files and
the links `last` and `best`.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from engine.errors import CheckpointError
from native.files import sync, write_durably

FORMAT = "engine-checkpoint"
VERSION = 2
_KEY = "engine"


@dataclass(frozen=True)
class Checkpoint:
    """What is saved: tensors by name, and plain JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`/, by the rest of their names."""
        return {
            name[len(prefix) + 1 :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix + "/")
        }


def _digest(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256(json.dumps(checkpoint.values, sort_keys=True).encode())
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def weights_digest(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, of all parameters' bytes in the order of their names."""
    digest = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        digest.update(_bytes(parameter))
    return digest.hexdigest()


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors by name and plain values."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"state": plain, "param_groups": state["param_groups"]}


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put back what `optimizer_state` took."""
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in values["state"].items()}
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": values["param_groups"]})


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that a crash leaves the file whole or not there.

    Raises:
        OSError: disk full, read-only, ...
    """
    values = {"format": FORMAT, "version": VERSION, **checkpoint.values}
    whole = Checkpoint(
        {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}, values
    )
    header = json.dumps({"digest": _digest(whole), "values": values}, sort_keys=True)
    # Optimisers share one tensor between entries; safetensors wants each to have memory of its own.
    tensors = {name: tensor.clone() for name, tensor in whole.tensors.items()}
    write_durably(path, safetensors.torch.save(tensors, {_KEY: header}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: missing, not a checkpoint, another version, or damaged.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if header is None:
            raise ValueError("it is not one of this engine's")
        content = json.loads(header)
        if not isinstance(content, dict) or not isinstance(content.get("values"), dict):
            raise ValueError("its header is not one of this engine's")
        checkpoint = Checkpoint(tensors, content["values"])
        whole = _digest(checkpoint) == content["digest"]
    except IsADirectoryError:
        raise CheckpointError(f"{path}: a folder; name a file in RUN/checkpoints, such as best") from None
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: there is no such checkpoint; name a file in RUN/checkpoints, such as best"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())  # safetensors' messages may hold line ends
        raise CheckpointError(f"{path}: not a usable checkpoint ({reason}); name another one") from None
    if checkpoint.values.get("format") != FORMAT or checkpoint.values.get("version") != VERSION:
        raise CheckpointError(f"{path}: version {checkpoint.values.get('version')}, this program reads {VERSION}")
    if not whole:
        raise CheckpointError(f"{path}: damaged, its digest does not fit its content; name another one")
    return checkpoint


class CheckpointFolder:
    """RUN/checkpoints.

    Args:
        folder: made at the first save.
        keep: checkpoints kept besides the best one.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self._keep = folder, keep

    def steps(self) -> list[Path]:
        """All checkpoint files, the latest first."""
        return sorted((path for path in self.folder.glob("step-*") if path.name[5:].isdigit()), reverse=True)

    def save(self, checkpoint: Checkpoint, step: int, best: bool) -> Path:
        """Write a checkpoint, point `last` (and `best`) at it and remove those beyond the number kept.

        Raises:
            OSError: it could not be written; the earlier ones are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}"
        save_checkpoint(path, checkpoint)
        self._point("last", path.name)
        if best:
            self._point("best", path.name)
        kept = self._target("best")
        for old in [path for path in self.steps() if path.name != kept][self._keep :]:
            old.unlink()
        return path

    def latest_good(self) -> tuple[Path | None, Checkpoint | None, list[tuple[Path, str]]]:
        """The latest checkpoint that is whole, and for each later one that is not its path and a message."""
        problems: list[tuple[Path, str]] = []
        for path in self.steps():
            try:
                return path, load_checkpoint(path), problems
            except CheckpointError as error:
                problems.append((path, str(error)))
        return None, None, problems

    def set_aside(self, path: Path) -> None:
        """Take an unusable checkpoint out of the way, without losing it."""
        path.replace(path.with_name(f"unusable-{path.name}"))

    def go_on_from(self, step: int, best_step: int | None) -> bool:
        """Remove what belongs to later steps, and files that a killed save left; point `last` and `best` again.

        Args:
            step: training goes on from here and will make its own later checkpoints.
            best_step: the best one up to `step`; None for none.

        Returns:
            Whether the best one is still there.
        """
        for path in self.steps():
            if int(path.name[5:]) > step:
                path.unlink()
        for torn in self.folder.glob(".*.part"):
            torn.unlink()
        left = self.steps()
        best = f"step-{best_step:08d}" if best_step is not None else None
        for link, target in (("last", left[0].name if left else None), ("best", best)):
            if target is not None and (self.folder / target).exists():
                self._point(link, target)
            else:
                (self.folder / link).unlink(missing_ok=True)
        return (self.folder / "best").exists()

    def _target(self, link: str) -> str | None:
        path = self.folder / link
        return os.readlink(path) if path.is_symlink() else None

    def _point(self, link: str, target: str) -> None:
        temporary = self.folder / f".{link}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(self.folder / link)
        sync(self.folder)
