"""A short round of the fuzzing campaign (tests/fuzz), and that the campaign notices what it is there to notice."""

from __future__ import annotations

import ctypes
import json
import signal
import struct
import subprocess
import sys
from pathlib import Path

import hdf5plugin
import pytest

from tests.fuzz.campaign import Campaign
from tests.fuzz.cases import KINDS, Case, Cases
from tests.fuzz.material import INDEX, MANIFEST, PART, Material, make_material
from tests.fuzz.oracle import lz4_block, slow_read
from tests.fuzz.subject import CRASH, ERROR, FAILURES, HANG, REFUSED, RIGHT, WRONG, Subject

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def subject(material, tmp_path_factory) -> Subject:
    return Subject(material, tmp_path_factory.mktemp("subject"))


def test_a_short_round_finds_nothing():
    command = [sys.executable, "-m", "tests.fuzz", "--count", "4000", "--every", "16", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cases"] == 4000 + found["truncations"] > 4500
    assert sum(found["outcomes"][outcome] for outcome in FAILURES) == 0
    # Not everything may be refused: then wrong rows could not be seen.
    assert found["outcomes"][RIGHT] > 400
    assert found["kinds"]["signed chunk"][RIGHT] > 10
    assert found["kinds"]["signed index's numbers"][REFUSED] > 10


def test_a_case_is_the_same_whenever_it_is_made(material):
    cases, again = Cases(material, 3), Cases(material, 3)
    assert all(cases.case(number) == again.case(number) for number in range(200))
    assert any(cases.case(number) != Cases(material, 4).case(number) for number in range(200))
    assert {cases.kind(number) for number in range(200)} == {kind.name for kind in KINDS}


def test_valid_files_are_read_rightly(material, subject):
    for name, pristine in material.datasets.items():
        for files in ({}, {INDEX: None}, {PART: pristine.files[PART]}):
            assert subject.attempt(Case(name, files), 0) == (RIGHT, "")


def test_wrong_rows_and_other_errors_are_noticed(material, subject, monkeypatch):
    other = {path: material.others["lz4"][path] for path in (PART, INDEX, MANIFEST)}
    assert subject.attempt(Case("lz4", other), 0)[0] == WRONG  # valid, but not what was asked for
    assert subject.attempt(Case("lz4", other, signed=True), 0) == (RIGHT, "")
    monkeypatch.setattr("tests.fuzz.subject.verify", lambda folder: 1 / 0)
    assert subject.attempt(Case("lz4", {}), 0)[0] == ERROR


def test_the_slow_twin_is_strict(material):
    pristine = material.datasets["lz4"]
    assert slow_read(pristine.files, "train") == pristine.rows
    chunk = pristine.chunks[0]
    for path, at in ((PART, chunk.offset + 20), (PART, chunk.lengths), (INDEX, 0), (INDEX, chunk.checksum_at)):
        data = bytearray(pristine.files[path])
        data[at] ^= 1
        with pytest.raises((ValueError, struct.error)):
            slow_read(pristine.files | {path: bytes(data)}, "train")
    assert lz4_block(b"\x40rows", 4) == b"rows"
    assert lz4_block(b"\x12a\1\0\x50bcdef", 12) == b"aaaaaaabcdef"
    for block in (b"\x40row", b"\x12a\2\0\x50bcdef", b"\x12a\1\0\x50bcde", b"\x1fa\1\0\xff\xff"):
        with pytest.raises(ValueError, match="LZ4"):
            lz4_block(block, 12)


@pytest.mark.parametrize("length", [4, 5, 8, 11, 18])
@pytest.mark.parametrize("room", [0, 5, 100])
def test_a_match_at_offset_0_is_zeros_to_the_slow_twin_and_to_liblz4(length, room):
    """The format has none and liblz4 does not refuse it; old memory there would be rows by luck."""
    block = bytes([0x10 | length - 4]) + b"a\0\0" + bytes([0xF0, room]) + b"b" * (15 + room)
    size = 1 + length + 15 + room
    function = ctypes.CDLL(str(Path(hdf5plugin.PLUGIN_PATH) / "libh5lz4.so")).LZ4_decompress_safe
    target = ctypes.create_string_buffer(b"\xff" * size, size)
    assert function(block, target, len(block), size) == size
    assert target.raw == lz4_block(block, size) == b"a" + bytes(length) + b"b" * (15 + room)


@pytest.mark.parametrize(("trouble", "outcome"), [("crash", CRASH), ("hang", HANG)])
def test_a_crash_and_a_hang_are_counted_and_named(trouble, outcome, monkeypatch):
    """Case 5 of the campaign ends its worker, or never ends; all others are still run."""
    monkeypatch.setenv("FUZZ_SABOTAGE", f"5 {trouble}")
    campaign = Campaign(seed=1, count=20, jobs=1, every=10**9, seconds=3)
    result = campaign.run()
    assert [(failure["case"], failure["outcome"]) for failure in result.failures] == [(5, outcome)]
    assert sum(result.totals.values()) == 20 + result.truncations
    assert result.failed == 1
    assert trouble == "hang" or f"status -{int(signal.SIGSEGV)}" in result.failures[0]["text"]
    assert not campaign.folder.exists()
