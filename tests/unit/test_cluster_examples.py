"""examples/slurm.sbatch with programs that play Slurm, and the fields of examples/kubernetes*.yaml."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from engine.launcher import read_command

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / "examples/slurm.sbatch"
# Plays srun and mpirun: a job that ends with 128 + the signal when it is asked to, or by itself as $END says.
LAUNCHER = """#!/bin/bash
trap 'sleep 0.3; exit 138' USR1
trap 'exit 9' TERM
printf '%s' "$*" >"$PLAY/started.new" && mv "$PLAY/started.new" "$PLAY/started"
if [ -n "$END" ]; then exit "$END"; fi
while :; do sleep 0.05; done
"""


@pytest.fixture
def play(tmp_path) -> Path:
    """A checkout with programs of its own."""
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name, text in {
        "srun": LAUNCHER,
        "mpirun": LAUNCHER,
        "scontrol": '#!/bin/sh\necho "$@" >>"$PLAY/scontrol"\n',
        "squeue": '#!/bin/sh\ncat "$PLAY/state"\n',
        "python": f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "state").write_text("RUNNING\n")
    return tmp_path


@pytest.fixture
def start(play) -> Iterator:
    jobs: list[subprocess.Popen[str]] = []

    def begin(launcher: str, end: str = "", **more: str) -> subprocess.Popen[str]:
        own = {"PLAY": str(play), "END": end, "LAUNCHER": launcher, "DATA": "D", "OUT": str(play / "run")}
        slurm = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_CPUS_PER_TASK": "6", "SLURM_SUBMIT_DIR": str(play)}
        jobs.append(
            subprocess.Popen(
                ["bash", str(SBATCH)],
                env={**os.environ, **own, **slurm, **more},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return jobs[-1]

    yield begin
    for job in jobs:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


def requeued(play: Path) -> str:
    path = play / "scontrol"
    return path.read_text() if path.exists() else ""


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.01)


def test_the_script_is_bash():
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_near_its_limit_saves_and_goes_back_into_the_queue(play, start, launcher, number):
    job = start(launcher)
    wait_for(play / "started")
    job.send_signal(number)
    output, _ = job.communicate(timeout=30)
    assert job.returncode == 138, output
    assert requeued(play) == "requeue 77\n"
    assert "goes back into the queue" in output
    words = (play / "started").read_text()
    assert f"python -m engine.train --data D --out {play / 'run'}" in words
    assert ("-n 8 --bind-to none" in words) == (launcher == "mpirun")
    assert ("--cpus-per-task=6" in words) == (launcher == "srun")


def test_ranks_that_slurm_signalled_itself_are_requeued_too(play, start):
    job = start("srun", end="143")
    output, _ = job.communicate(timeout=30)
    assert job.returncode == 143, output
    assert requeued(play) == "requeue 77\n"


def test_a_cancelled_job_is_not_requeued(play, start):
    (play / "state").write_text("COMPLETING\n")
    job = start("srun")
    wait_for(play / "started")
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=30)
    assert job.returncode == 138, output
    assert requeued(play) == ""


@pytest.mark.parametrize("status", [0, 1, 2])
def test_other_ends_are_passed_on(play, start, status):
    job = start("srun", end=str(status), STAGE_DIR="/scratch", TRAIN_OPTIONS="--epochs 20")
    output, _ = job.communicate(timeout=30)
    assert job.returncode == status, output
    assert requeued(play) == ""
    assert (play / "started").read_text().endswith("--stage-dir /scratch --epochs 20")


def test_an_unknown_launcher_is_one_line(start):
    job = start("magic")
    output, _ = job.communicate(timeout=30)
    assert job.returncode == 2
    assert "take mpirun or srun" in output


def test_the_kubernetes_example_has_fields_that_exist():
    # One object a file: to apply both would start two trainings in one RUN.
    mpi_job = yaml.safe_load((ROOT / "examples/kubernetes.yaml").read_text())
    job = yaml.safe_load((ROOT / "examples/kubernetes-one-node.yaml").read_text())
    assert (mpi_job["apiVersion"], mpi_job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    spec = mpi_job["spec"]
    # pkg/apis/kubeflow/v2beta1/types.go of the operator: what it does not know, it drops.
    assert set(spec) <= {"slotsPerWorker", "runPolicy", "mpiReplicaSpecs", "sshAuthMountPath", "mpiImplementation"}
    policies = {"cleanPodPolicy", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit", "suspend"}
    assert set(spec["runPolicy"]) <= policies
    launcher, worker = (spec["mpiReplicaSpecs"][name] for name in ("Launcher", "Worker"))
    assert launcher["replicas"] == 1
    assert {launcher["restartPolicy"], worker["restartPolicy"]} <= {"Never", "OnFailure"}
    words = launcher["template"]["spec"]["containers"][0]["command"]
    command = read_command(words[words.index("--") + 1 :])
    assert command.out == "/shared/run"
    assert command.hostfile == "/etc/mpi/hostfile"
    assert command.ranks == spec["slotsPerWorker"] * worker["replicas"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy demands it
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
    assert codes == {2: "FailJob", 138: "Ignore", 143: "Ignore"}
    for template in (launcher["template"], worker["template"], job["spec"]["template"]):
        assert template["spec"]["terminationGracePeriodSeconds"] >= 60
        mounts = {mount["name"] for mount in template["spec"]["containers"][0]["volumeMounts"]}
        assert mounts == {volume["name"] for volume in template["spec"]["volumes"]}
