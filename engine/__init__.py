"""Data-parallel training for GPUs that are not all alike: uneven shares of each global batch, exact gradients.

    import engine
    session = engine.init()                                          # Horovod + MPI, device, agreement checks
    data    = engine.open(DATA, split="train")
    plan    = engine.Plan(layout=data.layout, batch_size=1024, seed=7)
    trainer = engine.Trainer(model, loss, optimizer, plan, session)
    trainer.fit(source, epochs=3)

The parts work alone too: `engine.balance` (timings to shares), `engine.Plan` (which rows when) and `native` (the
reader). Nothing here starts MPI before `init`. examples/own_model.py shows a model and data of one's own.
"""

from engine.environment import prepare_environment

# MPI reads its environment once, when it starts; a script may import mpi4py or Horovod itself after this line.
prepare_environment()

from engine.errors import CheckpointError, TrainingError, UsageError  # noqa: E402
from engine.input import MapStyleSource, ReviewSource  # noqa: E402
from engine.plan import Plan  # noqa: E402
from engine.session import Session, init  # noqa: E402
from engine.trainer import Hooks, Trainer  # noqa: E402
from native.dataset import open_dataset as open  # noqa: A004, E402

__all__ = ["CheckpointError", "Hooks", "MapStyleSource", "Plan", "ReviewSource", "Session", "Trainer", "TrainingError",
           "UsageError", "init", "open"]
