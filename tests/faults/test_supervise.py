"""The supervisor with real processes: ranks that die, jobs that cannot work, signals, hosts that do not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from jobs import ROOT, alive, command, environment, events, mpirun, options, ranks_of, run, start, wait_until

SUPERVISE = [sys.executable, "-m", "engine.supervise"]
# The same with short waits for hosts.
HASTY = [
    sys.executable,
    "-c",
    "import sys, engine.hosts, engine.supervise; engine.hosts.RETRY_SECONDS = 0; engine.hosts.TURN_SECONDS = 2; "
    "sys.exit(engine.supervise.main(sys.argv[1:]))",
]
# Notes the signal that comes, takes longer to end than mpirun gives a rank after SIGTERM, and has a child in a session
# of its own: `job.py FOLDER`.
JOB = """
import os, signal, subprocess, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), os.environ.get("OMPI_COMM_WORLD_RANK", "0")
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
def end(number, frame):
    time.sleep(2)
    (folder / f"saved-{rank}").write_text(str(number))
    os._exit(128 + number)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, end)
signal.signal(signal.SIGINT, signal.SIG_IGN)
(folder / f"new-{rank}").write_text(str(child.pid))
(folder / f"new-{rank}").rename(folder / f"started-{rank}")  # whole, as soon as it is there
while True:
    time.sleep(60)
