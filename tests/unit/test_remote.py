"""What is fetched from a cluster is whole, or nothing is: stores, and the way of a job's output, without an engine."""

from __future__ import annotations

import gzip
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mr.clean import CleanJob
from mr.count import CountJob
from mr.errors import RunError, UsageError
from mr.inputs import find_inputs
from mr.job import JobRun, Runner, check_runner
from mr.reading import read_records
from mr.remote import PLACE, _put_input, _removed_on_failure, _take_output, discard
from mr.review import Fields
from mr.runners import runner_arguments
from mr.stores import RemoteFile, store_of

ROOT = Path(__file__).parents[2]
# `hadoop fs` for file:// URIs, by other commands.
HADOOP = """#!/usr/bin/env python3
import os, shutil, sys
from glob import glob
from pathlib import Path
command, *arguments = [word.removeprefix("file://") for word in sys.argv[2:]]
if command == "-ls":
    found = glob(arguments[-1])
    if not found:
        sys.exit(f"ls: `{arguments[-1]}': No such file or directory")
    for path in found:
        kind = "d" if os.path.isdir(path) else "-"
        print(f"{kind}rw-r--r--   1 root some group {os.path.getsize(path):>10} 2026-01-02 03:04 file://{path}")
elif command == "-mkdir":
    os.makedirs(arguments[-1])
elif command in ("-put", "-get"):
    for path in arguments[:-1]:
        shutil.copy(path, arguments[-1])
elif command == "-cat":
    sys.stdout.buffer.write(Path(arguments[0]).read_bytes()[: -3 if "cut" in arguments[0] else None])
elif command == "-rm":
    shutil.rmtree(arguments[-1])
else:
    sys.exit(f"rm: {command}: Permission denied")
"""


@pytest.fixture
def filesystem(tmp_path):
    """mrjob's filesystem with a hadoop command that works on local files."""
    command = tmp_path / "hadoop"
    command.write_text(HADOOP)
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return SimpleNamespace(hadoop=SimpleNamespace(get_hadoop_bin=lambda: [sys.executable, str(command)]))


@pytest.fixture(params=["plain", "hadoop"])
def place(request, tmp_path, filesystem):
    """(store, folder in it, the same as a Path)."""
    there = tmp_path / "there"
    folder = str(there) if request.param == "plain" else f"file://{there}"
    return store_of(filesystem, folder), folder, there


def job_output(there, *names, success=True):
    (there / "output").mkdir(parents=True)
    for number, name in enumerate(names):
        (there / "output" / name).write_bytes(b"b\t1\na\t%d\n" % number)
    if success:
        (there / "output" / "_SUCCESS").touch()


def take(job, place, tmp_path, alias="hadoop", **changes):
    store, folder, _ = place
    cluster = SimpleNamespace(folder=folder, alias=alias, _spark_master=lambda: "yarn")
    notes: list[str] = []
    (tmp_path / "scratch").mkdir(exist_ok=True)
    run = job_run(job, alias, inputs=[], output=tmp_path / "out", scratch=tmp_path / "scratch", note=notes.append)
    _take_output(run, cluster, changes.get("store", store))
    return notes


def job_run(job, runner, **more):
    return JobRun(job_class=job, runner=Runner(name=runner, cores=2), files={}, **more)


def test_what_is_put_is_listed_fetched_and_removed(place, tmp_path):
    store, folder, there = place
    files = [tmp_path / name for name in ("part-0", "part-1", "other")]
    for path in files:
        path.write_bytes(path.name.encode())
    store.put(files, f"{folder}/x")
    assert sorted(path.name for path in (there / "x").iterdir()) == ["other", "part-0", "part-1"]
    sizes = store.sizes(f"{folder}/x/part-*")
    assert sizes == {f"{folder}/x/part-0": 6, f"{folder}/x/part-1": 6}
    assert store.sizes(f"{folder}/nothing*") == {}
    assert store.sizes(f"{folder}/x") == {}, "a folder is no file"
    with store.open(f"{folder}/x/other", 5) as stream:
        assert stream.read() == b"other"
        assert stream.tell() == 5
    (tmp_path / "here").mkdir()
    store.get(sizes, tmp_path / "here")
    assert (tmp_path / "here" / "part-1").read_bytes() == b"part-1"
    store.remove(f"{folder}/x")
    assert not (there / "x").exists()


