"""Checkpoints: whole or refused; last, best and the number kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    load_checkpoint,
    load_optimizer_state,
    optimizer_state,
    save_checkpoint,
    weights_digest,
)
from engine.errors import CheckpointError


def example(step: int = 1) -> Checkpoint:
    return Checkpoint(
        {"model/a": torch.arange(6.0).reshape(2, 3) + step, "optimizer/0/exp": torch.tensor(1.5).double()},
        {"progress": {"total_steps": step}, "note": "ü"},
    )


def test_what_was_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path / "c", example())
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.values["progress"] == {"total_steps": 1}
    assert list(loaded.part("model")) == ["a"]
    torch.testing.assert_close(loaded.tensors["model/a"], example().tensors["model/a"])
    assert loaded.tensors["optimizer/0/exp"].dtype == torch.float64


@pytest.mark.parametrize(
    "make", [torch.optim.Adam, torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)]
)
def test_an_optimiser_goes_on_as_if_undisturbed(tmp_path, make):
    def start() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, make(model.parameters())

    def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).pow(2).sum().backward()
            optimizer.step()

    model, optimizer = start()
    steps(model, optimizer, 3)
    tensors, values = optimizer_state(optimizer)
    weights = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(
        tmp_path / "c", Checkpoint({**weights, **{f"optimizer/{n}": t for n, t in tensors.items()}}, {"o": values})
    )
    steps(model, optimizer, 3)
    resumed, again = start()
    saved = load_checkpoint(tmp_path / "c")
    resumed.load_state_dict(saved.part("model"))
    load_optimizer_state(again, saved.part("optimizer"), saved.values["o"])
    steps(resumed, again, 3)
    assert weights_digest(model) == weights_digest(resumed)


def test_the_weights_digest_is_of_the_bytes_in_the_order_of_names():
    import hashlib

    model = torch.nn.ModuleDict({"b": torch.nn.Linear(2, 1), "a": torch.nn.Linear(1, 2)})
    parts = [
        dict(model.named_parameters())[name].detach().numpy().tobytes()
        for name in ("a.bias", "a.weight", "b.bias", "b.weight")
    ]
    assert weights_digest(model) == hashlib.sha256(b"".join(parts)).hexdigest()


def test_any_damage_is_found(tmp_path):
    path = tmp_path / "c"
    save_checkpoint(path, example())
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="c: "):
            load_checkpoint(path)
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            continue
        # a flip in the JSON's blanks changes nothing
        torch.testing.assert_close(loaded.tensors["model/a"], example().tensors["model/a"])
        assert loaded.values["progress"] == {"total_steps": 1}


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "missing")
    torch.save({"a": 1}, tmp_path / "pickle")
    with pytest.raises(CheckpointError, match="not a usable checkpoint"):
        load_checkpoint(tmp_path / "pickle")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_last_best_and_the_number_kept(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    for step in range(1, 7):
        folder.save(example(step), step, best=step == 2)
    assert names(folder.folder) == ["best", "last", "step-00000002", "step-00000005", "step-00000006"]
    assert load_checkpoint(folder.folder / "best").values["progress"]["total_steps"] == 2
    assert os.readlink(folder.folder / "last") == "step-00000006"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    for step in (5, 9):
        folder.save(example(step), step, best=False)
    (tmp_path / "step-00000009").write_bytes(b"torn")
    path, checkpoint, problems = folder.latest_good()
    assert path.name == "step-00000005"
    assert checkpoint.values["progress"]["total_steps"] == 5
    assert problems[0][0].name == "step-00000009"
    folder.set_aside(problems[0][0])
    assert not folder.go_on_from(5, None)
    assert names(tmp_path) == ["last", "step-00000005", "unusable-step-00000009"]


def test_going_on_from_an_earlier_step_drops_what_is_later_and_points_again(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    for step in (1, 2, 3):
        folder.save(example(step), step, best=step < 3)
    (tmp_path / ".step-00000004.77.part").write_bytes(b"a killed save")
    assert folder.go_on_from(1, 1)
    assert names(tmp_path) == ["best", "last", "step-00000001"]
    assert {os.readlink(tmp_path / link) for link in ("last", "best")} == {"step-00000001"}
    assert not folder.go_on_from(0, None)
    assert names(tmp_path) == []


def test_a_failed_write_leaves_the_earlier_one(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    folder.save(example(1), 1, best=True)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        folder.save(example(2), 2, best=True)
    assert names(tmp_path) == ["best", "last", "step-00000001"]
