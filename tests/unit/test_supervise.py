"""The supervisor's decisions: what a launcher's command line names, the same for fewer hosts, restart or not."""

from __future__ import annotations

import json
import os
import shlex
import socket
from pathlib import Path

import pytest

from engine import supervise
from engine.hosts import is_local
from engine.launcher import Host, ranks_left, read_command
from engine.restarts import Outcome, Restarts
from engine.watched_run import WatchedRun

TRAIN = "python -m engine.train --data D --out RUN"


def read(line: str):
    return read_command(shlex.split(line))


def names(line: str, hostfile: str = "") -> list[tuple[str, int | None]]:
    return [(host.name, host.slots) for host in read(line).hosts(hostfile)]


def without(line: str, lost: str, hostfile: str = "", path: str | None = None) -> str:
    command = read(line)
    hosts = command.hosts(hostfile)
    left = [host for host in hosts if host.name != lost]
    return shlex.join(command.for_hosts(left, ranks_left(command.ranks, hosts, left), path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"horovodrun -np 8 -H a:4,b:4 {TRAIN}", [("a", 4), ("b", 4)]),
        (f"horovodrun --num-proc=8 --hosts=a:4,b:4 {TRAIN}", [("a", 4), ("b", 4)]),
        (f"/venv/bin/horovodrun --verbose -p 22 --tcp -np 8 --hosts a:4,b:4 {TRAIN} -H c:9", [("a", 4), ("b", 4)]),
        (f"horovodrun --mpi-args='-x A=B' -np 2 -H 10.0.0.1:1,10.0.0.2:1 {TRAIN}", [("10.0.0.1", 1), ("10.0.0.2", 1)]),
        (f"horovodrun -np 2 -H a:2 -H b:2 {TRAIN}", [("b", 2)]),
        (f"horovodrun -np 2 {TRAIN}", []),
        (f"mpirun -n 2 -H a,b {TRAIN}", [("a", 1), ("b", 1)]),
        (f"mpirun -H a,a,b:2 {TRAIN}", [("a", 1), ("a", 1), ("b", 2)]),
        (f"mpirun --host a:2 -host b:2 --bind-to none {TRAIN}", [("a", 2), ("b", 2)]),
        (f"mpirun --mca btl tcp,self -x PATH --allow-run-as-root -H a:2,b:* {TRAIN}", [("a", 2), ("b", None)]),
        (f"env A=1 PATH=/x mpirun -n 2 -H a:1,b:1 {TRAIN}", [("a", 1), ("b", 1)]),
        (f"mpirun -n 2 --tag-output {TRAIN} -H c", []),
        (f"mpirun -n 2 -H +n0,+n1 {TRAIN}", []),
        ("mpirun -n 1 -H a x : -n 1 -H b y", []),
        (f"srun --mpi=pmix {TRAIN}", []),
        (TRAIN, []),
        ("env", []),
        ("mpirun", []),
        ("mpirun -H", []),
        ("mpirun --mca plm_rsh_args", []),
    ],
)
def test_hosts_are_found_in_many_shapes(line, expected):
    assert names(line) == expected


HOSTFILE = """# our nodes
a slots=4
b slots = 2 max-slots=2   # the old one

c max_slots=3
d
"""


def test_hosts_of_a_file():
    for line in (
        f"mpirun --hostfile F -n 4 {TRAIN}",
        f"mpirun -machinefile F {TRAIN}",
        f"horovodrun -np 4 --hostfile F {TRAIN}",
    ):
        assert read(line).hostfile == "F"
        assert names(line, HOSTFILE) == [("a", 4), ("b", 2), ("c", None), ("d", None)]
    # mpirun takes those of the file that the list names.
    both = read(f"mpirun --hostfile F -H a,b {TRAIN}")
    assert both.hostfile is None
    assert names(f"mpirun --hostfile F -H a,b {TRAIN}") == [("a", None), ("b", None)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"horovodrun -np 8 -H a:4,b:4 {TRAIN}", f"horovodrun -np 4 -H a:4 {TRAIN}"),
        (f"horovodrun -np 3 --verbose -H a:4,b:4 {TRAIN}", f"horovodrun -np 3 -H a:4 --verbose {TRAIN}"),
        (f"horovodrun --hosts=a:4,b:4 --num-proc=8 {TRAIN}", f"horovodrun -np 4 -H a:4 {TRAIN}"),
        (f"mpirun -n 4 --host a:2 -host b:2 --bind-to none {TRAIN}", f"mpirun -np 2 -H a:2 --bind-to none {TRAIN}"),
        (f"mpirun -H a:2,b:2 {TRAIN}", f"mpirun -H a:2 {TRAIN}"),
        (f"mpirun --oversubscribe -n 8 -H a:1,b:1 {TRAIN}", f"mpirun -np 4 -H a:1 --oversubscribe {TRAIN}"),
        (f"env A=1 mpirun -n 2 -H a:1,b:1 -x A {TRAIN}", f"env A=1 mpirun -np 1 -H a:1 -x A {TRAIN}"),
        (f"mpirun --hostfile F -n 4 -H a,b {TRAIN}", f"mpirun -np 2 -H a --hostfile F {TRAIN}"),
    ],
)
def test_a_lost_host_is_left_out(line, expected):
    assert without(line, "b") == expected


