"""Stand-ins for the ranks' clocks and their MPI, so that the engine's own Rebalancer runs on simulated ranks.

Shapes: R ranks, B buckets, S samples, K kinds of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from engine.session import Session
from engine.timing import LOOK_FIELDS


class RankClocks:
    """What engine.timing.RankClock is for one rank, for all ranks at once: the same looks, by arrays.

    Args:
        buckets: their number.
        ranks: their number.
    """

    def __init__(self, buckets: int, ranks: int) -> None:
        self._ranks = ranks
        self._samples: list[list[tuple[int, np.ndarray, np.ndarray]]] = [[] for _ in range(buckets)]
        """per bucket: the kind of the batch, whether each rank had had one of its size before, seconds"""
        self._kinds: list[list[np.ndarray]] = [[] for _ in range(buckets)]
        """per bucket: rows of each rank [R], for every kind of batch that has come so far"""
        self.looks_RB4 = np.zeros((ranks, buckets, LOOK_FIELDS))
        """of the last call of `look`"""
        self.count, self.seconds = 0, 0.0
        """calls of `look`, and what they took on the machine that simulates"""

    def add(self, bucket: int, rows_R: np.ndarray, seconds_R: np.ndarray) -> None:
        """Record a step of all ranks."""
        kinds = self._kinds[bucket]
        kind = next((number for number, known in enumerate(kinds) if np.array_equal(known, rows_R)), len(kinds))
        warm_R = np.ones(self._ranks, dtype=bool)
        if kind == len(kinds):
            warm_R = np.logical_or.reduce([known == rows_R for known in kinds]) if kinds else ~warm_R
            kinds.append(rows_R)
        self._samples[bucket].append((kind, warm_R & (rows_R > 0), seconds_R))

    def look(self) -> np.ndarray:
        """What was timed since the last call, of rank 0; that of all ranks is in `looks_RB4`."""
        began = time.perf_counter()
        self.looks_RB4 = np.zeros_like(self.looks_RB4)
        for bucket, samples in enumerate(self._samples):
            if samples:
                self.looks_RB4[:, bucket] = self._look(samples, self._kinds[bucket])
        self.forget()
        self.count, self.seconds = self.count + 1, self.seconds + time.perf_counter() - began
        mine_B4: np.ndarray = self.looks_RB4[0]
        return mine_B4

    def forget(self) -> None:
        """Shares have changed: what was timed since the last look is of both."""
        for samples in self._samples:
            samples.clear()

    def _look(self, samples: Sequence[tuple[int, np.ndarray, np.ndarray]], kinds: Sequence[np.ndarray]) -> np.ndarray:
        warm_SR = np.stack([warm_R for _, warm_R, _ in samples])
        rows_SR = np.stack([kinds[kind] for kind, _, _ in samples])
        chosen_R = self._commonest(samples, kinds)
        counted_SR = warm_SR & (rows_SR == chosen_R)
        kept_SR = np.sort(np.where(counted_SR, np.stack([seconds_R for *_, seconds_R in samples]), np.inf), axis=0)
        count_R = counted_SR.sum(axis=0)
        count_R -= count_R // 20
        kept_SR = np.where(np.arange(len(samples))[:, None] < count_R, kept_SR, 0.0)
        mean_R = kept_SR.sum(axis=0) / np.maximum(count_R, 1)
        squares_SR = np.where(np.arange(len(samples))[:, None] < count_R, (kept_SR - mean_R) ** 2, 0.0)
        look_R4 = np.stack([count_R, chosen_R, mean_R, squares_SR.sum(axis=0)], axis=1)
        look_R4[count_R == 0] = 0.0
        return look_R4

    def _commonest(
        self, samples: Sequence[tuple[int, np.ndarray, np.ndarray]], kinds: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The rows of the batches that each rank had most often; of equally frequent ones the most rows [R]."""
        present = sorted({kind for kind, _, _ in samples})
        rows_KR = np.stack([kinds[kind] for kind in present])
        count_KR = np.zeros(rows_KR.shape, dtype=np.int64)
        for kind, warm_R, _ in samples:
            count_KR[present.index(kind)] += warm_R
        # Batches of different kinds may be of the same size to a rank.
        pooled_KR = ((rows_KR[:, None] == rows_KR[None]) * count_KR[None]).sum(axis=1)
        best_R = (pooled_KR * (rows_KR.max() + 1) + rows_KR).argmax(axis=0)
        commonest_R: np.ndarray = rows_KR[best_R, np.arange(self._ranks)]
        return commonest_R


class _Done:
    """A request that is fulfilled already."""

    def Test(self) -> bool:
        return True

    def Wait(self) -> None:
        pass


class SimulatedComm:
    """The part of mpi4py's communicator that the Rebalancer uses, on rank 0 of simulated ranks.

    Args:
        clocks: of all ranks; their looks are what is gathered.
    """

    def __init__(self, clocks: RankClocks) -> None:
        self._clocks = clocks
        self.answers: list[Any] = []
        """what every rank gives to the next `gather`"""

    def Dup(self) -> SimulatedComm:
        return self

    def Igather(self, sent: np.ndarray, received: np.ndarray, root: int) -> _Done:
        received[:, :-1] = self._clocks.looks_RB4.reshape(len(received), -1)
        received[:, -1] = sent[-1]
        return _Done()

    def Ibcast(self, values: np.ndarray, root: int) -> _Done:
        return _Done()

    def Bcast(self, values: np.ndarray, root: int) -> None:
        pass

    def gather(self, value: Any, root: int) -> list[Any]:
        return self.answers

    def bcast(self, value: Any, root: int) -> Any:
        return value


def simulated_session(comm: SimulatedComm, ranks: int) -> Session:
    """Rank 0 of so many simulated ranks."""
    return Session(0, ranks, 0, 1, torch.device("cpu"), 1, comm, None)