@pytest.mark.parametrize("size", [3, 9])
def test_a_file_of_another_size_is_an_error(place, size):
    store, folder, there = place
    there.mkdir()
    (there / "x").write_bytes(b"hello")
    with pytest.raises(OSError, match="were announced"), store.open(f"{folder}/x", size) as stream:
        stream.read()


def test_an_error_of_hadoop_is_told(filesystem):
    filesystem.hadoop.get_hadoop_bin = lambda: ["sh", "-c", "echo 'put: Permission denied' >&2; exit 1", "sh"]
    with pytest.raises(OSError, match="put: Permission denied"):
        store_of(filesystem, "hdfs:///x").sizes("hdfs:///x/*")
    with pytest.raises(OSError, match="s3"):
        store_of(SimpleNamespace(), "hdfs:///x")


def test_output_is_fetched_with_its_parts_sorted_for_spark(place, tmp_path):
    job_output(place[2], "part-00000", "part-00001", ".part-00000.crc")
    (note,) = take(CountJob, place, tmp_path, alias="spark")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        "part-00000": b"a\t0\nb\t1\n",
        "part-00001": b"a\t1\nb\t1\n",
    }
    assert "2 parts fetched" in note
    assert not place[2].exists()


def test_without_success_nothing_is_fetched(place, tmp_path):
    job_output(place[2], "part-00000", success=False)
    with pytest.raises(RunError, match="no _SUCCESS"):
        take(CountJob, place, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_part_that_arrives_short_or_not_at_all_stops_the_run(place, tmp_path):
    store, _, there = place
    job_output(there, "part-00000", "part-00001")
    real = store.get

    def short(files, target):
        real(files, target)
        (target / "part-00001").write_bytes(b"a\t")

    def one(files, target):
        real({path: size for path, size in files.items() if path.endswith("0")}, target)

    for get in (short, one):
        broken = SimpleNamespace(sizes=store.sizes, get=get, remove=store.remove)
        with pytest.raises(RunError, match="part-00001"):
            take(CountJob, place, tmp_path, store=broken)
        assert not (tmp_path / "out").exists()
        if not there.joinpath("output", "part-00000").exists():
            break  # a shared folder's parts were moved


def test_the_failure_is_told_and_not_that_its_folder_stays(capsys):
    def remove(folder):
        raise OSError("no network")

    with pytest.raises(ZeroDivisionError), _removed_on_failure(SimpleNamespace(remove=remove), "hdfs:///x"):
        _ = 1 / 0
    assert "hdfs:///x could not be removed (no network)" in capsys.readouterr().err


def test_what_other_jobs_read_stays_until_it_is_discarded(tmp_path, place, monkeypatch):
    store, folder, there = place
    job_output(there, "part-00000")
    (there / "input").mkdir()
    take(CleanJob, place, tmp_path)
    (stays,) = (tmp_path / "out").iterdir()
    assert stays.name == PLACE
    assert not (there / "input").exists()
    again = job_run(CountJob, "hadoop", inputs=[stays], output=tmp_path / "count", scratch=tmp_path)
    assert _put_input(again, None, store) == f"{folder}/output"
    monkeypatch.setattr("mr.remote.open_filesystem", lambda *_, **__: None)
    monkeypatch.setattr("mr.remote.store_of", lambda *_: store)
    discard(tmp_path, Runner(name="hadoop"))
    assert not there.exists()
    assert not stays.parent.exists(), "an empty folder would look like output"


def test_a_remote_file_is_read_as_it_is_and_a_cut_one_is_told(filesystem, tmp_path):
    text = gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n')
    store = store_of(filesystem, "file:///x")
    for name in ("whole.jsonl.gz", "cut.jsonl.gz"):
        (tmp_path / name).write_bytes(text)
    whole, cut = (RemoteFile(f"file://{tmp_path}/{name}.jsonl.gz", len(text), store) for name in ("whole", "cut"))
    assert whole.name == "whole.jsonl.gz"
    assert whole.stat().st_size == len(text)
    assert [record for _, _, record in read_records(whole, Fields())] == [b'{"a": 1}', b'{"a": 2}']
    with pytest.raises(UsageError, match="announced"):
        list(read_records(cut, Fields()))


def test_inputs_by_uri(tmp_path):
    command = tmp_path / "hadoop"
    command.write_text(HADOOP)
    command.chmod(0o755)
    conf = tmp_path / "mrjob.conf"
    conf.write_text(json.dumps({"runners": {"hadoop": {"hadoop_bin": str(command)}}}))
    for name in ("b.json", "a.json", "c.txt"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "folder.json").mkdir()
    runner = Runner(name="hadoop", conf=conf)
    found = find_inputs([f"file://{tmp_path}/*.json", str(tmp_path / "b.json")], runner)
    assert [str(file) for file in found] == [
        f"file://{tmp_path}/a.json", str(tmp_path / "b.json"), f"file://{tmp_path}/b.json",
    ]  # fmt: skip
    conf.write_text(json.dumps({"runners": {"hadoop": {"hadoop_bin": "/no/hadoop"}}}))
    with pytest.raises(UsageError, match="HADOOP_HOME"):
        find_inputs(["hdfs:///x.json"], runner)
    conf.write_text(json.dumps({"runners": {"hadoop": {"hadoop_bin": str(command)}}}))
    for name, told in (("x.json", "no such file"), ("c.txt", "unknown kind"), ("folder.json", "no such file")):
        with pytest.raises(UsageError, match=told):
            find_inputs([f"file://{tmp_path}/{name}"], runner)


def test_what_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MRJOB_CONF", os.devnull)
    monkeypatch.delenv("SPARK_HOME", raising=False)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    cases = [("hadoop", "hadoop", "hadoop_bin"), ("spark", "pyspark", "uneven-engine[spark]"),
             ("emr", "boto3", "uneven-engine[emr]")]  # fmt: skip
    for runner, package, told in cases:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UsageError) as error:
            runner_arguments(Runner(name=runner), tmp_path)
        assert told in str(error.value)
    monkeypatch.setitem(sys.modules, "pyspark", SimpleNamespace())
    with pytest.raises(UsageError, match="no java"):
        runner_arguments(Runner(name="spark"), tmp_path)


