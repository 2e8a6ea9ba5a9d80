"""The review files of a call: local ones, and those on HDFS or S3."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mr.errors import UsageError
from mr.job import Runner
from mr.reading import EXTENSIONS
from mr.stores import Input, RemoteFile, store_of


def find_inputs(arguments: Sequence[str], runner: Runner) -> tuple[Input, ...]:
    """The files of all arguments, sorted by base name, then path or URI: this order numbers them.

    Args:
        arguments: paths, URIs, and patterns of them.
        runner: whose section of mrjob.conf says how URIs are reached; Spark's for inline and local.

    Raises:
        UsageError: there is no such file, or it cannot be used.
    """
    files: list[Input] = []
    filesystem = None
    for argument in arguments:
        if "://" in argument and not Path(argument).exists():
            filesystem = filesystem or _filesystem(replace(runner, name="spark") if runner.is_here else runner)
            files += _remote(argument, filesystem)
        else:
            files += _local(argument)
    for file in files:
        if not file.name.lower().endswith(EXTENSIONS):
            raise UsageError(f"{file}: unknown kind of file; give {', '.join(EXTENSIONS)}")
    return tuple(sorted(files, key=lambda file: (file.name, str(file))))


def _local(argument: str) -> list[Path]:
    path = Path(argument)
    matches = [path] if path.exists() else [Path(match) for match in glob.glob(argument, recursive=True)]
    if not matches:
        raise UsageError(f"{argument}: no such file; check the path")
    for path in matches:
        if path.is_dir():
            raise UsageError(f"{path}: a folder; name the files in it: {path}/*.json.gz")
        if not path.is_file():
            raise UsageError(f"{path}: no regular file; it is read twice: save it as a file first")
        if not os.access(path, os.R_OK):
            raise UsageError(f"{path}: may not be read; check its permissions")
    return matches


def _filesystem(runner: Runner) -> Any:
    from mr.remote import open_filesystem

    with tempfile.TemporaryDirectory(prefix="mr-inputs-") as scratch:
        return open_filesystem(runner, Path(scratch))


def _remote(uri: str, filesystem: Any) -> list[RemoteFile]:
    try:
        store = store_of(filesystem, uri)
        found = store.sizes(uri)
    except FileNotFoundError as error:
        raise UsageError(
            f"{uri}: the command {error.filename} is not here, which would read it; set HADOOP_HOME, or hadoop_bin in "
            "mrjob.conf; for s3:// install the extra: pip install 'uneven-engine[emr]'"
        ) from None
    except OSError as error:
        raise UsageError(f"{uri}: cannot be read: {error}; check the address, the network and your rights") from None
    if not found:
        raise UsageError(
            f"{uri}: no such file; check the path, and name files, not a folder: {uri.rstrip('/')}/*.json.gz"
        )
    return [RemoteFile(path, size, store) for path, size in found.items()]
