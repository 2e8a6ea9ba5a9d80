"""A rank whose process lives while its training thread is stuck: all ranks end, and it is named."""

from __future__ import annotations

import pytest
from helpers import run_job

JOB = """
import sys, time
import torch
import engine

where, stuck = sys.argv[1], int(sys.argv[2])
session = engine.init(device="cpu", threads=1, step_timeout=1)

def perhaps_stop(here):
    if here == where and session.rank == stuck and trainer.progress.total_steps >= 3:
        time.sleep(1000)

class Model(torch.nn.Linear):
    def forward(self, inputs):
        perhaps_stop("compute")
        return super().forward(inputs)

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, row):
        perhaps_stop("input")
        return torch.full((4,), float(row)), row % 2

model = Model(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
plan = engine.Plan(rows=64, batch_size=8, seed=1)
hooks = engine.Hooks(save=lambda figures: perhaps_stop("save"), validate=lambda shares: time.sleep(3))
loss = torch.nn.CrossEntropyLoss(reduction="none")
trainer = engine.Trainer(model, loss, optimizer, plan, session, balance="off", hooks=hooks)
trainer.fit(Rows(), 3)
print("done")
"""


@pytest.mark.parametrize(
    ("where", "stuck", "named", "what"),
    [
        ("compute", 0, 0, "is at the compute of a step"),
        ("input", 1, 1, "is at the input of a step"),
        ("save", 0, 0, "is saving"),
        ("save", 1, 0, "waits for the other ranks"),
    ],
)
def test_a_rank_that_is_stuck_ends_all(session, where, stuck, named, what):
    if session.size != 2:
        pytest.skip("a job of 2 ranks, started once")
    status, told, errors = run_job(session, 2, JOB, where, stuck, seconds=120)
    assert status not in (0, None), errors
    assert "done" not in told
    ours = [line for line in errors.splitlines() if line.startswith("engine: ")]
    assert len(ours) == 1, errors
    assert ours[0].startswith(f"engine: rank {named} on ")
    assert what in ours[0]
    assert "(--step-timeout 1; give more where that is right); all ranks end now" in ours[0]


def test_validation_may_take_longer_than_a_step(session):
    if session.size != 2:
        pytest.skip("a job of 2 ranks, started once")
    status, told, errors = run_job(session, 2, JOB, "nowhere", 0, seconds=120)
    assert (status, told.count("done")) == (0, 2), errors  # the ranks' line ends may come later than the words
