"""Heartbeats between the ranks, outside MPI: a rank that dies, hangs or lies behind a cut cable ends the job in time.

MPI and Horovod wait for ever for a rank that does not answer. A thread of each rank holds a TCP connection to rank 0,
over which both say that they live. Rank 0 watches all, the others watch rank 0. When one is silent for too long, or its
connection ends without a farewell, rank 0 says which rank on which host that is, tells the others, and all processes
end; the launcher then takes down the rest. The thread needs no more than a moment of Python's lock now and then, so
that a long step is no silence; a process that was itself stopped for a while begins to count anew. A process that
lives while its training thread is stuck ends all ranks itself.

The others' signs of life may carry a report, a few numbers that rank 0 shows to people (engine.watch).
"""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEATS = 6
"""signs of life within the time after which a silent rank is lost"""
LONGEST_PAUSE = 5.0
REPORT_PAUSE = 1.0
"""seconds between two reports of a rank"""
MOST_REPORTS = 64
"""a second that rank 0 takes; of more ranks each reports less often"""
CONNECT_SECONDS = 10.0
MOURNING = 0.5
"""seconds between a connection's end and the verdict: a rank that failed by itself has said why, and all are ended"""
TURN = 2.5
"""seconds after which the next rank speaks, where rank 0 is lost: by then mpirun has ended all because of the first"""
LATEST_TURN = 5.0
_ALIVE, _FAREWELL, _FAILING, _LOST = b".", b"q", b"x", b"l"
_WORDS = _ALIVE + _FAREWELL + _FAILING + _LOST
_REPORT_END = b"\n"
"""a report is in hexadecimal digits, none of which is a word"""
_HELLO = struct.Struct("!16sI")
_SIOCGIFADDR = 0x8915


LAUNCHERS = ("mpirun", "mpiexec", "orterun", "orted")
"""what the names of Open MPI's processes begin with; those of the wheel are orterun_wrapper and orted_wrapper"""
LAUNCHER_SECONDS = 10
"""what a launcher has to end by itself, once its ranks have"""
_END_LAUNCHER = """
for second in $(seq "$1"); do sleep 1; [ "$(cat "/proc/$2/comm" 2>/dev/null)" = "$3" ] || exit 0; done
kill -9 $(cat /proc/"$2"/task/*/children) "$2"
"""
"""its children are the ssh connections to other hosts"""


def end_launcher_later() -> None:
    """See that Open MPI's daemon on this host ends too: it waits a quarter of an hour for one behind a cut cable.

    TCP sends what it was given again and again for so long, and no keep-alive counts meanwhile.
    """
    parent = os.getppid()
    try:
        name = Path(f"/proc/{parent}/comm").read_text().strip()
    except OSError:
        return
    if name.startswith(LAUNCHERS):
        words = ["sh", "-c", _END_LAUNCHER, "sh", str(LAUNCHER_SECONDS), str(parent), name]
        nothing = subprocess.DEVNULL
        with suppress(OSError):
            subprocess.Popen(words, start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing)


def end_process() -> None:
    """End this process at once: its main thread may wait in MPI for ever, and so would every orderly way out."""
    sys.stderr.flush()
    os._exit(1)


