"""EMR against moto, a stand-in for Amazon's services on loopback, up to the submitted step; the workers' bootstrap."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import venv
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from mr import sample
from mr.count import CountJob
from mr.errors import RunError
from mr.job import JobRun, Runner
from mr.remote import _take_output, open_filesystem
from mr.stores import store_of
from tests.engines.runs import ROOT, call, errors, files, made

EXAMPLE = ROOT / "examples" / "mrjob.conf.example"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = {"cloud_tmp_dir": "s3://bucket/tmp/", "cloud_fs_sync_secs": 0}
SUBMIT_SECONDS = 180


@pytest.fixture
def aws(monkeypatch):
    """moto's server; yields its address."""
    from moto.emr.models import Application, Cluster
    from moto.server import ThreadedMotoServer

    def add_applications(self, applications):
        # moto 5.2.5 looks for `name`, boto3 sends Name, and EMR gives it back, which mrjob relies on.
        self.applications.extend(Application(app["Name"], app.get("Version", ""), [], {}) for app in applications)

    monkeypatch.setattr(Cluster, "add_applications", add_applications)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    # Its state is the process's, not the server's.
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST")).close()
    yield address
    server.stop()


@pytest.fixture
def client(aws):
    import boto3

    return lambda service: boto3.client(service, endpoint_url=aws, region_name="us-east-1")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """This project's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_example_leads_to_a_submitted_step(aws, client, wheel, tmp_path):
    """What a user gets from examples/mrjob.conf.example, with a bucket, a wheel and moto's address put in."""
    import yaml

    conf = yaml.safe_load(EXAMPLE.read_text())
    emr = conf["runners"]["emr"]
    assert emr["bootstrap"] == [f"bash examples/emr/bootstrap.sh# dist/{wheel.name}#"]
    emr["bootstrap"] = [f"bash {ROOT}/examples/emr/bootstrap.sh# {wheel}#"]
    emr |= {f"{service}_endpoint": aws for service in ("s3", "emr", "ec2", "iam")}
    emr |= BUCKET | {"check_cluster_every": 1}
    path = tmp_path / "mrjob.conf"
    path.write_text(yaml.safe_dump(conf))
    client("s3").create_bucket(Bucket="bucket")
    reviews = tmp_path / "reviews.jsonl.gz"
    lines = list(sample.lines(300, 1))
    reviews.write_bytes(gzip.compress(b"".join(lines)))
    client("s3").upload_file(str(reviews), "bucket", "in/reviews.jsonl.gz")
    arguments = ["s3://bucket/in/*.jsonl.gz", "--out", tmp_path / "data", "-r", "emr", "--conf-path", path]
    running = subprocess.Popen(
        [sys.executable, "-m", "mr", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        cluster, step = wait_for_step(client("emr"), running)
        check_cluster(client("emr").describe_cluster(ClusterId=cluster["Id"])["Cluster"])
        check_step(step, client("s3"), lines)
        check_bootstrap(client, cluster["Id"], wheel)
    finally:
        running.send_signal(signal.SIGTERM)
        told = running.communicate(timeout=120)[1]
    assert running.returncode not in (0, 1, 2), told
    assert "Traceback" not in told
    left = client("s3").list_objects_v2(Bucket="bucket", Prefix="tmp/")
    assert not [entry["Key"] for entry in left.get("Contents", []) if "/input/" in entry["Key"]]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.work", "mrjob.conf", "reviews.jsonl.gz"]


def wait_for_step(emr, running) -> tuple[dict, dict]:
    end = time.monotonic() + SUBMIT_SECONDS
    while time.monotonic() < end:
        assert running.poll() is None, running.stderr.read()
        for cluster in emr.list_clusters()["Clusters"]:
            for step in emr.list_steps(ClusterId=cluster["Id"])["Steps"]:
                return cluster, step
        time.sleep(0.5)
    running.kill()
    raise AssertionError(f"no step within {SUBMIT_SECONDS} s: {running.communicate()[1]}")


def check_cluster(cluster: dict) -> None:
    assert cluster["ReleaseLabel"] == "emr-7.5.0"
    assert cluster["ServiceRole"] == "EMR_DefaultRole"
    assert cluster["Ec2InstanceAttributes"]["IamInstanceProfile"] == "EMR_EC2_DefaultRole"


def check_step(step: dict, s3, lines: list[bytes]) -> None:
    """The step is CleanJob's: Python 3.11 on what was put there, with the committer as it must be."""
    arguments = step["Config"]["Args"]
    assert "hadoop-streaming" in arguments[0]
    option = dict(pairwise(arguments))
    assert option["-mapper"].startswith("python3.11 clean.py --step-num=0 --mapper --settings settings.json")
    assert option["-reducer"].startswith("python3.11 clean.py --step-num=0 --reducer --settings settings.json")
    for setting in (
        "mapreduce.fileoutputcommitter.algorithm.version=1",
        "mapreduce.fileoutputcommitter.marksuccessfuljobs=true",
        "mapreduce.output.fileoutputformat.compress=false",
        "mapreduce.job.reduces=32",
    ):
        assert setting in arguments
    folder = option["-input"].removesuffix("/input")
    assert option["-output"] == f"{folder}/output/"
    prefix = option["-input"].removeprefix("s3://bucket/") + "/"
    (item,) = s3.list_objects_v2(Bucket="bucket", Prefix=prefix)["Contents"]
    shard = s3.get_object(Bucket="bucket", Key=item["Key"])["Body"].read()
    assert shard == b"".join(b"0\t%d\t%s" % (number, line) for number, line in enumerate(lines, 1))
    script, settings = (entry.rpartition("#")[0] for entry in option["-files"].split(","))
    assert b"class CleanJob" in s3.get_object(Bucket="bucket", Key=script.removeprefix("s3://bucket/"))["Body"].read()
    body = s3.get_object(Bucket="bucket", Key=settings.removeprefix("s3://bucket/"))["Body"].read()
    assert json.loads(body)["vocab_size"] == 10_000


def check_bootstrap(client, cluster: str, wheel: Path) -> None:
    """Every node fetches the wheel and runs the bootstrap script."""
    actions = client("emr").list_bootstrap_actions(ClusterId=cluster)["BootstrapActions"]
    assert [action["Name"] for action in actions] == ["master", "idle timeout"]
    script = actions[0]["ScriptPath"].removeprefix("s3://bucket/")
    text = client("s3").get_object(Bucket="bucket", Key=script)["Body"].read().decode()
    assert f"bash $__mrjob_PWD/bootstrap.sh $__mrjob_PWD/{wheel.name}" in text
    keys = [entry["Key"] for entry in client("s3").list_objects_v2(Bucket="bucket", Prefix="tmp/")["Contents"]]
    (uploaded,) = [key for key in keys if key.endswith(wheel.name)]
    assert uploaded in text
    assert client("s3").get_object(Bucket="bucket", Key=uploaded)["Body"].read() == wheel.read_bytes()


def test_the_bootstrap_makes_a_bare_python_run_tasks(wheel, tmp_path):
    """No torch, no Horovod, no numpy: the wheel and mrjob; dnf and sudo are stand-ins."""
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=True)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sudo", 'exec "$@"'), ("dnf", 'echo "$@" >&2')):
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHON": str(bare / "bin" / "python")}
    environment.pop("PYTHONPATH", None)
    command = ["bash", str(ROOT / "examples" / "emr" / "bootstrap.sh"), str(wheel)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "No matching distribution found for mrjob" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    assert "install -y python3.11 python3.11-pip" in done.stderr
    packages = subprocess.run(
        [bare / "bin" / "python", "-m", "pip", "list"], capture_output=True, text=True, check=True
    )
    assert {line.split()[0].lower() for line in packages.stdout.splitlines()[2:]} <= {
        "mrjob", "pip", "pyyaml", "setuptools", "uneven-engine",
    }  # fmt: skip


def test_inputs_on_s3(aws, client, conf, tmp_path):
    """Line numbers and files as from local ones; also with several members in a .gz, which mrjob's cat would cut."""
    lines = list(sample.lines(900, 3))
    texts = {
        "a.jsonl": b"".join(lines[:300]),
        "b.jsonl.gz": gzip.compress(b"".join(lines[300:400])) + gzip.compress(b"".join(lines[400:600])),
        "c.json": b"[" + b",\n".join(lines[600:700]) + b"]",
        "d.csv": b"reviewText,overall\nas said before,5\nfresh,2\n",
    }
    client("s3").create_bucket(Bucket="bucket")
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
        client("s3").put_object(Bucket="bucket", Key=f"in/{name}", Body=text)
    expected = made(tmp_path / "local", *(tmp_path / name for name in texts), "-r", "inline")
    section = conf("spark", s3_endpoint=aws)
    manifest = made(tmp_path / "s3", "s3://bucket/in/*", "-r", "inline", "--conf-path", section)
    assert manifest["inputs"] == expected["inputs"]
    assert files(tmp_path / "s3") == files(tmp_path / "local")
    for uri, told in (("s3://bucket/in/x*.json", "no such file"), ("s3://nobody/x.json", "no such file"),
                      ("s3://bucket/in", "no such file")):  # fmt: skip
        done = call(uri, "--out", tmp_path / "out", "-r", "inline", "--conf-path", section)
        assert (done.returncode, len(errors(done))) == (2, 1), done.stderr
        assert told in done.stderr


def test_output_on_s3_is_fetched_whole(aws, client, conf, tmp_path):
    """As EMR would have left it: two parts, and _SUCCESS last."""
    client("s3").create_bucket(Bucket="bucket")
    (tmp_path / "filesystem").mkdir()
    runner = Runner(name="emr", conf=conf("emr", s3_endpoint=aws, **BUCKET))
    filesystem = open_filesystem(runner, tmp_path / "filesystem")
    store = store_of(filesystem, "s3://bucket/tmp/job")
    parts = {f"part-{number:05d}": b"a\t%d\n" % number * 100_000 for number in range(2)}
    for name, text in parts.items():
        (tmp_path / name).write_bytes(text)
    store.put([tmp_path / name for name in parts], "s3://bucket/tmp/job/output")
    run = JobRun(job_class=CountJob, runner=runner, inputs=[], output=tmp_path / "out", scratch=tmp_path, files={})
    arguments = (run, SimpleNamespace(folder="s3://bucket/tmp/job", alias="emr"), store)
    with pytest.raises(RunError, match="no _SUCCESS"):
        _take_output(*arguments)
    client("s3").put_object(Bucket="bucket", Key="tmp/job/output/_SUCCESS", Body=b"")
    client("s3").put_object(Bucket="bucket", Key="tmp/jobs-of-others/output/part-00000", Body=b"theirs")
    _take_output(*arguments)
    assert files(tmp_path / "out") == parts
    left = client("s3").list_objects_v2(Bucket="bucket")["Contents"]
    assert [entry["Key"] for entry in left] == ["tmp/jobs-of-others/output/part-00000"]
    with pytest.raises(OSError, match="announced"), store.open("s3://bucket/" + left[0]["Key"], 10) as stream:
        stream.read()
