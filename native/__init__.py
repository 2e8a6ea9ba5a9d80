"""The data path below the engine: dataset format, chunk reader, computed shuffle and text pipeline.

Useful alone, without Horovod, MPI or torch::

    import native
    data = native.open_dataset("data", split="train")
    batch = data.read(range(64))            # Batch(tokens [64, L] int32, lengths [64], stars [64])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from native.batch import Batch
    from native.dataset import Dataset, open_dataset
    from native.format import BucketShape, DatasetError, read_manifest
    from native.writer import DatasetWriter

__all__ = [
    "Batch",
    "BucketShape",
    "Dataset",
    "DatasetError",
    "DatasetWriter",
    "open_dataset",
    "read_manifest",
    "sources_digest",
]

# Imported when first asked for: preprocessing tasks need the text pipeline alone, not HDF5 and the compiled reader.
_HOMES = {
    "native.batch": ("Batch",),
    "native.dataset": ("Dataset", "open_dataset"),
    "native.format": ("BucketShape", "DatasetError", "read_manifest"),
    "native.writer": ("DatasetWriter",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def sources_digest() -> str:
    """What the native modules were compiled from: hosts that were set up at different times may differ."""
    try:
        return str(import_module("native._sources").DIGEST)
    except ImportError:
        return "not known"