def test_a_lost_host_of_a_file_is_left_out():
    content = "a slots=4\nb slots=4 max-slots=4\n"
    line = f"mpirun --hostfile F -n 8 --bind-to none {TRAIN}"
    assert without(line, "a", content, "/tmp/N") == f"mpirun -np 4 --hostfile /tmp/N --bind-to none {TRAIN}"
    assert read(line).hosts(content)[1].entry == "b slots=4 max-slots=4"
    # The file may stand in the environment instead.
    assert without(f"mpirun -n 8 {TRAIN}", "a", content, "/tmp/N") == f"mpirun -np 4 --hostfile /tmp/N {TRAIN}"


@pytest.mark.parametrize(
    ("ranks", "slots", "left", "expected"),
    [
        (None, (4, 4), 1, None),
        (8, (4, 4), 1, 4),
        (3, (4, 4), 1, 3),
        (8, (4, 4, 4), 2, 8),
        (16, (4, 4), 1, 8),
        (3, (1, 1), 1, 1),
        (4, (None, None), 1, 2),
        (1, (None, None), 1, 1),
        (4, (2, None), 1, 2),
    ],
)
def test_as_many_ranks_as_fit_the_hosts_that_are_left(ranks, slots, left, expected):
    hosts = [Host(f"h{place}", number, "") for place, number in enumerate(slots)]
    assert ranks_left(ranks, hosts, hosts[:left]) == expected


def test_ssh_is_called_as_the_launcher_calls_it():
    assert read(f"horovodrun -np 2 -p 2222 -i key -H a:1,b:1 {TRAIN}").ssh({}) == ["-p", "2222", "-i", "key"]
    assert read(f"mpirun --mca plm_rsh_args '-p 2222 -l me' -H a,b {TRAIN}").ssh({}) == ["-p", "2222", "-l", "me"]
    assert read(f"mpirun -H a,b {TRAIN}").ssh({"OMPI_MCA_plm_rsh_args": "-o X=1"}) == ["-o", "X=1"]
    assert read(TRAIN).ssh({}) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (TRAIN, "RUN"),
        (f"mpirun -n 2 {TRAIN}", "RUN"),
        ("mpirun -n 2 python -m engine.train --data D --out=RUN --out=LAST", "LAST"),
        ("mpirun --output-filename --out python -m engine.train --data D", None),
        ("python -m engine.train --out", None),
        ("python my_script.py --out RUN", None),
    ],
)
def test_run_is_what_the_engine_is_told(line, expected):
    assert read(line).out == expected


def test_this_host_by_its_names():
    assert all(is_local(name) for name in ("localhost", "127.0.0.1", socket.gethostname()))
    assert not is_local("198.51.100.1")
    assert not is_local("no-such-host.invalid")


def failed(step: int | None, status: int = 1, **more) -> Outcome:
    return Outcome(status, 12.0, step, **more)


def test_progress_restarts_until_the_most_are_used():
    restarts = Restarts(3, -1)
    decisions = [restarts.after(failed(step)) for step in (-1, 10, 20, 30)]
    assert [decision.restart for decision in decisions] == [True, True, True, False]
    assert [decision.pause for decision in decisions[:3]] == [1, 1, 1]
    assert "restart 2 of 3" in decisions[1].text
    assert "last checkpoint at step 10" in decisions[1].text
    assert "the most that --max-restarts allows" in decisions[3].text
    assert decisions[3].status == 1
    assert restarts.after(failed(40, 0)).text == "finished after 3 restarts"


