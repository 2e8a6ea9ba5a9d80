"""Batches read ahead by the native thread: what they hold, what they cost, how they end."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import native
from engine.balance import proportional_shares
from engine.plan import Plan
from native import DatasetError
from native.batch import BatchBuffer
from native.order import BatchOrder
from native.parts import Parts
from native.stream import BatchStream
from tests.synthetic import write_dataset


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data")
    return tmp_path / "data"


def threads() -> int:
    return sum(thread.name == "batch-producer" for thread in threading.enumerate())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 300),
    window=st.sampled_from([1, 3000, 1 << 28]),
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
    compress=st.booleans(),
    words=st.sampled_from([60, 70_000]),
    shuffle=st.booleans(),
    data=st.data(),
)
def test_a_stream_is_the_plan_read_row_by_row(
    tmp_path_factory, batch_size, window, weights, compress, words, shuffle, data
):
    folder = tmp_path_factory.mktemp("data") / "data"
    content = write_dataset(folder, compress=compress, words=words)["train"]
    shares, rank = proportional_shares(weights, batch_size), data.draw(st.integers(0, len(weights) - 1))
    with native.open_dataset(folder) as opened:
        plan = Plan(layout=opened.layout, batch_size=batch_size, seed=3, window_bytes=window, shuffle=shuffle)
        start = data.draw(st.integers(0, plan.steps_per_epoch - 1))
        stream = opened.batches(plan, epochs=2, epoch=1, step=start, rank=rank, shares=shares)
        for epoch, first in ((1, start), (2, 0)):
            for whole in plan.epoch(epoch, first):
                batch = next(stream)
                rows = plan.local_rows(epoch, whole, shares, rank)
                for found, column in zip(
                    (batch.tokens, batch.lengths, batch.stars), content[whole.bucket], strict=True
                ):
                    assert np.array_equal(found, column[rows])
        assert next(stream, None) is None


def test_shares_may_change_from_one_batch_to_the_next(folder):
    with native.open_dataset(folder) as data:
        plan = Plan(layout=data.layout, batch_size=40, seed=3)
        with BatchStream(data, plan, 1) as stream:
            parts = [(0, 40), (10, 10), (39, 40), (0, 1), (5, 25)]
            for step, part in enumerate(parts[:3]):
                stream.submit(0, step, *part)
            for step, (begin, end) in enumerate(parts):
                taken = stream.take()
                whole = plan.batch(0, step)
                assert (taken.bucket, taken.number, taken.whole_rows) == (whole.bucket, whole.number, whole.rows)
                rows = plan.rows(0, whole)[begin * whole.rows // 40 : end * whole.rows // 40]
                assert np.array_equal(taken.batch.tokens, data.read_bucket(whole.bucket, rows).tokens)
                if step + 3 < len(parts):
                    stream.submit(0, step + 3, *parts[step + 3])


def test_wrong_use_is_told(folder):
    with native.open_dataset(folder) as data:
        plan = Plan(layout=data.layout, batch_size=40, seed=3)
        with BatchStream(data, plan, 1) as stream:
            with pytest.raises(ValueError, match="no batch was submitted"):
                stream.take()
            for place in [(0, plan.steps_per_epoch, 0, 40), (0, -1, 0, 40), (0, 0, 0, 41), (0, 0, 9, 8)]:
                with pytest.raises(IndexError):
                    stream.submit(*place)
            for step in range(stream.ahead + 2):
                stream.submit(0, step, 0, 40)
            with pytest.raises(ValueError, match="full"):
                stream.submit(0, 20, 0, 40)
        with pytest.raises(ValueError, match="other data"):
            BatchStream(data, Plan(rows=100, batch_size=4, seed=1), 1)
        with (
            BatchStream(data, plan, 1, [BatchBuffer(8, 16)] * 3) as small,
            pytest.raises(ValueError, match="does not fit"),
        ):
            small.submit(0, 0, 0, 40)
        for shares, rank in [((20, 19), 0), ((20, 20), 2), ((41, -1), 0)]:
            with pytest.raises(ValueError, match="do not make the batch"):
                data.batches(plan, shares=shares, rank=rank)


def test_a_damaged_chunk_stops_the_batch_that_needs_it_and_no_other(folder):
    path = folder / "train/part-00000.h5"
    with h5py.File(path) as file:
        info = file["0008"]["tokens"].id.get_chunk_info(3)
    whole = bytearray(path.read_bytes())
    whole[info.byte_offset + info.size // 2] ^= 4
    path.write_bytes(whole)
    with native.open_dataset(folder) as data:
        plan = Plan(layout=data.layout, batch_size=16, seed=3)
        with BatchStream(data, plan, 1) as stream:
            failed = 0
            for step in range(plan.steps_per_epoch):
                bucket, rows = plan.batch(0, step).bucket, plan.rows(0, plan.batch(0, step))
                stream.submit(0, step, 0, 16)
                if bucket == 0 and 3 in rows // 64:
                    failed += 1
                    with pytest.raises(DatasetError, match=r"part-00000.h5: /0008/tokens, chunk 3: its stored bytes"):
                        stream.take()
                else:
                    assert len(stream.take().batch) == len(rows)
            assert 3 < failed < plan.steps_per_epoch


def test_what_only_libhdf5_reads_comes_through_the_stream_too(folder, monkeypatch):
    monkeypatch.setattr("native.parts.load_codecs", lambda: None)
    with pytest.warns(RuntimeWarning, match="h5py"):
        data = native.open_dataset(folder)
    plan = Plan(layout=data.layout, batch_size=100, seed=3)
    assert sum(len(batch) for batch in data.batches(plan)) == len(data)
    monkeypatch.setattr(data.parts, "read_through_h5py", lambda bucket, chunk: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(data.batches(plan))
    data.close()


def test_a_waiting_trainer_can_be_interrupted(folder, monkeypatch):
    monkeypatch.setattr("native.parts.load_codecs", lambda: None)
    reading, end, answered = threading.Event(), threading.Event(), threading.Event()

    def stuck(self, bucket, chunk):
        reading.set()
        end.wait(60)
        answered.set()
        raise OSError("the disk does not answer")

    with pytest.warns(RuntimeWarning):
        data = native.open_dataset(folder)
    monkeypatch.setattr(Parts, "read_through_h5py", stuck)
    plan = Plan(layout=data.layout, batch_size=10, seed=3)

    def interrupt() -> None:
        reading.wait(60)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Thread(target=interrupt)
    timer.start()
    with BatchStream(data, plan, 1) as stream:
        stream.submit(0, 0, 0, 10)
        with pytest.raises(KeyboardInterrupt):
            stream.take()
        assert not answered.is_set()
        end.set()
    timer.join()


def test_an_interrupted_wait_loses_no_batch(folder, monkeypatch):
    monkeypatch.setattr("native.parts.load_codecs", lambda: None)
    slow = threading.Event()
    real = Parts.read_through_h5py

    def slowly(self, bucket, chunk):
        slow.wait(0.3)
        return real(self, bucket, chunk)

    def alarm(*_: object) -> None:
        raise TimeoutError

    with pytest.warns(RuntimeWarning):
        data = native.open_dataset(folder)
    monkeypatch.setattr(Parts, "read_through_h5py", slowly)
    before = signal.signal(signal.SIGALRM, alarm)
    with data, BatchStream(data, plan := Plan(layout=data.layout, batch_size=10, seed=3), 1) as stream:
        for step in range(3):
            stream.submit(0, step, 0, 10)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(TimeoutError):
            stream.take()
        slow.set()
        assert stream.waiting == 3
        for step in range(3):
            assert stream.take()[:2] == plan.order.batch(0, step)[:2]
    signal.signal(signal.SIGALRM, before)


def test_an_interrupt_inside_libhdf5_is_no_batch(folder, monkeypatch):
    monkeypatch.setattr("native.parts.load_codecs", lambda: None)
    with pytest.warns(RuntimeWarning):
        data = native.open_dataset(folder)
    expected = data.read_bucket(0, np.array([300])).tokens
    real, pressed = Parts.read_through_h5py, []

    def interrupted(self, bucket, chunk):
        if not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        return real(self, bucket, chunk)

    monkeypatch.setattr(Parts, "read_through_h5py", interrupted)
    with pytest.warns(RuntimeWarning):
        other = native.open_dataset(folder)
    with other:
        with pytest.raises(KeyboardInterrupt):
            other.read_bucket(0, np.array([300]))
        assert np.array_equal(other.read_bucket(0, np.array([300])).tokens, expected)


def test_a_stream_forgotten_while_h5py_is_locked_waits_for_nothing(folder, monkeypatch):
    monkeypatch.setattr("native.parts.load_codecs", lambda: None)
    with pytest.warns(RuntimeWarning):
        data = native.open_dataset(folder)
    stream = BatchStream(data, Plan(layout=data.layout, batch_size=10, seed=3), 1)
    stream.submit(0, 0, 0, 10)
    with h5py._objects.phil:  # as when the collector runs in the middle of h5py
        del stream
        gc.collect()
    data.close()


def test_an_order_for_other_rows_is_refused(folder):
    class Wrong(Plan):
        def make_order(self) -> BatchOrder:
            return BatchOrder(rows=[9000, 5], chunk_rows=[64] * 2, windows=[99] * 2, batch_size=40, seed=1)

    with native.open_dataset(folder) as data:
        with pytest.raises(ValueError, match="the order was made for 9000 rows in bucket 0"):
            BatchStream(data, Wrong(layout=data.layout, batch_size=40, seed=3), 1)
        with pytest.raises(ValueError, match="at least 3 buffers"):
            BatchStream(data, Plan(layout=data.layout, batch_size=40, seed=3), 1, [BatchBuffer(40, 16)] * 2)
    with pytest.raises(DatasetError, match="closed"):
        data.read_bucket(0, np.arange(3))


def test_forgotten_datasets_close_their_files(folder):
    files = psutil.Process().num_fds()
    for _ in range(20):
        data = native.open_dataset(folder)
        assert len(next(data.batches(Plan(layout=data.layout, batch_size=10, seed=3)))) == 10
        data.read([0])
        del data
    until = time.monotonic() + 60  # a stream's thread ends a moment later
    while psutil.Process().num_fds() > files and time.monotonic() < until:
        time.sleep(0.01)
    assert psutil.Process().num_fds() == files


def test_streams_end_with_what_they_belong_to(folder):
    data = native.open_dataset(folder)
    plan = Plan(layout=data.layout, batch_size=10, seed=3)
    assert threads() == 0
    for batch in data.batches(plan):
        assert len(batch) == 10
        break  # the rest is never asked for
    gc.collect()
    assert threads() == 0
    forgotten = BatchStream(data, plan, 1)
    forgotten.submit(0, 0, 0, 10)
    assert threads() == 1
    del forgotten
    until = time.monotonic() + 60  # it is told to end, and nobody waits for it
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert threads() == 0
    one, other = BatchStream(data, plan, 1), BatchStream(data, plan, 1)
    one.submit(0, 0, 0, 10)
    other.submit(0, 0, 0, 10)
    one.close()
    one.close()
    with pytest.raises(ValueError, match="the stream is closed"):
        one.take()
    assert len(other.take().batch) == 10
    data.close()
    assert threads() == 0
    for use in (lambda: other.submit(0, 1, 0, 10), other.take):
        with pytest.raises(DatasetError, match="closed"):
            use()
    with pytest.raises(DatasetError, match="closed"):
        BatchStream(data, plan, 1)


def test_a_forked_child_goes_on_by_itself(folder):
    with native.open_dataset(folder) as data:
        plan = Plan(layout=data.layout, batch_size=50, seed=3)
        stream = data.batches(plan, epochs=3)
        expected = [batch.tokens.copy() for batch in data.batches(plan, epochs=3)]
        for tokens in expected[:4]:
            assert np.array_equal(next(stream).tokens, tokens)
        child = os.fork()
        if child == 0:  # no assertion may leave this process by another way than its exit status
            same = all(np.array_equal(next(stream).tokens, tokens) for tokens in expected[4:])
            rows = np.array_equal(data.read(range(5)).tokens[:, :8], data.read_bucket(0, np.arange(5)).tokens)
            stream.close()
            os._exit(0 if same and rows and threads() == 0 else 1)
        for tokens in expected[4:]:  # the parent is not disturbed
            assert np.array_equal(next(stream).tokens, tokens)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def decoded(folder: Path, plan_options: dict, shares: tuple[int, ...], rank: int, epochs: int) -> tuple[int, int]:
    """Bytes that a rank decodes, and the most that it holds at any time."""
    with native.open_dataset(folder) as data:
        plan = Plan(layout=data.layout, seed=3, **plan_options)
        begin, end, held = sum(shares[:rank]), sum(shares[: rank + 1]), 0
        with BatchStream(data, plan, epochs) as stream:
            for epoch in range(epochs):
                for step in range(plan.steps_per_epoch):
                    stream.submit(epoch, step, begin, end)
                    stream.take()
                    held = max(held, stream.resident_bytes)
            return stream.bytes_decoded, held


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Two buckets of 400 and 200 chunks of 64 rows."""
    folder = tmp_path_factory.mktemp("large") / "data"
    write_dataset(folder, bounds=(16, 32), rows={"train": (25_600, 12_800)}, words=200)
    return folder


