"""The engines, each started once; without Java or pyspark their tests are skipped with the reason."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.hadoop_alone import Hadoop, build_hadoop
from tests.engines.runs import ROOT
from tests.engines.spark_cluster import spark_cluster


def pytest_collection_modifyitems(items):
    missing = [name for name in ("java", "javac") if not shutil.which(name)]
    missing += [name for name in ("pyspark", "boto3", "moto") if not importlib.util.find_spec(name)]
    if missing:
        reason = f"not installed: {', '.join(missing)}; make engines installs all but Java"
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def master(tmp_path_factory) -> Iterator[str]:
    with spark_cluster(tmp_path_factory.mktemp("spark") / "cluster") as url:
        yield url


@pytest.fixture(scope="session")
def hadoop(tmp_path_factory) -> Hadoop:
    return build_hadoop(tmp_path_factory.mktemp("hadoop") / "alone")


@pytest.fixture
def conf(tmp_path) -> Callable[..., Path]:
    """Writes an mrjob.conf (JSON is YAML too) whose tasks find this checkout."""

    def write(runner: str, **options: Any) -> Path:
        path = tmp_path / f"mrjob.{len(list(tmp_path.iterdir()))}.conf"
        options["cmdenv"] = {"PYTHONPATH": str(ROOT), **options.get("cmdenv", {})}
        path.write_text(json.dumps({"runners": {runner: options}}))
        return path

    return write
