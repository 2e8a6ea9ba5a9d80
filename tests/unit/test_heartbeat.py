"""Ranks that fall silent or end are noticed, and all others end; what ends as it should is nobody's loss."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine import heartbeat
from engine.heartbeat import Heartbeat, _Peer, connect

PATIENCE = 20.0

# "Ending a process" ends its thread here.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Ranks:
    """Heartbeats of several ranks in one process; "ending" one ends its thread."""

    def __init__(self, size: int, timeout: float, silent: tuple[int, ...] = ()) -> None:
        self.ended = [threading.Event() for _ in range(size)]
        pairs = {rank: socket.socketpair() for rank in range(1, size)}
        self.loose = {rank: pairs[rank][1] for rank in silent}
        hosts = [f"host{rank}" for rank in range(size)]
        now = time.monotonic()
        self.beats = {0: Heartbeat(0, hosts, timeout, [_Peer(r, a, now) for r, (a, _) in pairs.items()], self.end(0))}
        for rank, (_, other) in pairs.items():
            if rank not in silent:
                self.beats[rank] = Heartbeat(rank, hosts, timeout, [_Peer(0, other, now)], self.end(rank))

    def end(self, rank: int) -> Any:
        def leave() -> None:
            self.ended[rank].set()
            raise SystemExit

        return leave

    def close(self) -> None:
        for beat in self.beats.values():
            beat.close()


@pytest.fixture
def ranks() -> Iterator[Any]:
    made: list[Ranks] = []

    def make(*arguments: Any, **options: Any) -> Ranks:
        made.append(Ranks(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_ranks_that_live_are_left_alone(ranks):
    group = ranks(3, 0.6)
    time.sleep(1.5)
    assert not any(event.is_set() for event in group.ended)


def test_a_silent_rank_is_named_and_all_others_end(ranks, capfd):
    group = ranks(3, 0.6, silent=(2,))
    assert group.ended[0].wait(PATIENCE)
    assert group.ended[1].wait(PATIENCE)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "rank 2 on host2 was not heard of for 0.6 s" in lines[0]
    assert "goes on from the last checkpoint" in lines[0]


def test_a_rank_whose_connection_ends_without_a_farewell_is_lost_at_once(ranks, capfd):
    group = ranks(3, 60.0, silent=(1,))
    group.loose[1].close()
    assert group.ended[0].wait(PATIENCE)
    assert group.ended[2].wait(PATIENCE)
    assert "rank 1 on host1 has ended without a word" in capfd.readouterr().err


def test_rank_0_is_watched_by_the_others(ranks, capfd):
    group = ranks(3, 60.0)
    for peer in group.beats[0].peers:
        peer.socket.shutdown(socket.SHUT_RDWR)
    assert group.ended[1].wait(PATIENCE)
    assert group.ended[2].wait(PATIENCE)
    assert "rank 0 on host0 has ended without a word" in capfd.readouterr().err


def test_a_farewell_is_no_loss(ranks, capfd):
    group = ranks(3, 0.6, silent=(2,))
    group.loose[2].send(b"q")
    group.loose[2].close()
    group.beats[1].close()
    time.sleep(1.5)
    assert not any(event.is_set() for event in group.ended)
    assert not capfd.readouterr().err


def test_a_rank_that_has_said_why_it_fails_is_not_spoken_for(ranks, capfd):
    group = ranks(3, 60.0, silent=(1,))
    group.loose[1].send(b".x")
    group.loose[1].close()
    assert group.ended[0].wait(PATIENCE)
    assert group.ended[2].wait(PATIENCE)
    assert not capfd.readouterr().err


def test_a_process_that_was_told_to_leave_ends_in_the_end(ranks):
    group = ranks(2, 0.6)
    group.beats[1].leave_at = time.monotonic() + 0.1
    assert group.ended[1].wait(PATIENCE)


class Comm:
    """Collectives of ranks that are threads."""

    def __init__(self, rank: int, size: int, shared: dict[str, Any]) -> None:
        self.rank, self.size, self._shared, self._round = rank, size, shared, 0

    def allgather(self, value: Any) -> list[Any]:
        self._round += 1
        self._shared[f"{self._round}/{self.rank}"] = value
        self._shared["barrier"].wait()
        return [self._shared[f"{self._round}/{rank}"] for rank in range(self.size)]

    def bcast(self, value: Any, root: int) -> Any:
        return self.allgather(value)[root]


def connected(size: int) -> list[Heartbeat | None]:
    shared: dict[str, Any] = {"barrier": threading.Barrier(size)}
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: connect(Comm(rank, size, shared), 30.0), range(size)))


def test_ranks_connect_to_rank_0():
    beats = connected(4)
    assert [beat is not None and sorted(peer.rank for peer in beat.peers) for beat in beats] == [
        [1, 2, 3],
        [0],
        [0],
        [0],
    ]
    for beat in beats:
        assert beat is not None
        beat.close()


def test_one_rank_watches_nobody():
    assert connected(1) == [None]


def test_a_rank_that_cannot_reach_rank_0_is_named_and_training_goes_on(monkeypatch, capfd):
    reach = heartbeat._reach
    monkeypatch.setattr(
        heartbeat, "_reach", lambda addresses, port, hello: None if hello[-1] == 2 else reach(addresses, port, hello)
    )
    beats = connected(3)
    assert beats[2] is None
    assert beats[0] is not None
    assert [peer.rank for peer in beats[0].peers] == [1]
    said = capfd.readouterr().err
    assert "no heartbeat from rank 2 on " in said
    assert "Training goes on" in said
    for beat in beats[:2]:
        assert beat is not None
        beat.close()


def test_a_stranger_is_turned_away(monkeypatch):
    """Something else that connects to the port is no rank."""
    create = socket.create_server

    def with_a_stranger(*arguments: Any, **options: Any) -> socket.socket:
        server = create(*arguments, **options)
        stranger = socket.create_connection(("127.0.0.1", server.getsockname()[1]))
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n....")
        return server

    monkeypatch.setattr(socket, "create_server", with_a_stranger)
    beats = connected(2)
    assert beats[0] is not None
    assert beats[1] is not None
    assert [peer.rank for peer in beats[0].peers] == [1]
    for beat in beats:
        assert beat is not None
        beat.close()


def test_reports_reach_rank_0_with_the_signs_of_life(ranks, monkeypatch, capfd):
    monkeypatch.setattr(heartbeat, "REPORT_PAUSE", 0.02)
    group = ranks(3, 60.0)
    taken: list[tuple[int, bytes]] = []
    group.beats[0].heard = lambda rank, report: taken.append((rank, report))
    numbers = iter(range(1000))
    for rank in (1, 2):
        # Every byte, those of the words among them.
        group.beats[rank].report = lambda: bytes(range(256)) + bytes([next(numbers) % 256])
        group.beats[rank].peers[0].send(b".")
    # The first comes when the pause that has begun is over; a sign from rank 0 ends it.
    for peer in group.beats[0].peers:
        peer.send(b".")
    limit = time.monotonic() + PATIENCE
    while len({rank for rank, _ in taken}) < 2 or len(taken) < 10:
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert all(report[:256] == bytes(range(256)) for _, report in taken)
    assert not any(event.is_set() for event in group.ended)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("stuck", [0, 2])
def test_a_rank_that_is_stuck_says_so_and_ends_all(ranks, capfd, stuck):
    group = ranks(3, 0.6)
    awake: list[float] = []

    def stalled(seconds: float) -> str | None:
        awake.append(seconds)
        return "hangs" if len(awake) > 3 else None

    group.beats[stuck].stalled = stalled
    for event in group.ended:
        assert event.wait(PATIENCE)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        f"engine: rank {stuck} on host{stuck} hangs; all ranks end now, and the same command goes on from the last "
        "checkpoint"
    ]
    assert all(0 <= seconds < 0.6 for seconds in awake)


def test_a_report_may_come_in_pieces(ranks):
    group = ranks(2, 60.0, silent=(1,))
    taken: list[bytes] = []
    group.beats[0].heard = lambda rank, report: taken.append(report)
    for piece in (b".61", b".6", b"2\n.zz\n", b".63\n."):
        group.loose[1].send(piece)
        time.sleep(0.05)
    limit = time.monotonic() + PATIENCE
    while len(taken) < 2:
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert taken == [b"ab", b"c"]


def test_what_shows_the_run_is_told_before_the_ranks_end(ranks, capfd):
    group = ranks(2, 60.0, silent=(1,))
    told: list[str] = []
    group.beats[0].ending = lambda: told.append(capfd.readouterr().err)
    group.loose[1].close()
    assert group.ended[0].wait(PATIENCE)
    assert set(told) == {""}
    assert "rank 1 on host1 has ended without a word" in capfd.readouterr().err
