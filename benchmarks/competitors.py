"""Other ways to read random batches of rows, each with the format that suits it and set up in its favour.

They may run in another environment than this project's (see benchmarks.reader), so nothing of it is imported here,
and what a method needs is imported inside it. Only h5py_rows_dataloader reads labels as well; ours reads labels
and lengths.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import (
    LENGTH,
    Batches,
    Work,
    method,
    prepared,
    random_batches,
    row_blocks,
    source,
    touch_pages,
    warm,
)


def _kept(work: Work, name: str, package: str, write: Any) -> Path:
    """The method's own files; written anew by another version of its package."""
    recipe = {"seed": work.seed, package: metadata.version(package)}
    folder = prepared(work.folder / name, recipe, work.rows * (2 * LENGTH + 40), write)
    warm(folder)
    return folder


def _one_thread() -> Any:
    import torch

    torch.set_num_threads(1)
    return torch


def _for_ever(batches: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from batches


@method
def numpy_memmap(work: Work) -> Batches:
    """A memory-mapped .npy file, a fancy index per batch."""
    tokens = source(work)
    touch_pages(tokens)
    for rows in random_batches(work):
        yield tokens[rows].astype(np.int64)


class WholeBatches:
    """A torch dataset whose items are whole batches: the batch sampler's lists index a memory map."""

    def __init__(self, tokens: np.ndarray, torch: Any) -> None:
        self.tokens, self.from_numpy = tokens, torch.from_numpy

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: list[int]) -> Any:
        return self.from_numpy(self.tokens[rows].astype(np.int64))


@method
def torch_memmap_dataloader(work: Work) -> Batches:
    """The same map behind torch's DataLoader, which asks for whole batches."""
    torch = _one_thread()
    tools = torch.utils.data
    data = WholeBatches(source(work), torch)
    touch_pages(data.tokens)
    torch.manual_seed(work.seed)
    batches = tools.BatchSampler(tools.RandomSampler(data), work.batch_size, drop_last=True)
    loader = tools.DataLoader(data, sampler=batches, batch_size=None)
    for tokens in _for_ever(loader):
        yield tokens.numpy()


def _hdf5_file(work: Work) -> Path:
    import h5py

    def write(folder: Path) -> None:
        with h5py.File(folder / "rows.h5", "w") as file:
            file.create_dataset("tokens", data=source(work))
            file.create_dataset(
                "stars", data=np.concatenate([stars for _, _, stars in row_blocks(work.rows, work.seed)])
            )

    return _kept(work, "h5py", "h5py", write) / "rows.h5"


@method
def h5py_fancy(work: Work) -> Batches:
    """A contiguous HDF5 dataset, a sorted fancy index per batch (h5py takes no other)."""
    import h5py

    with h5py.File(_hdf5_file(work), "r") as file:
        tokens = file["tokens"]
        for rows in random_batches(work):
            yield tokens[np.sort(rows)].astype(np.int64)


class HDF5Rows:
    """A torch dataset whose items are single HDF5 rows: the HDF5 dataset is at hand."""

    def __init__(self, file: Any, torch: Any) -> None:
        self.file, self.tokens, self.from_numpy = file, file["tokens"], torch.from_numpy

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> Any:
        return self.from_numpy(self.tokens[row].astype(np.int64))


class HDF5RowsByName(HDF5Rows):
    """The same as it is often written: each item looks its HDF5 datasets up by name, and reads the label too."""

    def __getitem__(self, row: int) -> Any:
        return self.from_numpy(self.file["tokens"][row].astype(np.int64)), int(self.file["stars"][row])


def _row_by_row(work: Work, kind: type[HDF5Rows]) -> Iterator[Any]:
    import h5py

    torch = _one_thread()
    torch.manual_seed(work.seed)
    with h5py.File(_hdf5_file(work), "r") as file:
        data = kind(file, torch)
        loader = torch.utils.data.DataLoader(data, batch_size=work.batch_size, shuffle=True, drop_last=True)
        yield from _for_ever(loader)


@method
def h5py_rows_held_dataloader(work: Work) -> Batches:
    """The same HDF5 dataset row by row in torch's DataLoader, the dataset object kept, tokens alone."""
    for tokens in _row_by_row(work, HDF5Rows):
        yield tokens.numpy()


