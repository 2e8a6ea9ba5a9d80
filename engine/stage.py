"""Node-local copies: the dataset is copied once per node to a disk of its own, and read from there (--stage-dir)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.bytes_shown import in_words
from engine.errors import UsageError
from engine.node_copy import Copy, NodeCopy
from engine.session import Session
from native.format import DatasetError

_POLL_SECONDS = 0.02
"""between two looks at whether the other nodes are done, which may take minutes"""


@dataclass(frozen=True)
class _Place:
    """The folder for copies as one rank sees it; ranks of one node see the same one."""

    host: str
    folder: str
    """empty: this rank was given none"""
    device: int = 0
    inode: int = 0
    problem: str = ""
    """why it cannot be used"""


@dataclass(frozen=True)
class _Result:
    """What the rank that copies for its node has reached."""

    copy: Copy | None = None
    problem: str = ""
    """why there is no copy"""
    damage: str = ""
    """what is wrong with the original"""


def stage(data: Path, stage_dir: Path | None, session: Session, say: Callable[[str], None]) -> Path:
    """Copy a dataset to this node, or find the copy that is there. Collective.

    One rank of each node copies, the others sleep. Copied are the train and validation splits, each file verified by
    its digest while it is read; a copy that is there already is verified as a whole before it is used. Where there can
    be no copy, the ranks of that node are given the original, with a warning.

    Args:
        data: the dataset's folder.
        stage_dir: folder on a disk of the node's own; made when missing. None: there is to be no copy.
        session: the ranks.
        say: takes lines for people; those of rank 0 are to be shown.

    Returns:
        The folder from which this rank reads train and validation.

    Raises:
        UsageError: on every rank: the original is damaged or is none, or only some ranks were given a stage_dir.
    """
    place = _see(stage_dir)
    places: list[_Place] = session.comm.allgather(place)
    with_folder = [bool(other.folder) for other in places]
    if not any(with_folder):
        return data
    if not all(with_folder):
        raise UsageError(
            f"--stage-dir: rank {with_folder.index(True)} was given one, rank {with_folder.index(False)} none; give it "
            "to all ranks or to none"
        )
    leader = places.index(place)
    result = _copy(data, place, session, say) if session.rank == leader else None
    _sleep_until_all_are_here(session.comm)
    results: list[_Result | None] = session.comm.allgather(result)
    _refuse_damage(places, results)
    if session.root:
        _tell(data, places, results, say)
    mine = results[leader]
    return mine.copy.path if mine and mine.copy else data


def _see(stage_dir: Path | None) -> _Place:
    host = socket.gethostname()
    if stage_dir is None:
        return _Place(host, "")
    try:
        stage_dir.mkdir(parents=True, exist_ok=True)
        found = stage_dir.stat()
    except OSError as error:
        return _Place(host, str(stage_dir), problem=_in_words(error))
    # Containers may share a host's name without its disk: then they count as nodes of their own.
    return _Place(host, str(stage_dir), found.st_dev, found.st_ino)


def _copy(data: Path, place: _Place, session: Session, say: Callable[[str], None]) -> _Result:
    if place.problem:
        return _Result(problem=place.problem)
    try:
        return _Result(NodeCopy(data, Path(place.folder), say, shown=session.root).make())
    except DatasetError as error:
        return _Result(damage=str(error))
    except OSError as error:
        return _Result(problem=_in_words(error))


def _in_words(error: OSError) -> str:
    return ": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error)


def _sleep_until_all_are_here(comm: Any) -> None:
    # A blocking barrier would spin for as long as the slowest node copies.
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(_POLL_SECONDS)


def _refuse_damage(places: Sequence[_Place], results: Sequence[_Result | None]) -> None:
    """All ranks know all results, so that all raise or none."""
    made = [(place.host, result) for place, result in zip(places, results, strict=True) if result is not None]
    damaged = [(host, result.damage) for host, result in made if result.damage]
    if damaged:
        host, damage = damaged[0]
        raise UsageError(damage if len(damaged) == len(made) else f"{host}: {damage}")


def _tell(data: Path, places: Sequence[_Place], results: Sequence[_Result | None], say: Callable[[str], None]) -> None:
    copied: list[Copy] = []
    reused = 0
    for place, result in zip(places, results, strict=True):
        if result is None:
            continue
        if result.copy is None:
            say(
                f"warning: {place.host}: no copy of {data} in {place.folder} ({result.problem}); its ranks read the "
                "original"
            )
        elif result.copy.copied:
            copied.append(result.copy)
        elif result.copy.path != data:
            reused += 1
    if copied:
        seconds = max(copy.seconds for copy in copied)
        size = in_words(copied[0].copied)
        say(f"{data}: copied and verified on {_hosts(len(copied))}, {size} in {seconds:.1f} s")
    if reused:
        say(f"{data}: the copy of an earlier job was verified and is used on {_hosts(reused)}")


def _hosts(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"
