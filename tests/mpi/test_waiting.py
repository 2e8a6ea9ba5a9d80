"""Waiting asleep in Horovod's thread: sums stay right, the hook is in use, all ranks do it or none does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_job

from engine.reduction import Reducer
from native import mpi_wait

pytestmark = pytest.mark.mpi
SIZES = (1, 7, 256, 257, 50_000)
ROOT = Path(__file__).parents[2]

# One line per rank: whether its hook takes calls over, and whether a sum is right. Argument: who deviates, and how.
JOB = """
import os, sys, time
rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
who, how = sys.argv[1:]
if who == "all" or rank == int(who):
    if how == "spin": os.environ["ENGINE_MPI_WAIT"] = "spin"
    if how == "missing": sys.modules["native.mpi_wait"] = None
    if how == "late": import horovod.torch
    if how == "mpi4py": from mpi4py import MPI; MPI.COMM_WORLD.allreduce(1)
import torch, engine
from engine.reduction import Reducer
sessions = [engine.init(device="cpu", threads=1) for _ in range(2)]
sums = [torch.full((size,), 1.0 + rank) for size in (3, 1000)]
reducer = Reducer(sessions[-1])
for number, value in enumerate(sums):
    reducer.start(f"test.{number}", value)
reducer.wait()
sys.modules.pop("native.mpi_wait", None) if how == "missing" else None
from native import mpi_wait
end = time.monotonic() + 0.3
while time.monotonic() < end:
    time.sleep(0.01)
right = all(bool((value == 3.0).all()) for value in sums)
right = right and sessions[0].sum_array(torch.ones(2).double().numpy()).tolist() == [2, 2]
waits = "asleep" if mpi_wait.counts()[0] else "spinning"
os.write(1, f"{waits} {'right' if right else 'wrong'}\\n".encode())
"""


def values(dtype: torch.dtype, size: int, rank: int) -> torch.Tensor:
    """Small whole numbers, so that every type holds every result exactly."""
    return ((torch.arange(size) * 7 + rank * 3) % 11 - 5).to(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int32, torch.int64], ids=str)
def test_reductions_through_horovod_are_right(session, dtype, size):
    everyone = torch.stack([values(dtype, size, rank) for rank in range(session.size)])
    expected = {"Sum": everyone.sum(0).to(dtype)}
    if dtype != torch.float16:  # Horovod knows its sum only
        expected |= {"Max": everyone.amax(0), "Min": everyone.amin(0)}
    for operation, result in expected.items():
        name = f"waiting.{operation}.{dtype}.{size}"
        found = session.hvd.allreduce(values(dtype, size, session.rank), op=getattr(session.hvd, operation), name=name)
        assert torch.equal(found, result), operation


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operation", ["SUM", "MAX", "BAND", "BOR", "BXOR"])
def test_reductions_through_mpi4py_are_right_while_horovod_waits(session, operation, size):
    from mpi4py import MPI

    combine = {"SUM": np.add, "MAX": np.maximum, "BAND": np.bitwise_and, "BOR": np.bitwise_or, "BXOR": np.bitwise_xor}
    everyone = [values(torch.int64, size, rank).numpy().astype(np.longlong) for rank in range(session.size)]
    expected = combine[operation].reduce(everyone)
    found = np.empty_like(expected)
    for _ in range(20):
        # The type of Horovod's bit vectors, in a caller that is not Horovod.
        session.comm.Allreduce(
            [everyone[session.rank], MPI.LONG_LONG], [found, MPI.LONG_LONG], op=getattr(MPI, operation)
        )
        assert np.array_equal(found, expected)
        session.comm.Allreduce(MPI.IN_PLACE, found, op=MPI.MAX)
        assert np.array_equal(found, expected)


def test_horovods_idle_thread_waits_in_the_hook_and_data_passes_by(session):
    if session.comm.allreduce(int(os.environ.get("ENGINE_MPI_WAIT") == "spin")):
        pytest.skip("ENGINE_MPI_WAIT=spin")
    taken = mpi_wait.counts()[0]
    for _ in range(3000):
        if mpi_wait.counts()[0] > taken + 10:
            break
        time.sleep(0.01)
    assert mpi_wait.counts()[0] > taken + 10
    if session.size > 1:
        passed = mpi_wait.counts()[1]
        reducer = Reducer(session)
        reducer.start("passed.on", torch.ones(1000))
        reducer.wait()
        assert mpi_wait.counts()[1] > passed


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_sums_around_a_ring_are_right_and_the_same_on_all_ranks(session, kind):
    """As between hosts, here switched on by hand: lengths that the ranks do not divide, several sums at once."""
    if session.comm.allreduce(int(mpi_wait.counts()[0] == 0)):
        pytest.skip("ranks spin while they wait")
    session.comm.Barrier()
    mpi_wait.use_rings(True)
    around = mpi_wait.counts()[2]
    reducer = Reducer(session)
    values = [
        [np.random.default_rng([rank, size]).standard_normal(size) for rank in range(session.size)]
        for size in (4096, 10_007, 300_001)
    ]
    sums = [torch.tensor(mine[session.rank], dtype=kind) for mine in values]
    for number, value in enumerate(sums):
        reducer.start(f"ring.{number}.{kind}", value)
    reducer.wait()
    session.comm.Barrier()
    mpi_wait.use_rings(False)
    assert mpi_wait.counts()[2] - around == (0 if session.size == 1 else 5)  # 300,001 numbers in three messages
    for value, expected in zip(sums, values, strict=True):
        exact = torch.from_numpy(np.sum(expected, axis=0))
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=1e-12 if kind == torch.float64 else 1e-5)
        assert len(set(session.comm.allgather(value.numpy().tobytes()))) == 1


@pytest.mark.parametrize(
    ("who", "how", "expected", "told"),
    [
        ("all", "spin", "spinning", ""),
        ("0", "spin", "spinning", "because of rank 0: ENGINE_MPI_WAIT=spin"),
        ("1", "missing", "spinning", "because of rank 1: native.mpi_wait is not usable"),
        ("1", "late", "spinning", "because of rank 1: Horovod was imported before"),
        ("all", "mpi4py", "asleep", ""),
    ],
)
def test_all_ranks_wait_alike(session, who, how, expected, told):
    if session.size != 2:
        pytest.skip("a job of 2 ranks, started once")
    status, told_by_all, errors = run_job(session, 2, JOB, who, how)
    assert status == 0, errors
    assert told_by_all.split() == [expected, "right"] * 2
    assert told in errors
    assert errors.count("all ranks spin") == (1 if told else 0)
