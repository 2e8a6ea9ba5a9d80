"""mrjob's local runner with what it does line by line, or copies, done otherwise; the jobs see no difference."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mrjob.local import LocalMRJobRunner, _pickle_safe

from mr.parts import Parts, Sorted, part_of
from mr.pool import run_tasks
from mr.slices import Slices, cut
from mr.sorting import BUFFER

REDUCERS_A_CORE = 2
"""so that one that ends early leaves no core idle for long"""
LEAST_MAPPER_BYTES = 256 << 10
"""of input; a task costs as much as some of them, whatever it has to do"""
LEAST_PART_BYTES = 16 << 10
"""of a mapper's output for one reducer, about: there are mappers times reducers such files"""


class ForkingRunner(LocalMRJobRunner):
    """mrjob's local runner, but its processes run the tasks themselves.

    The original starts an interpreter for each task, which spends most of a small run on importing the same modules
    again; here the processes of its pool are forks of the driver and have them. The original copies the input of each
    task line by line in one process, and sorts what all mappers wrote in another; here a task reads its ranges of the
    files, a mapper puts records by their keys' hashes, and each reducer sorts its own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inputs: dict[tuple[str, int, int], Slices | Sorted] = {}
        self._mappers = self._reducers = 0

    @classmethod
    def _default_opts(cls) -> Any:
        return {**super()._default_opts(), "sort_bin": ["sort", "-S", BUFFER]}

    def _invoke_task_func(self, task_type: str, step_num: int, task_num: int) -> Any:
        parts: list[Path] = []
        if task_type == "mapper":
            path = self._task_output_path("mapper", step_num, task_num)
            parts = [part_of(path, part) for part in range(self._reducers)]
        source = self._inputs[task_type, step_num, task_num]
        return partial(_run_task, self.job_class, self._args_for_task(step_num, task_type), source, parts)

    def _split_mapper_input(self, input_paths: Iterable[str], step_num: int) -> list[dict[str, Any]]:
        paths = [Path(path) for path in input_paths]
        size = sum(path.stat().st_size for path in paths)
        pieces = cut(
            paths, _bounded(self._num_mappers(step_num) * self.job_class.MAPPERS_A_CORE, size, LEAST_MAPPER_BYTES)
        )
        self._reducers = _bounded(self._num_reducers(step_num) * REDUCERS_A_CORE, size // len(pieces), LEAST_PART_BYTES)
        for task, piece in enumerate(pieces):
            self._inputs["mapper", step_num, task] = Slices(piece)
            self._make_input("mapper", step_num, task)
        # What a task is told of its input; nothing here asks for it.
        return [{"file": str(piece[0][0]) if piece else "", "start": 0, "length": 0} for piece in pieces]

    def _sort_reducer_input(self, step_num: int, num_map_tasks: int) -> None:
        """Not here: each reducer sorts what is its own."""
        self._mappers = num_map_tasks

    def _split_reducer_input(self, step_num: int) -> int:
        mapped = [self._task_output_path("mapper", step_num, task) for task in range(self._mappers)]
        for part in range(self._reducers):
            self._inputs["reducer", step_num, part] = Sorted([part_of(path, part) for path in mapped], self._sort_bin())
            self._make_input("reducer", step_num, part)
        return self._reducers

    def _make_input(self, task_type: str, step_num: int, task: int) -> None:
        path = Path(self._task_input_path(task_type, step_num, task))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # mrjob opens it

    def _run_multiple(self, funcs: Iterable[Callable[[], Any]], num_processes: int | None = None) -> None:
        """Run tasks in processes; the first error ends the others."""
        for _ in run_tasks([partial(_pickle_safe, func) for func in funcs], self._opts["num_cores"]):
            pass


class InlineRunner(ForkingRunner):
    """All tasks in this process, one after the other. mrjob's own inline runner sorts in memory, however much it is."""

    alias = "inline"

    @classmethod
    def _default_opts(cls) -> Any:
        return {**super()._default_opts(), "num_cores": 1}

    def _run_multiple(self, funcs: Iterable[Callable[[], Any]], num_processes: int | None = None) -> None:
        folder, environment = Path.cwd(), dict(os.environ)
        for func in funcs:
            try:
                func()
            finally:
                os.chdir(folder)
                os.environ.clear()
                os.environ.update(environment)


def _bounded(tasks: int, size: int, least: int) -> int:
    """So many tasks, or as many as have that many bytes each; one at least."""
    return max(1, min(tasks, size // least))


def _run_task(
    job_class: type[Any],
    args: list[str],
    source: Slices | Sorted,
    parts: Sequence[Path],
    _: BinaryIO,
    stdout: BinaryIO,
    stderr: BinaryIO,
    folder: str,
    environment: Mapping[str, str],
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    task = job_class(args)
    with source.open(stderr) as stdin, Parts(parts) if parts else nullcontext(stdout) as target:
        task.sandbox(stdin, target, stderr)
        try:
            if task.options.run_reducer and job_class.REDUCER_ONLY_SORTS:
                stdout.writelines(task.stdin)
            else:
                task.execute()
        except BaseException:
            stderr.write(traceback.format_exc().encode())
            raise