@method
def h5py_rows_dataloader(work: Work) -> Batches:
    """Row by row as the project began: text and label looked up by name for every row."""
    for tokens, _ in _row_by_row(work, HDF5RowsByName):
        yield tokens.numpy()


def _hf_dataset(work: Work) -> Any:
    # No look at the network when it is imported, nothing written outside the work folder.
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=str(work.folder / "hf_home"))
    import datasets
    import pyarrow

    datasets.disable_progress_bars()

    def write(folder: Path) -> None:
        values = pyarrow.array(np.ascontiguousarray(source(work)).reshape(-1))
        table = pyarrow.table({"tokens": pyarrow.FixedSizeListArray.from_arrays(values, LENGTH)})
        datasets.Dataset(table).save_to_disk(folder)

    data = datasets.load_from_disk(str(_kept(work, "hf_datasets", "datasets", write)))
    for chunk in data.data.column("tokens").chunks:
        touch_pages(np.asarray(chunk.flatten()))
    return data


@method
def hf_datasets(work: Work) -> Batches:
    """Hugging Face datasets: fixed-length lists on disk, a list of random rows per batch, numpy format."""
    data = _hf_dataset(work).with_format("numpy")
    for rows in random_batches(work):
        yield data[rows]["tokens"].astype(np.int64, copy=False)


@method
def hf_datasets_dataloader(work: Work) -> Batches:
    """The same behind torch's DataLoader, as its documentation shows it."""
    torch = _one_thread()
    torch.manual_seed(work.seed)
    data = _hf_dataset(work).with_format("torch")
    loader = torch.utils.data.DataLoader(data, batch_size=work.batch_size, shuffle=True, drop_last=True)
    for batch in _for_ever(loader):
        yield batch["tokens"].to(torch.int64).numpy()


@method
def mosaicml_streaming(work: Work) -> Batches:
    """MosaicML Streaming: local shards, its own shuffle; the samples are gathered into a batch by hand."""
    _one_thread()
    import streaming
    from streaming.base.util import clean_stale_shared_memory

    def write(folder: Path) -> None:
        with streaming.MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{LENGTH}"}) as writer:
            for row in source(work):
                writer.write({"tokens": np.asarray(row)})

    folder = _kept(work, "mosaicml_streaming", "mosaicml-streaming", write)
    clean_stale_shared_memory()  # of a run that was killed: it would refuse to start
    data = streaming.StreamingDataset(
        local=str(folder), shuffle=True, shuffle_seed=work.seed, batch_size=work.batch_size
    )
    samples = _for_ever(data)
    batch = np.empty((work.batch_size, LENGTH), np.int64)
    while True:
        for place in range(work.batch_size):
            batch[place] = next(samples)["tokens"]
        yield batch


class FFCVRows:
    """What FFCV's writer takes: items are tuples with one value per field."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> tuple[np.ndarray]:
        return (self.tokens[row],)


@method
def ffcv(work: Work) -> Batches:
    """FFCV: 16-bit fields, random order, decoded and widened by its compiled pipeline, one worker thread."""
    torch = _one_thread()
    from ffcv.fields import NDArrayField
    from ffcv.fields.decoders import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Convert, ToTensor
    from ffcv.writer import DatasetWriter

    def write(folder: Path) -> None:
        # The ids fit into signed 16 bits, which torch widens faster than unsigned ones.
        field = NDArrayField(np.dtype(np.int16), (LENGTH,))
        writer = DatasetWriter(str(folder / "rows.beton"), {"tokens": field}, num_workers=1)
        writer.from_indexed_dataset(FFCVRows(source(work).view(np.int16)), chunksize=1000)

    loader = Loader(
        str(_kept(work, "ffcv", "ffcv", write) / "rows.beton"),
        batch_size=work.batch_size,
        num_workers=1,
        os_cache=True,
        order=OrderOption.RANDOM,
        seed=work.seed,
        drop_last=True,
        pipelines={"tokens": [NDArrayDecoder(), ToTensor(), Convert(torch.int64)]},
    )
    for _ in loader:  # compiles the pipeline and maps every page
        pass
    for (tokens,) in _for_ever(loader):
        yield tokens.numpy()
