"""The pure parts of the balance benchmark: efficiency and its factors, shares, targets, settings; and one short run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import balance_plot
from benchmarks.balance import lines
from benchmarks.balance_figures import (
    Steps,
    batch_size_alone,
    counted,
    factors,
    oracle_shares,
    percentile,
    rate_at,
    reaction,
    targets,
    time_over,
)
from benchmarks.balance_places import groups_folder, limit, parts_of_core
from benchmarks.balance_settings import Setting, all_settings, choose
from benchmarks.report import verdicts

ROOT = Path(__file__).parents[2]


def turn(method: str, ends: list[float], rows: list[int], compute: list[float], **more: Any) -> dict[str, Any]:
    """A turn in which every rank does the same at each step."""
    ranks = [
        {"steps": [(end, 100, n, c, 0.01) for end in ends], "controller_seconds": 0.002}
        for n, c in zip(rows, compute, strict=True)
    ]
    return {"method": method, "counted": True, "ranks": ranks, **more}


def test_the_first_step_of_a_turn_is_not_counted():
    steps = counted([turn("auto", [5.0, 6.0, 8.0], [30, 10], [0.9, 0.3]), turn("auto", [0.0, 1.0], [30, 10], [1, 1])])
    assert steps.seconds == 4.0
    assert steps.each == [1.0, 2.0, 1.0]
    assert steps.rows == [[30, 10]] * 3
    assert steps.rate == 30.0
    assert steps.controller_seconds == pytest.approx(0.004)


@pytest.mark.parametrize("compute", [[[1.0, 1.0]], [[0.4, 0.9], [0.7, 0.1]], [[0.0, 2.0], [0.5, 0.5]]])
def test_the_factors_make_the_efficiency(compute):
    steps = Steps(3.0, [1.5] * len(compute), [[30, 10]] * len(compute), compute, 0.3, 0.003)
    found = factors(steps, [50.0, 20.0])
    assert found["E"] == pytest.approx(found["rows_per_second"] / 70)
    assert found["batch_size"] * found["balance"] * found["exposure"] == pytest.approx(found["E"])
    assert found["input"] == pytest.approx(0.1)
    assert found["controller"] == pytest.approx(0.001)


def test_an_even_split_of_uneven_ranks_loses_by_balance_alone():
    """Ranks of speeds 4 and 1 that compute at their own rates, with nothing else in a step."""
    found = factors(Steps(8.0, [8.0], [[8, 8]], [[2.0, 8.0]], 0.0, 0.0), [4.0, 1.0])
    assert found["batch_size"] == pytest.approx(1)
    assert found["exposure"] == pytest.approx(1)
    assert found["balance"] == pytest.approx(found["E"]) == pytest.approx(0.4)
    assert found["mean_over_max"] == pytest.approx(5 / 8)


def test_where_compute_was_not_measured_there_are_no_factors():
    found = factors(Steps(9.0, [1, 1, 7], [[5, 5]] * 3, [[0.0, 0.0]] * 3, 0.0, 0.0), [1.0, 1.0])
    assert set(found) == {"rows_per_second", "E", "stalls"}
    assert found["stalls"] == 1


def test_percentiles_are_values_that_were_measured():
    assert percentile(list(range(1, 11)), 0.1) == 1
    assert percentile([3.0], 0.1) == 3.0
    assert percentile(list(range(1, 101)), 0.1) == 10


def test_rates_between_measured_batches():
    profile = {64: 100.0, 256: 300.0}
    assert rate_at(profile, 128) == pytest.approx(200)
    assert (rate_at(profile, 1), rate_at(profile, 64), rate_at(profile, 999)) == (100, 100, 300)


def test_batch_size_alone_is_1_at_the_best_batches():
    profiles = [{64: 100.0, 128: 200.0}, {64: 50.0, 128: 40.0}]
    assert batch_size_alone([128, 64], profiles, [200.0, 50.0]) == pytest.approx(1)
    assert batch_size_alone([64, 64], profiles, [200.0, 50.0]) < 0.7
    assert batch_size_alone([128, 0], profiles, [200.0, 50.0]) == pytest.approx(1)


def test_the_oracle_shares_by_rates_at_the_local_batches():
    flat = {64: 100.0, 512: 100.0}
    assert oracle_shares([flat, {64: 50.0, 512: 50.0}], 300) == pytest.approx([200, 100])
    rising = {64: 60.0, 512: 120.0}
    shares = oracle_shares([flat, rising], 256)
    assert sum(shares) == pytest.approx(256)
    assert shares[0] / 100 == pytest.approx(shares[1] / rate_at(rising, shares[1]), rel=1e-3)
    falling = {64: 100.0, 512: 10.0}  # computed in pieces of 64
    assert oracle_shares([flat, falling], 600) == pytest.approx([300, 300])


def test_time_over_another_method_is_the_median_over_rounds():
    turns = [turn("auto", [0, 1.0], [8, 8], [1, 1]), turn("oracle", [0, 0.5], [8, 8], [1, 1])]
    turns += [turn("oracle", [0, 2.0], [8, 8], [1, 1]), turn("auto", [0, 2.0], [8, 8], [1, 1])]
    turns += [turn("auto", [0, 3.0], [8, 8], [1, 1]), turn("oracle", [0, 2.0], [8, 8], [1, 1])]
    assert time_over(turns, "auto", "oracle") == pytest.approx(1.5)
    assert time_over(turns, "auto", "off") is None


def test_the_reaction_compares_settled_steps():
    slow, fast = [0.0, 9.0, 18.0], [18 + 1.1 * step for step in range(1, 5)]
    turns = [turn("auto", slow + fast, [8, 8], [1, 1]), turn("oracle", [0, 1.0, 2.0], [8, 8], [1, 1])]
    assert reaction(turns, 2)["auto_over_oracle"] == pytest.approx(1.1)


def test_targets_are_the_issues():
    def plain(network: str, size: int, efficiency: float, **more: Any) -> dict[str, Any]:
        return Setting("1:4.8", network, size).as_json() | {"E_auto": efficiency, "auto_over_oracle": 1.0, **more}

    found = verdicts(
        targets(
            [
                plain("local", 512, 0.96),
                plain("local", 2048, 0.94),
                plain("1gbit", 512, 0.81),
                plain("1gbit", 2048, 0.89),
                Setting("1:1", "local", 512).as_json() | {"auto_rate_over_even": 0.98},
                Setting("1:1.78", "local", 512, "varying").as_json()
                | {"mean_over_max": 0.99, "mean_over_max_p10": 0.9},
                Setting("1:1.78", "local", 512, "reaction").as_json() | {"auto_over_oracle": 1.06, "controller": 0.001},
            ]
        )
    )
    assert found["missed"] == [
        "1:4.8/local/2048: E_auto",
        "1:4.8/1gbit/2048: E_auto",
        "1:1/local/512: rows/s over even's",
        "1:1.78/local/512/varying: mean/max, 10th pct",
        "1:1.78/local/512/reaction: step over the new oracle's",
    ]
    assert "1:1/local/512: E_auto" in found["not_judged"]  # it was skipped


def test_the_table_has_a_line_per_method():
    figures = {"rows_per_second": 4000.0, "E": 0.9, "shares": [400.0, 112.0]}
    found = Setting("1:4.8", "local", 512).as_json() | {"methods": {"auto": figures, "ddp": {"E": 0.5}}}
    first, second = lines(found)
    assert first == ("1:4.8/local/512", "auto", "4,000", "0.900", "-", "-", "-", "-", "-", "400:112")
    assert second[1:4] == ("ddp", "-", "0.500")
    assert lines(found | {"methods": {}}) == []


def test_settings_are_chosen_by_name_or_by_parts():
    names = [setting.name for setting in all_settings()]
    assert len(names) == len(set(names)) == 18
    assert [setting.name for setting in choose("1:4.8/local/512")] == ["1:4.8/local/512"]
    assert [setting.name for setting in choose("1:1/1gbit,reaction")] == [
        "1:1/1gbit/512",
        "1:1/1gbit/2048",
        "1:1.78/local/512/reaction",
    ]
    assert len(choose("local")) == 10
    assert choose(None) == all_settings()
    with pytest.raises(ValueError, match="no setting fits 'nothing'"):
        choose("nothing")


def test_ranks_that_share_a_core_get_less_than_half_of_it():
    assert parts_of_core([1.0, 0.5], 2) == [1.0, 0.5]
    assert parts_of_core([1.0, 1.0, 1.0, 0.5], 2) == pytest.approx([0.48, 0.48, 0.48, 0.24])


def test_quotas_are_written_as_each_version_wants_them(tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "two/cpu.max").touch()
    limit(tmp_path / "two", 0.56)
    assert (tmp_path / "two/cpu.max").read_text() == "5600 10000"
    limit(tmp_path / "two", 1)
    assert (tmp_path / "two/cpu.max").read_text() == "max 10000"
    (tmp_path / "one").mkdir()
    limit(tmp_path / "one", 0.2)
    written = [(tmp_path / "one" / f"cpu.cfs_{name}_us").read_text() for name in ("period", "quota")]
    assert written == ["10000", "2000"]
    limit(tmp_path / "one", 1)
    assert (tmp_path / "one/cpu.cfs_quota_us").read_text() == "-1"
    assert groups_folder() is None or groups_folder().is_dir()


@pytest.mark.parametrize(
    "options", [["--settings", "1:2"], ["--methods", "off,magic"], ["--rounds", "0"], ["--steps", "3"]]
)
def test_wrong_options_are_told(options):
    command = [sys.executable, "-m", "benchmarks.balance", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "benchmarks.balance: error: " in done.stderr


@pytest.mark.parametrize("there", [True, False])
def test_the_picture_is_of_the_committed_figures(tmp_path, capsys, monkeypatch, there):
    if there:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert balance_plot.main(["--out", str(tmp_path / "balance.png")]) == (0 if there else 2)
    assert ("matplotlib is missing" in capsys.readouterr().err) is not there
    assert (tmp_path / "balance.png").exists() is there
    settings = json.loads((ROOT / "benchmarks" / "results" / "balance.json").read_text())["settings"]
    shown = balance_plot.chosen(settings)
    assert len(shown) == 8
    assert {setting["kind"] for setting in shown} == {"plain"}


@pytest.mark.slow
def test_the_command_ends_with_its_figures(tmp_path):
    """An even setting without quotas needs no root."""
    words = ["--settings", "1:1/local/512", "--methods", "off,original,auto", "--rounds", "1", "--steps", "4"]
    words += ["--seconds", "0.1", "--workdir", str(tmp_path), "--result", str(tmp_path / "result.json")]
    command = [sys.executable, "-m", "benchmarks.balance", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "result.json").read_text())
    (setting,) = found["settings"]
    assert (setting["ratio"], setting["network"], setting["batch_size"]) == ("1:1", "local", 512)
    assert all(setting[f"E_{name}"] > 0 for name in ("even", "original", "auto"))
    assert "1:1/local/512: time over oracle's" in found["not_judged"]
    figures = setting["methods"]["auto"]
    assert figures["batch_size"] * figures["balance"] * figures["exposure"] == pytest.approx(setting["E_auto"])
