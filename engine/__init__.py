"""Data-parallel training for GPUs that are not all alike: uneven shares of each global batch, exact gradients.

    import engine
    session = engine.init()                                          # Horovod + MPI, device, agreement checks
    data    = engine.open(DATA, split="train")
    plan    = engine.Plan(layout=data.layout, batch_size=1024, seed=7)
    trainer = engine.Trainer(model, loss, optimizer, plan, session)
    trainer.fit(data, epochs=3)

The parts work alone too: `engine.balance` (timings to shares), `engine.shares` (costs to shares), `engine.Plan` (which
rows when) and `native` (the reader). Nothing here starts MPI before `init`. examples/own_model.py shows a model and
data of one's own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.environment import prepare_environment, require_packages

require_packages()
# MPI reads its environment once, when it starts; a script may import mpi4py or Horovod itself after this line.
prepare_environment()

if TYPE_CHECKING:
    from engine.errors import CheckpointError, RankError, TrainingError, UsageError
    from engine.input import MapStyleSource, ReviewSource
    from engine.plan import Plan
    from engine.progress import Hooks
    from engine.session import Session, init
    from engine.trainer import Trainer
    from native.dataset import Dataset
    from native.dataset import open_dataset as open
    from native.format import DatasetError

__all__ = [
    "CheckpointError",
    "Dataset",
    "DatasetError",
    "Hooks",
    "MapStyleSource",
    "Plan",
    "RankError",
    "ReviewSource",
    "Session",
    "Trainer",
    "TrainingError",
    "UsageError",
    "init",
    "open",
]

# Imported when first asked for: `python -m engine.doctor` must answer where torch or Horovod is missing or broken.
_HOMES = {
    "engine.errors": ("CheckpointError", "RankError", "TrainingError", "UsageError"),
    "engine.input": ("MapStyleSource", "ReviewSource"),
    "engine.plan": ("Plan",),
    "engine.session": ("Session", "init"),
    "engine.progress": ("Hooks",),
    "engine.trainer": ("Trainer",),
    "native.dataset": ("Dataset", "open"),
    "native.format": ("DatasetError",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), "open_dataset" if name == "open" else name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