"""


def ours(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("engine.supervise: ")]


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def supervised(tmp_path: Path, *words: object) -> subprocess.Popen[str]:
    """A supervised job.py, once it has started."""
    job = script(tmp_path / "job.py", JOB)
    process = start(*SUPERVISE, "--", *words, sys.executable, job, tmp_path)
    wait_until(lambda: (tmp_path / "started-0").exists(), "the start of the job")
    return process


def below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def ended(process: subprocess.Popen[str], children: Sequence[psutil.Process]) -> str:
    """The output of a supervisor that has ended, and left no process."""
    output, _ = process.communicate(timeout=30)
    assert children
    wait_until(lambda: not any(alive(child) for child in children), "the end of all processes")
    return output


def reached(out: Path, step: int) -> None:
    wait_until(lambda: any(event["event"] == "step" and event["step"] >= step for event in events(out)), f"step {step}")


def test_a_rank_that_dies_twice_costs_two_restarts_and_no_bit(data, undisturbed, tmp_path):
    out = tmp_path / "run"
    supervisor = start(*SUPERVISE, "--max-restarts", 5, "--", *command(3, *options(data, out)))
    for step, victim in ((32, 0), (112, 2)):
        reached(out, step)
        ranks_of(supervisor)[victim].kill()
    output, _ = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 0, output
    lines = ours(output)
    assert len(lines) == 3, output
    assert "restart 1 of 5" in lines[0]
    assert "last checkpoint at step" in lines[0]
    assert lines[2] == "engine.supervise: finished after 2 restarts"
    assert events(out)[-1]["weights_digest"] == events(undisturbed)[-1]["weights_digest"]
    starts = [event["step"] for event in events(out) if event["event"] == "start"]
    assert len(starts) == 3
    assert starts[1] >= 30
    assert starts[2] >= 110


def test_the_engine_saves_when_the_supervisor_is_asked_to_end(data, tmp_path):
    out = tmp_path / "run"
    supervisor = start(*SUPERVISE, "--", *command(2, *options(data, out), "--checkpoint-every", 0))
    reached(out, 20)
    children = below(supervisor)
    supervisor.send_signal(signal.SIGTERM)
    output = ended(supervisor, children)
    assert supervisor.returncode == 143, output
    end = events(out)[-1]
    assert (end["event"], end["status"]) == ("end", "preempted")
    assert (out / "checkpoints" / f"step-{end['step']:08d}").exists()
    assert "as SIGTERM asked; not restarted" in ours(output)[-1]


@pytest.mark.parametrize("with_run", [True, False])
def test_a_job_that_fails_at_once_is_given_up(tmp_path, with_run):
    job = [sys.executable, "-c", "import sys; print('broken', file=sys.stderr); sys.exit(3)"]
    job += ["engine.train", "--out", tmp_path / "run"] if with_run else []
    done = run(*SUPERVISE, "--max-restarts", 100 if with_run else 1, "--", *job)
    assert done.returncode == 3
    assert done.stderr.count("broken") == (3 if with_run else 2)
    last = ours(done.stderr)[-1]
    assert ("2 restarts in a row came no further: giving up" if with_run else "giving up after 1 restart") in last


def test_wrong_usage_is_not_tried_again(tmp_path):
    train = [sys.executable, "-m", "engine.train", "--data", tmp_path / "none", "--out", tmp_path / "run"]
    done = run(*SUPERVISE, "--", *train)
    assert done.returncode == 2
    assert done.stderr.count("there is no such folder") == 1
    assert len(ours(done.stderr)) == 1
    assert "no restart would mend it" in ours(done.stderr)[0]
    done = run(*SUPERVISE, "--", tmp_path / "no-program")
    assert done.returncode == 2
    assert "cannot be started" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_handed_on_and_nothing_is_left(tmp_path, number):
    supervisor = supervised(tmp_path)
    children = below(supervisor)
    supervisor.send_signal(number)
    supervisor.send_signal(number)  # the same again is no other wish
    output = ended(supervisor, children)
    assert supervisor.returncode == 128 + number, output
    assert (tmp_path / "saved-0").read_text() == str(int(number))
    assert "not restarted" in ours(output)[-1]
    assert len(children) == 2


@pytest.mark.parametrize("launcher", ["mpirun", "shell"])
def test_ranks_under_mpirun_get_the_time_to_save(tmp_path, launcher):
    """SIGTERM to mpirun would kill them a second later; where a shell has started mpirun, it would get the signal."""
    words = [mpirun(), "--oversubscribe", "-n", 2]
    if launcher == "shell":
        words = ["sh", "-c", '"$@"; exit $?', "sh", *words]
    supervisor = supervised(tmp_path, *words)
    wait_until(lambda: (tmp_path / "started-1").exists(), "the start of rank 1")
    children = below(supervisor)
    supervisor.send_signal(signal.SIGTERM)
    output = ended(supervisor, children)
    assert supervisor.returncode == 143, output
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in (0, 1)] == [str(int(signal.SIGUSR1))] * 2


def test_horovodrun_hands_signals_on(tmp_path):
    bin_folder = Path(sys.executable).parent
    if not (bin_folder / "horovodrun").exists():
        pytest.skip("no horovodrun beside this Python")
    path = f"PATH={bin_folder}:{os.environ['PATH']}"  # horovodrun looks for mpirun there
    supervisor = supervised(tmp_path, "env", path, bin_folder / "horovodrun", "-np", 1, "-H", "localhost:1")
    children = below(supervisor)
    supervisor.send_signal(signal.SIGTERM)
    output = ended(supervisor, children)
    assert supervisor.returncode == 143, output
    assert (tmp_path / "saved-0").read_text() == str(int(signal.SIGUSR1))


def test_a_second_interrupt_kills(tmp_path):
    supervisor = supervised(tmp_path)
    children = below(supervisor)
    supervisor.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert supervisor.poll() is None
    supervisor.send_signal(signal.SIGINT)
    began = time.monotonic()
    output = ended(supervisor, children)
    assert supervisor.returncode == 137
    assert time.monotonic() - began < 5
    assert "SIGINT again" in output


def test_a_supervisor_that_is_killed_takes_the_job_with_it(tmp_path):
    supervisor = supervised(tmp_path)
    job = psutil.Process(supervisor.pid).children()[0]
    left = psutil.Process(int((tmp_path / "started-0").read_text()))
    supervisor.kill()
    wait_until(lambda: (tmp_path / "saved-0").exists(), "the end of the job")
    wait_until(lambda: not alive(job), "the end of the job's process")
    left.kill()
    supervisor.communicate()


def test_a_signal_between_two_starts_ends_it(tmp_path):
    supervisor = start(*SUPERVISE, "--", sys.executable, "-c", "raise SystemExit(1)")
    assert supervisor.stdout is not None
    assert "restart 1 of 10 in 1 s" in supervisor.stdout.readline()
    supervisor.send_signal(signal.SIGTERM)
    output, _ = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 143
    assert "SIGTERM while no job was running" in output


def cluster(tmp_path: Path, answering: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A supervisor among programs that play a cluster: of its hosts only some answer; the first start fails."""
    folder = tmp_path / "bin"
    folder.mkdir()
    ssh = f"""#!/bin/bash
echo "$@" >>{tmp_path}/ssh
host=${{@: -2:1}}
[[ " {answering} " = *" $host "* ]]
"""
    script(folder / "ssh", ssh)
    launcher = f"""#!/bin/bash
echo "" "$@" >>{tmp_path}/starts
while [ $# -gt 1 ]; do
    if [ "$1" = --hostfile ]; then cat "$2" >{tmp_path}/hostfile-seen; fi
    shift
done
[ "$(wc -l <{tmp_path}/starts)" -gt 1 ]
"""
    for name in ("horovodrun", "mpirun"):
        script(folder / name, launcher)

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*HASTY, *map(str, words)],
            env=environment() | {"PATH": f"{folder}:{os.environ['PATH']}"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return call


def test_a_host_that_does_not_answer_is_left_out(tmp_path):
    call = cluster(tmp_path, "198.51.100.1")
    done = call("--", "horovodrun", "-np", 4, "-p", 2222, "-H", "198.51.100.1:2,198.51.100.2:2", "python", "train.py")
    assert done.returncode == 0, done.stderr
    starts = (tmp_path / "starts").read_text().splitlines()
    assert starts == [
        " -np 4 -p 2222 -H 198.51.100.1:2,198.51.100.2:2 python train.py",
        " -np 2 -H 198.51.100.1:2 -p 2222 python train.py",
    ]
    assert "no answer from 198.51.100.2; without it: horovodrun -np 2 -H 198.51.100.1:2" in done.stderr
    asked = (tmp_path / "ssh").read_text().splitlines()
    assert all("-o BatchMode=yes" in line and "-p 2222" in line and line.endswith(" true") for line in asked)
    assert len([line for line in asked if "198.51.100.2" in line]) == 3


def test_a_host_of_a_file_is_left_out(tmp_path):
    call = cluster(tmp_path, "198.51.100.2")
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("198.51.100.1 slots=4\n198.51.100.2 slots=2 max-slots=2 # slow\n")
    done = call("--", "mpirun", "--hostfile", hostfile, "-n", 6, "python", "train.py")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "starts").read_text().splitlines()[1].startswith(" -np 2 --hostfile ")
    assert (tmp_path / "hostfile-seen").read_text() == "198.51.100.2 slots=2 max-slots=2\n"


def test_when_no_host_answers_it_gives_up(tmp_path):
    call = cluster(tmp_path, "")
    done = call("--wait", 0.1, "--", "mpirun", "-n", 2, "-H", "198.51.100.1,198.51.100.2", "python", "train.py")
    assert done.returncode == 1
    assert len((tmp_path / "starts").read_text().splitlines()) == 1
    lines = ours(done.stderr)
    assert len([line for line in lines if "no host answers ssh (198.51.100.1, 198.51.100.2)" in line]) == 5
    assert lines[-1].endswith("look 5 of 5: giving up")