def test_a_path_that_hadoop_would_read_as_a_pattern_is_refused(tmp_path):
    for name in ("a b", "a,b", "a[b]", "a{b}", "a*b", "a%b"):
        with pytest.raises(UsageError, match="TMPDIR"):
            check_runner(tmp_path / name, Runner(name="spark"))
        check_runner(tmp_path / name, Runner(name="local"))


def test_spark_is_local_unless_told_otherwise(tmp_path, monkeypatch):
    (tmp_path / "java").write_text("")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SPARK_HOME", "/opt/spark")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("MRJOB_CONF", os.devnull)
    conf = tmp_path / "mrjob.conf"
    conf.write_text(json.dumps({"runners": {"spark": {"spark_master": "yarn"}}}))
    for given, expected in (
        ({"conf": None, "spark_master": None}, "local[3]"),
        ({"conf": conf, "spark_master": None}, "yarn"),
        ({"conf": conf, "spark_master": "spark://host:7077"}, "spark://host:7077"),
    ):
        arguments = runner_arguments(Runner(name="spark", cores=3, **given), tmp_path)
        assert arguments[arguments.index("--spark-master") + 1] == expected
        assert ("--spark-tmp-dir" in arguments) == expected.startswith("local")


def test_tasks_need_nothing_but_mrjob():
    """What a worker must have installed: no numpy, torch, HDF5 or MPI."""
    code = (
        "import sys; sys.modules['pyspark'] = None; before = set(sys.modules); import mr.clean, mr.count, mr.encode;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    needless = {"numpy", "torch", "h5py", "hdf5plugin", "mpi4py", "horovod", "psutil", "tqdm"}
    assert not needless & set(done.stdout.split())
    assert {"mr", "native", "mrjob"} <= set(done.stdout.split())
