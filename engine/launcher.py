"""A launcher's command line: the hosts and the number of ranks it names, and the same command for fewer hosts. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

_MPIRUN = ("mpirun", "mpiexec", "orterun")
# What an option says, by its name without dashes: mpirun takes one dash or two before any of them.
_MEANINGS = {
    "horovodrun": {
        "np": "ranks",
        "num-proc": "ranks",
        "H": "hosts",
        "hosts": "hosts",
        "hostfile": "hostfile",
        "p": "port",
        "ssh-port": "port",
        "i": "identity",
        "ssh-identity-file": "identity",
    },
    "mpirun": {
        "n": "ranks",
        "np": "ranks",
        "c": "ranks",
        "H": "hosts",
        "host": "hosts",
        "hostfile": "hostfile",
        "machinefile": "hostfile",
        "default-hostfile": "hostfile",
        "mca": "parameter",
        "gmca": "parameter",
    },
}
# How many words follow an option; the program begins where the options end. horovodrun 0.28: one, but for its switches.
_HOROVODRUN_SWITCHES = """
    v version h help cb check-build disable-cache verbose hierarchical-allreduce no-hierarchical-allreduce
    hierarchical-allgather no-hierarchical-allgather torus-allreduce no-torus-allreduce autotune no-autotune
    timeline-mark-cycles no-timeline-mark-cycles no-stall-check stall-check mpi-threads-disable no-mpi-threads-disable
    tcp log-with-timestamp log-without-timestamp prefix-timestamp prefix-output-with-timestamp log-hide-timestamp
    no-log-hide-timestamp gloo mpi jsrun
"""
# Open MPI 4.1: none, but for these.
_MPIRUN_VALUES = """
    n np c H host hostfile machinefile default-hostfile N npernode npersocket am tune app bind-to cartofile cf cpu-list
    cpu-set cpus-per-proc cpus-per-rank debugger hnp launch-agent map-by max-restarts max-vm-size ompi-server
    output-filename path personality ppr prefix preload-files rank-by rankfile rf report-events report-pid report-uri
    stdin timeout wd wdir x xml-file xterm
"""
_WORDS_AFTER = {
    "horovodrun": {**dict.fromkeys(_HOROVODRUN_SWITCHES.split(), 0), "blacklist-cooldown-range": 2},
    "mpirun": {**dict.fromkeys(_MPIRUN_VALUES.split(), 1), "mca": 2, "gmca": 2},
}
_OTHERWISE = {"horovodrun": 1, "mpirun": 0}
_SLOTS = re.compile(r"(?<![\w-])slots\s*=\s*(\d+)")


@dataclass(frozen=True)
class Host:
    """A host that a command names, once for each time it is named."""

    name: str
    slots: int | None
    """most ranks there; None where the launcher finds that out itself"""
    entry: str
    """as it stands in the list or the file"""


@dataclass(frozen=True)
class _Option:
    meaning: str
    value: str
    begin: int
    end: int


@dataclass(frozen=True)
class Command:
    """A command line that may begin with a launcher; made by `read_command`."""

    words: tuple[str, ...]
    launcher: str = ""
    """"horovodrun", "mpirun", or "" for anything else"""
    start: int = 0
    """place of the first word after the launcher's name"""
    options: tuple[_Option, ...] = ()

    @property
    def out(self) -> str | None:
        """RUN, the --out of engine.train; None in other programs and where it does not stand."""
        words = self.words[self.options[-1].end if self.options else self.start :]
        if not any(word == "engine.train" or word.endswith("engine/train.py") for word in words):
            return None
        found = None
        for place, word in enumerate(words):
            if word == "--out" and place + 1 < len(words):
                found = words[place + 1]
            elif word.startswith("--out="):
                found = word.partition("=")[2]
        return found

    @property
    def ranks(self) -> int | None:
        """Number of ranks asked for; None where the launcher chooses it."""
        values = self._values("ranks")
        return int(values[-1]) if values and values[-1].isdigit() else None

    @property
    def hostfile(self) -> str | None:
        """The file that names the hosts; None where a list does, or nothing."""
        values = self._values("hostfile")
        return values[-1] if values and not self._values("hosts") else None

    def hosts(self, hostfile: str = "") -> tuple[Host, ...]:
        """The hosts named, in their order; none where the launcher finds them itself, or they are not understood.

        Args:
            hostfile: the content of that file.
        """
        if ":" in self.words:  # mpirun's separator between programs, each with hosts of its own
            return ()
        lists = self._values("hosts")
        if self.launcher == "horovodrun":
            lists = lists[-1:]  # the last one counts; mpirun joins them
        if lists:
            entries = [entry.strip() for text in lists for entry in text.split(",")]
            # A list beside a file only chooses among the file's hosts.
            known = not self._values("hostfile")
            hosts = [_from_list(entry, 1 if known else None) for entry in entries if entry]
        else:
            lines = [line.partition("#")[0].strip() for line in hostfile.splitlines()]
            hosts = [_from_file(line) for line in lines if line]
        # "+n0" and the like are places in an allocation, not names.
        return () if any(not re.match(r"[\w\[]", host.name) for host in hosts) else tuple(hosts)

    def ssh(self, environment: Mapping[str, str]) -> list[str]:
        """What the launcher gives ssh before the host's name."""
        words: list[str] = []
        for flag, meaning in (("-p", "port"), ("-i", "identity")):
            for value in self._values(meaning)[-1:]:
                words += [flag, value]
        parameters = dict(value.split(" ", 1) for value in self._values("parameter") if " " in value)
        return words + shlex.split(parameters.get("plm_rsh_args", environment.get("OMPI_MCA_plm_rsh_args", "")))

    def for_hosts(self, hosts: Sequence[Host], ranks: int | None, hostfile: str | None) -> tuple[str, ...]:
        """The same command on these hosts.

        Args:
            hosts: some of `hosts()`.
            ranks: how many ranks now; None leaves it to the launcher.
            hostfile: path of a file that names these hosts, where the command had one; None: they go into a list.
        """
        new = [] if ranks is None else ["-np", str(ranks)]
        new += ["--hostfile", hostfile] if hostfile else ["-H", ",".join(host.entry for host in hosts)]
        replaced = {"hosts", "hostfile"} if hostfile else {"hosts"}
        if ranks is not None:
            replaced.add("ranks")
        words, place = list(self.words[: self.start]) + new, self.start
        for option in self.options:
            words += self.words[place : option.begin if option.meaning in replaced else option.end]
            place = option.end
        return (*words, *self.words[place:])

    def _values(self, meaning: str) -> list[str]:
        return [option.value for option in self.options if option.meaning == meaning]