CHUNK_BYTES = 64 * 16 * 2  # of the first bucket; the second one's are twice as large, and half as many


@pytest.mark.parametrize("shares", [(64,) * 8, (160, 32, 64, 32, 64, 64, 32, 64)])
def test_eight_ranks_decode_little_more_than_their_part(large, shares):
    options = {"batch_size": 512, "window_bytes": 256 * CHUNK_BYTES}
    total = 800 * CHUNK_BYTES
    for rank, share in enumerate(shares):
        found, _ = decoded(large, options, shares, rank, epochs=1)
        assert found <= (1.5 if share >= 64 else 1.7) * total * share / 512


def test_a_chunk_is_decoded_once_an_epoch_within_two_windows_of_memory(large):
    window_bytes = 100 * CHUNK_BYTES
    found, held = decoded(large, {"batch_size": 64, "window_bytes": window_bytes}, (64,), 0, epochs=2)
    # at most once an epoch; a few that the first epoch ended with are still there when the second one begins
    assert 1.6 * 800 * CHUNK_BYTES <= found <= 2 * 800 * CHUNK_BYTES
    # beside the tokens: lengths and stars, a header, a chunk at either border
    assert held <= 1.3 * 2 * window_bytes
    found, held = decoded(large, {"batch_size": 64, "window_bytes": 1 << 30}, (64,), 0, epochs=3)
    assert found == 800 * CHUNK_BYTES  # what fits the window whole stays decoded


