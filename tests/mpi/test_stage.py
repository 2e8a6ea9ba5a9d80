"""Node-local copies on several ranks: one copies, all read it; several nodes; failures reach every rank."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import engine
from engine import node_copy
from engine import stage as staging
from tests.synthetic import write_dataset

pytestmark = pytest.mark.mpi


@pytest.fixture
def folder(session) -> Iterator[Path]:
    """A folder that all ranks see."""
    own = tempfile.mkdtemp()
    shared = Path(session.comm.bcast(own, root=0))
    yield shared
    session.comm.Barrier()
    shutil.rmtree(own, ignore_errors=True)


@pytest.fixture
def nodes(session, monkeypatch):
    """Makes each rank believe in a host of its own."""
    monkeypatch.setattr(staging.socket, "gethostname", lambda: f"node-{session.rank}")


def counted(monkeypatch) -> list[int]:
    """Counts the copies that this rank makes."""
    calls: list[int] = []
    copy = node_copy.NodeCopy._copy
    monkeypatch.setattr(node_copy.NodeCopy, "_copy", lambda self, *more: (calls.append(1), copy(self, *more))[1])
    return calls


def test_one_rank_copies_and_all_read_it(session, dataset, folder, monkeypatch):
    calls, said = counted(monkeypatch), []
    paths = [staging.stage(dataset, folder / "local", session, said.append) for _ in range(2)]
    assert session.comm.allreduce(len(calls)) == 1
    assert len(calls) == int(session.root)
    assert len(set(session.comm.allgather(paths[0]))) == 1
    assert paths[0].parent == folder / "local"
    assert paths[0] == paths[1]
    with engine.open(paths[0]) as data, engine.open(paths[0], "validation") as validation:
        assert len(data) == 1133
        assert len(validation) == 151
    if session.root:
        assert ["copied" in line for line in said] == [True, False]


def test_each_node_has_its_own(session, dataset, folder, nodes, monkeypatch):
    calls = counted(monkeypatch)
    path = staging.stage(dataset, folder / f"disk-{session.rank}", session, lambda line: None)
    assert len(calls) == 1
    assert path.parent == folder / f"disk-{session.rank}"


def test_nodes_that_share_the_disk_share_the_copy(session, dataset, folder, nodes, monkeypatch):
    calls = counted(monkeypatch)
    path = staging.stage(dataset, folder / "local", session, lambda line: None)
    assert session.comm.allreduce(len(calls)) == 1
    assert path.parent == folder / "local"


def test_a_node_without_space_reads_the_original(session, dataset, folder, nodes, monkeypatch):
    """That node alone, and rank 0 tells of it."""
    last = session.size - 1
    if session.rank == last:
        monkeypatch.setattr(staging, "_copy", lambda *_: staging._Result(problem="No space left on device"))
    said: list[str] = []
    path = staging.stage(dataset, folder / f"disk-{session.rank}", session, said.append)
    assert (path == dataset) == (session.rank == last)
    if session.root:
        assert f"warning: node-{last}: no copy of {dataset}" in said[0]
        assert "No space left on device" in said[0]


def test_a_damaged_original_is_told_on_every_rank(session, folder):
    data = folder / "data"
    if session.root:
        write_dataset(data)
        part = data / "train/part-00000.h5"
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    session.comm.Barrier()
    with pytest.raises(engine.UsageError, match=r"train/part-00000.h5: does not fit its digest"):
        staging.stage(data, folder / "local", session, lambda line: None)


def test_a_folder_for_some_ranks_only_is_refused(session, dataset, folder):
    if session.size == 1:
        assert staging.stage(dataset, None, session, pytest.fail) == dataset
        return
    given = folder / "local" if session.root else None
    with pytest.raises(engine.UsageError, match=r"rank 0 was given one, rank 1 none"):
        staging.stage(dataset, given, session, lambda line: None)


def test_waiting_ranks_sleep(session, dataset, folder, monkeypatch):
    """While one copies for a second, the others take hardly any time of their cores."""
    import os
    import time

    copy = node_copy.NodeCopy._copy

    def slowly(self, *more):
        time.sleep(1.0)
        copy(self, *more)

    monkeypatch.setattr(node_copy.NodeCopy, "_copy", slowly)
    before = os.times()
    staging.stage(dataset, folder / "local", session, lambda line: None)
    after = os.times()
    if not session.root:
        assert after.user + after.system - before.user - before.system < 0.5