def read_command(words: Sequence[str]) -> Command:
    """Find the launcher's options in a command line; `env NAME=VALUE ...` may stand before the launcher."""
    words = tuple(words)
    place = 0
    if words and PurePath(words[0]).name == "env":
        place = 1
        while place < len(words) and re.match(r"\w+=", words[place]):
            place += 1
    name = PurePath(words[place]).name if place < len(words) else ""
    launcher = "mpirun" if name in _MPIRUN else name
    if launcher not in _MEANINGS:
        return Command(words)
    start = place = place + 1
    options: list[_Option] = []
    while place < len(words) and words[place].startswith("-"):
        option = _read_option(words, place, launcher)
        options.append(option)
        place = option.end
    return Command(words, launcher, start, tuple(options))


def _read_option(words: tuple[str, ...], place: int, launcher: str) -> _Option:
    name, equals, value = words[place].lstrip("-").partition("=")
    after = 0 if equals else _WORDS_AFTER[launcher].get(name, _OTHERWISE[launcher])
    end = min(place + 1 + after, len(words))
    return _Option(_MEANINGS[launcher].get(name, ""), value if equals else " ".join(words[place + 1 : end]), place, end)


def _from_list(entry: str, slots: int | None) -> Host:
    name, colon, number = entry.partition(":")
    if colon:
        slots = int(number) if number.isdigit() else None
    return Host(name, slots, entry)


def _from_file(line: str) -> Host:
    name, *rest = line.split(maxsplit=1)
    slots = _SLOTS.search(rest[0]) if rest else None
    return Host(name, int(slots[1]) if slots else None, line)


def ranks_left(ranks: int | None, before: Sequence[Host], left: Sequence[Host]) -> int | None:
    """How many ranks to start on the hosts that are left: as many as before, or as their slots take.

    Where slots are not known, or ranks were more than slots before, the number shrinks as the hosts (or slots) do.

    Args:
        ranks: how many were asked for; None where the launcher chooses.
        before: all hosts.
        left: at least one of them.
    """
    if ranks is None:
        return None
    slots = [host.slots for host in before]
    if None in slots:
        return max(1, ranks * len(left) // len(before))
    total = sum(number for number in slots if number is not None)
    remaining = sum(host.slots for host in left if host.slots is not None)
    if ranks > total > 0:
        return max(1, ranks * remaining // total)
    return max(1, min(ranks, remaining))