def test_two_restarts_without_progress_end_it():
    restarts = Restarts(100, 10)
    decisions = [restarts.after(failed(step, 137)) for step in (10, 20, 20, 20)]
    assert [decision.restart for decision in decisions] == [True, True, True, False]
    assert [decision.pause for decision in decisions[:3]] == [1, 1, 2]
    assert "status 137 (SIGKILL)" in decisions[0].text
    assert "2 restarts in a row came no further" in decisions[3].text
    assert decisions[3].status == 137
    # One that came back to an earlier checkpoint made no progress either.
    restarts = Restarts(100, 50)
    assert [restarts.after(failed(step)).restart for step in (50, 40, 45)] == [True, True, False]


def test_where_progress_cannot_be_seen_restarts_are_only_counted():
    restarts = Restarts(7, None)
    decisions = [restarts.after(failed(None)) for _ in range(8)]
    assert [decision.restart for decision in decisions] == [True] * 7 + [False]
    assert [decision.pause for decision in decisions[:7]] == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    ("outcome", "status", "text"),
    [
        (failed(5, 0), 0, "finished after no restarts"),
        (failed(5, 1, end="finished"), 0, "finished"),
        (failed(5, 2), 2, "wrong usage"),
        (failed(5, 143), 143, "asked to end"),
        (failed(5, 138), 138, "asked to end"),
        (failed(5, 1, end="preempted"), 143, "asked to end"),
        (failed(5, 138, stopped_by=15), 143, "as SIGTERM asked"),
        (failed(5, 138, stopped_by=10), 138, "as SIGUSR1 asked"),
        (failed(5, 1, end="preempted", stopped_by=10), 138, "as SIGUSR1 asked"),
        (failed(5, 130, stopped_by=2), 130, "as SIGINT asked"),
        (failed(5, 1, end="failed", stopped_by=15), 1, "not restarted"),
    ],
)
def test_what_is_not_restarted(outcome, status, text):
    decision = Restarts(5, -1).after(outcome)
    assert not decision.restart
    assert decision.status == status
    assert text in decision.text


def test_what_can_be_seen_of_a_run(tmp_path):
    run = WatchedRun(str(tmp_path))
    assert run.step() == -1
    assert run.mark() is run.end() is None
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for name in ("step-00000005", "step-00000120", "unusable-step-00000900", ".step-00000700.1.part", "last"):
        (checkpoints / name).touch()
    assert run.step() == 120
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"event": "step", "step": step}) + "\n" for step in range(9000)))
    before = run.mark()
    assert run.end() is None
    with metrics.open("a") as stream:
        stream.write(json.dumps({"event": "end", "status": "preempted"}) + "\n")
    assert run.end() == "preempted"
    assert run.mark() != before
    with metrics.open("a") as stream:
        stream.write('{"event": "st')
    assert run.end() is None


def test_a_run_that_may_lie_on_another_host_tells_nothing(tmp_path):
    assert WatchedRun(None).step() is None
    assert WatchedRun(str(tmp_path / "RUN"), elsewhere=True).step() is None
    assert WatchedRun(str(tmp_path / "RUN")).step() == -1
    assert WatchedRun(str(tmp_path), elsewhere=True).step() == -1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command to run"),
        (["--"], "no command to run"),
        (["--max-restarts", "-1", "--", "true"], "--max-restarts must be at least 0"),
        (["--wait", "-1", "--", "true"], "--wait must be from 0"),
        (["--wait", "nan", "--", "true"], "--wait must be from 0"),
        (["mpirun", "--", "true"], "unrecognized arguments: mpirun"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, capsys):
    assert supervise.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("engine.supervise: ")
    assert message in lines[0]


def test_a_job_gets_the_environment_that_the_supervisor_was_given(monkeypatch):
    monkeypatch.setenv("SET_LATER", "1")
    found = supervise._first_environment()
    assert "SET_LATER" not in found
    given = Path("/proc/self/environ").read_bytes().decode().split("\0")
    assert f"PATH={found['PATH']}" in given
    assert set(found) <= {*os.environ, *found}