def test_the_next_window_is_decoded_before_it_is_asked_for(large):
    with native.open_dataset(large) as data:
        plan = Plan(layout=data.layout, batch_size=64, seed=3, window_bytes=100 * CHUNK_BYTES)
        with BatchStream(data, plan, 1) as stream:
            stream.submit(0, 0, 0, 64)
            bucket = stream.take().bucket
            used = len(np.unique(plan.rows(0, plan.batch(0, 0)) // 64))
            until = time.monotonic() + 60
            while stream.chunks_decoded < used + plan.windows[bucket] and time.monotonic() < until:
                time.sleep(0.01)
            assert stream.chunks_decoded == used + plan.windows[bucket]  # the batch's, and all of the next window


def test_a_million_batches_leak_nothing(folder):
    process = psutil.Process()
    with native.open_dataset(folder) as data:
        plan = Plan(layout=data.layout, batch_size=4, seed=3)
        epochs = 1_000_000 // plan.steps_per_epoch
        batches = data.batches(plan, epochs=epochs)
        for count, _ in enumerate(batches):
            if count == 100_000:
                gc.collect()
                before, files = process.memory_info().rss, process.num_fds()
        assert count > 990_000
        gc.collect()
        assert process.memory_info().rss - before < 4 << 20
        assert process.num_fds() == files
