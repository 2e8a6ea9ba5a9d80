"""The data path below the engine: dataset format, chunk reader, computed shuffle and text pipeline.

Useful alone, without Horovod, MPI or torch::

    import native
    data = native.open_dataset("data", split="train")
    batch = data.read(range(64))            # Batch(tokens [64, L] int32, lengths [64], stars [64])
"""

from native.dataset import Batch, Dataset, open_dataset
from native.format import BucketShape, DatasetError, read_manifest
from native.writer import DatasetWriter

__all__ = ["Batch", "BucketShape", "Dataset", "DatasetError", "DatasetWriter", "open_dataset", "read_manifest"]