@dataclass
class _Peer:
    """The other end of a connection."""

    rank: int
    socket: socket.socket
    heard: float
    farewell: bool = False
    ended: float | None = None
    """when the connection ended without a farewell"""
    failing: bool = False
    """it has said that it fails and why"""
    report: bytes = b""
    """as much of its next report as has come"""

    def send(self, word: bytes) -> None:
        # A full buffer means that the peer does not read: it will be found silent.
        with suppress(OSError):
            self.socket.send(word, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


@dataclass
class Heartbeat:
    """This rank's part in it; made by `connect`.

    Args:
        rank: this process's.
        hosts: host name of each rank.
        timeout: seconds of silence after which a rank is lost.
        peers: connections: rank 0's to all others, the others' to rank 0.
        end: ends this process.
    """

    rank: int
    hosts: Sequence[str]
    timeout: float
    peers: list[_Peer]
    end: Callable[[], None] = end_process
    leave_at: float | None = None
    """when this process ends whatever happens: it was told to stop, and the others may be past answering"""
    report: Callable[[], bytes] | None = None
    """makes this rank's report; not on rank 0"""
    heard: Callable[[int, bytes], None] = lambda rank, report: None
    """takes a rank's report; on rank 0"""
    stalled: Callable[[float], str | None] | None = None
    """says what this rank does for too long, after so many more seconds awake (engine.watch.Stall); while it trains"""
    ending: Callable[[], None] = lambda: None
    """called before all ranks end because of one: nothing may stand in the way of what is said about it"""
    _closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        for peer in self.peers:
            peer.socket.setblocking(False)
            self._selector.register(peer.socket, selectors.EVENT_READ, peer)
        self._thread = threading.Thread(target=self._run, name="engine-heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say farewell: this process ends as it should."""
        if not self._closing.is_set():
            self._closing.set()
            for peer in self.peers:
                peer.send(_FAREWELL)

    def fail(self) -> None:
        """This process is about to end all ranks, and has said why."""
        for peer in self.peers:
            peer.send(_FAILING)

    def _run(self) -> None:
        longest = min(LONGEST_PAUSE, self.timeout / BEATS)
        due = before = time.monotonic()
        while not self._closing.is_set():
            now = time.monotonic()
            pause = longest if self.report is None else min(longest, self._report_pause())
            if now >= due:
                due = now + pause
                sign = _ALIVE if self.report is None else _ALIVE + self.report().hex().encode() + _REPORT_END
                for peer in self.peers:
                    peer.send(sign)
            waiting = any(peer.ended is not None for peer in self.peers)
            ready = self._selector.select(MOURNING / 5 if waiting else max(0.0, due - now))
            for key, _ in ready:
                self._hear(key.data)
            now = time.monotonic()
            if now - before > pause + self.timeout / 2:
                # This very process was stopped: it cannot tell how long the others were silent.
                for peer in self.peers:
                    peer.heard = now
            else:
                self._judge_itself(now - before)
            before = now
            self._judge(now)

    def _report_pause(self) -> float:
        return max(REPORT_PAUSE, len(self.hosts) / MOST_REPORTS)

    def _hear(self, peer: _Peer) -> None:
        try:
            words = peer.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        now = time.monotonic()
        if _LOST in words:
            self.ending()
            self.end()
        if _FAILING in words:
            peer.failing = True
            self.ending()
        peer.farewell |= _FAREWELL in words
        if words:
            peer.heard = now
            self._take_reports(peer, words)
            return
        self._selector.unregister(peer.socket)
        if not peer.farewell:
            peer.ended = now
            self.ending()

    def _take_reports(self, peer: _Peer, words: bytes) -> None:
        *whole, peer.report = (peer.report + words.translate(None, _WORDS)).split(_REPORT_END)
        for report in whole:
            with suppress(ValueError):
                self.heard(peer.rank, bytes.fromhex(report.decode("ascii")))

    def _judge(self, now: float) -> None:
        """End all ranks when one is lost."""
        for peer in self.peers:
            if self._closing.is_set():
                return
            if peer.farewell:
                continue
            if peer.ended is not None and now - peer.ended > MOURNING:
                self._lose(peer, "has ended without a word (killed, or out of memory)")
            elif peer.ended is None and now - peer.heard > self.timeout:
                end_launcher_later()
                self._lose(peer, f"was not heard of for {self.timeout:g} s (it hangs, or its network is cut)")
        if self.leave_at is not None and now > self.leave_at:
            self.ending()
            self.end()

    def _judge_itself(self, seconds: float) -> None:
        """End all ranks when this one's own training thread is stuck."""
        stalled = self.stalled
        what = None if stalled is None or self._closing.is_set() else stalled(seconds)
        if what is None:
            return
        self.ending()
        print(
            f"engine: rank {self.rank} on {self.hosts[self.rank]} {what}; all ranks end now, and the same command goes "
            "on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        for peer in self.peers:  # rank 0 tells all others; it takes the end that follows for what was said here
            peer.send(_LOST if self.rank == 0 else _FAILING)
        self.end()

    def _lose(self, peer: _Peer, what: str) -> None:
        if self.rank != 0:
            # Rank 0 is lost, and nobody else can speak for all.
            time.sleep(min(LATEST_TURN, (self.rank - 1) * TURN))
        self.ending()
        if not peer.failing:
            print(
                f"engine: rank {peer.rank} on {self.hosts[peer.rank]} {what}; all ranks end now, and the same command "
                "goes on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        for other in self.peers:  # the lost one too: one that was only stopped ends without a word when it wakes
            other.send(_LOST)
        self.end()


def connect(comm: Any, timeout: float, end: Callable[[], None] = end_process) -> Heartbeat | None:
    """Connect all ranks and begin to watch. Collective.

    Ranks that cannot reach rank 0 are named and go unwatched.

    Args:
        comm: mpi4py communicator of all ranks.
        timeout: seconds of silence after which a rank is lost; 0 for no watching at all.

    Returns:
        None where there is nobody to watch.
    """
    if comm.size == 1 or not timeout:
        return None
    hosts = comm.allgather(socket.gethostname())
    listener = socket.create_server(("", 0), backlog=comm.size) if comm.rank == 0 else None
    token, addresses, port = comm.bcast(
        (os.urandom(16), addresses_of_this_host(), listener.getsockname()[1]) if listener else None, root=0
    )
    peers = []
    if listener is None:
        near = ["127.0.0.1"] if hosts[comm.rank] == hosts[0] else []
        connection = _reach(near + addresses, port, _HELLO.pack(token, comm.rank))
        peers = [_Peer(0, connection, time.monotonic())] if connection else []
    reached = comm.allgather(bool(peers))
    if listener is not None:
        peers = _accept(listener, token, sum(reached))
        missing = [rank for rank in range(1, comm.size) if rank not in {peer.rank for peer in peers}]
        if missing:
            print(
                f"engine: no heartbeat from rank {missing[0]} on {hosts[missing[0]]} ({len(missing)} such ranks): "
                f"port {port} of {hosts[0]} is not reachable from there. Training goes on, but if such a rank hangs "
                "nobody will notice; open the hosts' TCP ports to each other",
                file=sys.stderr,
                flush=True,
            )
        if not peers:
            return None
    return Heartbeat(comm.rank, hosts, timeout, peers, end) if peers else None


def addresses_of_this_host() -> list[str]:
    """IPv4 addresses of this host's network interfaces, and what its own name stands for, without the loopback."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
    with suppress(OSError):
        found += [str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)]
    return [address for address in dict.fromkeys(found) if not address.startswith("127.") and address != "::1"]


def _reach(addresses: Sequence[str], port: int, hello: bytes) -> socket.socket | None:
    limit = time.monotonic() + CONNECT_SECONDS
    for number, address in enumerate(addresses):
        left = limit - time.monotonic()
        if left <= 0:
            break
        with suppress(OSError):
            # An address of a network that this host is not on may swallow every packet: leave time for the others.
            connection = socket.create_connection((address, port), timeout=left / (len(addresses) - number))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(hello)
            return connection
    return None


def _accept(listener: socket.socket, token: bytes, count: int) -> list[_Peer]:
    """Rank 0's connections; whoever does not know the token is turned away."""
    peers: dict[int, _Peer] = {}
    limit = time.monotonic() + CONNECT_SECONDS
    with listener:
        while len(peers) < count and time.monotonic() < limit:
            listener.settimeout(max(0.01, limit - time.monotonic()))
            with suppress(OSError):
                connection, _ = listener.accept()
                connection.settimeout(1.0)
                hello = connection.recv(_HELLO.size, socket.MSG_WAITALL)
                if len(hello) == _HELLO.size and hello.startswith(token):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    rank = _HELLO.unpack(hello)[1]
                    peers[rank] = _Peer(rank, connection, time.monotonic())
                else:
                    connection.close()
    return [peers[rank] for rank in sorted(peers)]
