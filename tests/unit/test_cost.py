"""Time and money of mixes of machines: the model, the machines' files, the command, the original's figures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from engine import cost as command
from engine.cost_check import check
from engine.cost_inputs import MOST_MIXES
from engine.cost_machines import OURS, read_catalogue, reference_training
from engine.cost_mixes import (
    Machine,
    Point,
    Training,
    all_mixes,
    cheapest_within,
    count_mixes,
    fastest_within,
    front,
    predict,
)
from engine.cost_table import clock
from engine.simulation_original import ALONE, PUBLISHED
from engine.simulation_ranks import Network

MACHINES = {
    "slow": Machine("slow", 1.0, 100.0),
    "fast": Machine("fast", 2.0, 300.0),
    "four": Machine("four", 6.0, 1200.0, gpus=4, bandwidth=1e9),
}
NETWORK = Network(bandwidth=1e8, latency=1e-4, gradient_bytes=1e7, hidden=0.5)
TRAINING = Training(work=1e6, batch_size=1000, steps=1000.0, network=NETWORK)
RATES = ["--rows-per-second", "g5.xlarge=400", "--rows-per-second", "g4dn.xlarge=200"]
BY_ROWS = ["--rows", "100000", *RATES]


def failing(arguments: list[str], capsys) -> str:
    """The one line of a command that ends with status 2."""
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def answer(arguments: list[str], capsys) -> dict:
    """The object on the last line."""
    assert command.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def by_name(figures: dict) -> dict[tuple, dict]:
    return {tuple(sorted(one["machines"].items())): one for one in figures["mixes"]}


def test_one_machine_takes_its_own_time_and_exchanges_nothing():
    for name, machine in MACHINES.items():
        found = predict({name: 1}, MACHINES, TRAINING)
        assert found.even == found.balanced
        assert found.exchange_seconds == 0
        assert found.ranks == machine.gpus
        assert found.even.seconds == pytest.approx(1e6 / machine.rate)
        assert found.even.dollars == pytest.approx(found.even.seconds / 3600 * machine.dollars_per_hour)


def test_an_even_split_waits_for_the_slowest_gpu_and_balanced_shares_do_not():
    found = predict({"slow": 1, "fast": 1}, MACHINES, replace(TRAINING, network=Network()))
    assert found.even.seconds == pytest.approx(1e6 / 2 / 100)
    assert found.balanced.seconds == pytest.approx(1e6 / 400)
    assert found.saved == pytest.approx(0.5)
    assert found.dollars_per_hour == 3
    assert found.name == "1 slow + 1 fast"


def test_the_exchange_is_the_simulations_ring_over_all_gpus():
    found = predict({"fast": 1, "four": 2}, MACHINES, TRAINING)
    assert found.ranks == 9
    assert found.exchange_seconds == pytest.approx(1000 * NETWORK.seconds(9))
    assert found.even.seconds == pytest.approx(1e6 / 1000 * 112 / 300 + found.exchange_seconds)  # 112 = ceil(1000 / 9)


def test_without_a_bandwidth_the_slowest_machine_bounds_the_ring():
    machines = MACHINES | {"near": Machine("near", 1.0, 100.0, bandwidth=5e8)}
    training = replace(TRAINING, network=Network(gradient_bytes=1e9))
    seconds = predict({"four": 1, "near": 1}, machines, training).exchange_seconds
    assert seconds == pytest.approx(1000 * 2 * 4 / 5 * 1e9 / 5e8)
    assert predict({"four": 1, "slow": 1}, machines, training).exchange_seconds == 0  # of slow it is not known


def test_where_the_batch_grows_more_gpus_take_fewer_steps():
    grown = replace(TRAINING, grows=True)
    one, two = (predict({"fast": 2}, MACHINES, training).exchange_seconds for training in (TRAINING, grown))
    assert two == pytest.approx(one / 2)


def test_balanced_shares_never_lose_and_never_beat_the_sum_of_rates():
    random = np.random.default_rng(5)
    for _ in range(200):
        names = "abc"[: int(random.integers(1, 4))]
        machines = {
            name: Machine(name, 1.0, float(random.uniform(1, 50)), int(random.integers(1, 5))) for name in names
        }
        mix = {name: int(random.integers(1, 4)) for name in names}
        training = Training(1e4, int(random.integers(1, 300)), 10.0, bool(random.integers(2)))
        found = predict(mix, machines, training)
        ideal = 1e4 / sum(machines[name].rate * count for name, count in mix.items())
        assert ideal * (1 - 1e-9) <= found.balanced.seconds <= found.even.seconds * (1 + 1e-9)


def test_all_mixes_are_there_once():
    mixes = all_mixes(["a", "b", "c"], 4)
    assert len(mixes) == count_mixes(3, 4) == 34
    assert len({tuple(mix.items()) for mix in mixes}) == 34
    assert all(1 <= sum(mix.values()) <= 4 for mix in mixes)


def test_the_front_is_what_no_other_beats():
    random = np.random.default_rng(1)
    for _ in range(100):
        points = [Point(*map(float, random.integers(1, 8, 2))) for _ in range(30)]
        slow_twin = [not any(other.beats(point) for other in points) for point in points]
        assert front(points) == slow_twin
    same = [Point(2.0, 1.0), Point(1.0, 1.0 + 1e-12), Point(3.0, 0.5)]
    assert front(same) == [False, True, True]  # a part of 1e-12 more is no other price


def test_the_best_within_a_budget_and_a_deadline():
    outcomes = [predict(mix, MACHINES, TRAINING) for mix in all_mixes(list(MACHINES), 3)]
    for limit in (1.0, 1.7, 2.0, 5.0):
        found = fastest_within(outcomes, limit)
        within = [one.balanced.seconds for one in outcomes if one.balanced.dollars <= limit]
        assert (found.balanced.seconds if found else None) == min(within, default=None)
    for limit in (1.0, 900.0, 5000.0):
        found = cheapest_within(outcomes, limit)
        costs = [one.balanced.dollars for one in outcomes if one.balanced.seconds <= limit]
        assert (found.balanced.dollars if found else None) == min(costs, default=None)


def test_our_file_holds_the_originals_figures():
    found = read_catalogue()
    prices = {"p2.xlarge": 0.90, "g3.4xlarge": 1.14, "g3.16xlarge": 4.56}
    seconds = {"p2.xlarge": ALONE["K80"], "g3.4xlarge": ALONE["M60"], "g3.16xlarge": 13_156}
    for name in prices:
        assert (found.machines[name].dollars_per_hour, found.machines[name].seconds) == (prices[name], seconds[name])
    assert found.machines["g3.16xlarge"].gpus == 4
    runs = {tuple(sorted(run.mix.items())): (run.even, run.balanced) for run in found.reference.measured}
    assert runs == {
        (("g3.4xlarge", 2),): (24_316, None),
        (("g3.4xlarge", 4),): (13_973, None),
        (("g3.16xlarge", 2),): (9_531, None),
        (("g3.4xlarge", 1), ("p2.xlarge", 1)): PUBLISHED["M60", "K80"],
        (("g3.4xlarge", 3), ("p2.xlarge", 1)): PUBLISHED["M60", "M60", "M60", "K80"],
    }
    # Nobody measured the newer ones for this project.
    assert all(one.rows_per_second is None for one in found.machines.values())
    assert sum(one.seconds is None for one in found.machines.values()) >= 5


def test_predicted_against_the_originals_measured_runs():
    figures = check(read_catalogue())
    assert figures["exchange_seconds"] == pytest.approx(2 * (24_316 - 35_920 / 2))
    off = {run["name"]: run["even"]["off"] for run in figures["runs"]}
    assert off == pytest.approx(
        {
            "2 g3.4xlarge": 0.0,  # calibrated
            "4 g3.4xlarge": -0.016,
            "2 g3.16xlarge": -0.018,
            "1 p2.xlarge + 1 g3.4xlarge": -0.027,
            "1 p2.xlarge + 3 g3.4xlarge": -0.145,
        },
        abs=5e-4,
    )
    assert (figures["predictions"], figures["worst_off"]) == (4, pytest.approx(0.145, abs=5e-4))
    two, four = figures["runs"][3:]
    assert two["balanced"]["off"] == pytest.approx(-0.028, abs=5e-4)
    assert four["balanced"]["off"] == pytest.approx(-0.158, abs=5e-4)
    assert two["balanced"]["saved"] == pytest.approx(1 - 37_503 / 39_382)
    assert two["exact_shares"]["predicted"] == pytest.approx(1 / (1 / 63_923 + 1 / 35_920) + 12_712 / 2, rel=1e-4)
    assert four["exact_shares"]["saved_of_measured"] == pytest.approx(0.243, abs=5e-4)


def test_the_check_takes_runs_of_ones_own(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[reference]\nname = "mine"\n[[reference.measured]]\nmix = "a:2"\neven = 600\ncalibrates = true\n'
        '[[reference.measured]]\nmix = "a:3"\neven = 400\nbalanced = 390\ncalibrates = true\n'
        "[machines.a]\ndollars_per_hour = 1\nseconds = 1000\n"
    )
    figures = answer(["--check", "--machines", str(path)], capsys)
    assert figures["alone"] == {"a": 1000}  # seconds of the original's training are no part of it
    # 500 + c / 2 for 600, 333 + c 4/9 for 400: between 200 and 150 by relative least squares.
    assert 150 < figures["exchange_seconds"] < 200
    first, second = (run["even"]["off"] for run in figures["runs"])
    assert first < 0 < second
    assert figures["predictions"] == 0
    assert "predicted" not in figures["runs"][1]["balanced"]  # what its balancer chose is not known
    assert command.main(["--check", "--machines", str(path)]) == 0
    assert "its balancer" in capsys.readouterr().out


def test_the_table_of_the_reference(capsys):
    assert command.main(["--budget", "17", "--deadline", "3"]) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("1 p2.xlarge + 3 g3.4xlarge"))
    assert "24.90" in line
    assert "17.82" in line
    assert "28.4%" in line
    assert line.endswith("6 h 44 min")  # measured
    assert "Cheapest: 1 g3.4xlarge, 9 h 59 min, $11.37." in out
    assert "Fastest for at most $17.00: 1 g3.16xlarge, 3 h 39 min, $16.66." in out
    assert "Cheapest within 3 h: 3 g3.4xlarge + 1 g3.16xlarge" in out
    assert "Balancing saves 2% to 28%" in out
    assert "No mix with p2.xlarge is on a front" in out


def test_every_marked_mix_and_no_other_is_on_the_front(capsys):
    figures = answer([], capsys)
    for kind in ("even", "balanced"):
        points = [Point(one[kind]["seconds"], one[kind]["dollars"]) for one in figures["mixes"]]
        assert [one[kind]["on_front"] for one in figures["mixes"]] == front(points)
    assert figures["cheapest"] == {"g3.4xlarge": 1}
    assert len(figures["mixes"]) == 34
    assert by_name(figures)[(("g3.16xlarge", 1),)]["measured_even_seconds"] == 13_156


def test_epochs_of_the_reference_scale_all_of_it(capsys):
    ten, five = (by_name(answer(["--epochs", epochs], capsys)) for epochs in ("10", "5"))
    for mix, one in ten.items():
        assert five[mix]["balanced"]["seconds"] == pytest.approx(one["balanced"]["seconds"] / 2)
        assert five[mix]["measured_even_seconds"] is None


def test_rows_and_rates_of_ones_own(capsys):
    arguments = [*BY_ROWS, "--epochs", "2", "--price", "g5.xlarge=3", "--batch-size", "400", "--bandwidth", "1"]
    figures = answer([*arguments, "--most", "2", "--gradient-bytes", "1e6", "--budget", "0.01"], capsys)
    found = by_name(figures)
    assert len(found) == 5
    assert found[(("g5.xlarge", 1),)]["even"] == {
        "seconds": pytest.approx(500), "dollars": pytest.approx(500 / 3600 * 3), "on_front": True
    }  # fmt: skip
    mixed = found[(("g4dn.xlarge", 1), ("g5.xlarge", 1))]
    exchange = 500 * 1e6 / (1e9 / 8)
    assert mixed["even"]["seconds"] == pytest.approx(100_000 * 2 / 2 / 200 + exchange)
    assert mixed["balanced"]["seconds"] == pytest.approx(500 * 267 / 400 + exchange)  # 267 and 133 of 400 rows
    assert figures["fastest_within_budget"] is None
    assert any("left out: p2.xlarge" in note for note in figures["notes"])


def test_named_mixes_alone(capsys):
    figures = answer(["--mix", "p2.xlarge,g3.4xlarge:3", "--mix", "g3.4xlarge:3,p2.xlarge:1"], capsys)
    (one,) = figures["mixes"]
    assert one["machines"] == {"p2.xlarge": 1, "g3.4xlarge": 3}
    names = {name for one in answer(["--among", "p2.xlarge"], capsys)["mixes"] for name in one["machines"]}
    assert names == {"p2.xlarge"}


def metrics(path, *, ranks: int = 2) -> str:
    """Metrics of an epoch on ranks of 1,000 and 500 rows per second: of its 8 s the ranks compute for 6 (one: 9)."""
    shares = [200, 100][:ranks]
    event = {
        "event": "epoch", "epoch": 1, "step": 30, "seconds": 8.0, "rows": 9000, "shares": shares,
        "compute_seconds": [9000 * share / sum(shares) / rate for share, rate in zip(shares, (1000, 500), strict=False)]
    }  # fmt: skip
    path.write_text(json.dumps(event) + "\n")
    return str(path)


def test_a_runs_metrics_give_rates_and_the_exchange(tmp_path, capsys):
    path = metrics(tmp_path / "metrics.jsonl")
    arguments = ["--metrics", f"g5.xlarge={path}:0", "--metrics", f"g5.12xlarge={path}:1"]
    found = by_name(answer([*arguments, "--most", "2"], capsys))
    assert found[(("g5.xlarge", 1),)]["even"]["seconds"] == pytest.approx(9)
    assert found[(("g5.12xlarge", 1),)]["even"]["seconds"] == pytest.approx(9000 / 2000)  # four of such GPUs
    assert found[(("g5.xlarge", 2),)]["exchange_seconds"] == pytest.approx(2.0)  # as in the run, at its batch size
    assert "give --bandwidth too" in failing([*arguments, "--latency", "5"], capsys)
    assert command.main(arguments) == 0
    assert "a step of that run took beyond compute" in capsys.readouterr().out


def test_a_run_on_one_machine_alone_counts_as_a_whole(tmp_path, capsys):
    path = metrics(tmp_path / "metrics.jsonl", ranks=1)
    found = by_name(answer(["--metrics", f"g5.xlarge={path}", "--most", "1"], capsys))
    assert found[(("g5.xlarge", 1),)]["even"]["seconds"] == pytest.approx(8)
    path = metrics(tmp_path / "metrics.jsonl")
    assert "so it was not one such machine alone" in failing(["--metrics", f"g5.xlarge={path}"], capsys)
    assert "ranks 0 to 1" in failing(["--metrics", f"g5.xlarge={path}:0,2"], capsys)


def test_a_file_extends_ours(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[machines."g3.4xlarge"]\ndollars_per_hour = 0.5\nseconds = 40000\n'
        "[machines.desk]\ndollars_per_hour = 0\nrows_per_second = 50\nnetwork_gbit = 1\n"
    )
    found = read_catalogue([path])
    assert found.machines["g3.4xlarge"].seconds == 40_000
    assert set(found.machines) == {*read_catalogue().machines, "desk"}
    figures = by_name(answer(["--machines", str(path), *BY_ROWS, "--most", "2"], capsys))
    assert figures[(("desk", 1),)]["even"] == {"seconds": 2000.0, "dollars": 0.0, "on_front": False}  # two are free too
    assert figures[(("desk", 2),)]["exchange_seconds"] == pytest.approx(100_000 / 512 * 4.1e6 / (1e9 / 8))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("machines = 1", "[machines] must be a table"),
        ("[machines.a]\nseconds = 3", "dollars_per_hour is missing"),
        ("[machines.a]\ndollars_per_hour = -1", "must be a number of at least 0"),
        ("[machines.a]\ndollars_per_hour = 1\ngpus = 1.5", "gpus must be a whole number above 0"),
        ("[machines.a]\ndollars_per_hour = 1\nseconds = nan", "seconds must be a number above 0"),
        ("[machines.a]\ndollars_per_hour = 1\nprice = 2", "'price' means nothing here"),
        ('[machines."a:b"]\ndollars_per_hour = 1', "a name cannot"),
        ("[machine.a]\ndollars_per_hour = 1", "'machine' means nothing here"),
        ("machines", "not TOML"),
        ('[[reference.measured]]\nmix = "p2.xlarge:2"\neven = 3', "no machine is named 'p2.xlarge'"),
        ("[reference]\nepochs = 0", "reference.epochs must be a number above 0"),
        (
            '[machines.a]\ndollars_per_hour = 1\nseconds = 3\n[[reference.measured]]\nmix = "a"\neven = 3\n'
            "calibrates = true",
            "one machine exchanges nothing",
        ),
        ("[reference]\nmeasured = 3", "must be a list of tables"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_line(text, said, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    line = failing(["--machines", str(path)], capsys)
    assert f"--machines {path}" in line
    assert said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--machines", "nowhere.toml"], "No such file"),
        (["--rows-per-second", "g5.xlarge=3"], "give --rows N too"),
        (["--batch-size", "3"], "give --rows N too"),
        (["--bandwidth", "3"], "give --rows N too"),
        (["--rows", "100"], "no machine's speed is known"),
        (["--rows", "0"], "--rows must be at least 1"),
        (["--rows", "9", "--rows-per-second", "g5.xlarge=0"], "give a number above 0"),
        (["--rows", "9", "--rows-per-second", "g5.xlarge"], "give NAME=VALUE"),
        (["--rows", "9", "--rows-per-second", "x=3"], "no machine is named 'x'"),
        ([*BY_ROWS, "--hidden", "2"], "--hidden"),
        ([*BY_ROWS, "--bandwidth", "0"], "--bandwidth must be above 0"),
        ([*BY_ROWS, "--batch-size", "3", "--batch-per-gpu", "3"], "leave one out"),
        (["--metrics", "g5.xlarge=nowhere"], "No such file"),
        (["--price", "g5.xlarge=nan"], "give a number above 0"),
        (["--epochs", "0"], "--epochs must be above 0"),
        (["--budget", "nan"], "--budget"),
        (["--most", "0"], "--most must be at least 1"),
        (["--most", "60"], f"more than {MOST_MIXES:,}"),
        (["--mix", "p2.xlarge:0"], "numbers of at least 1"),
        (["--mix", "p9.xlarge"], "no machine is named 'p9.xlarge'"),
        (["--mix", "g5.xlarge"], "the speed of g5.xlarge is not known"),
        (["--mix", "p2.xlarge", "--most", "3"], "leave out --among and --most"),
        (["--mix", "p2.xlarge:5000"], "a mix has 5,000 GPUs"),
        (["--among", "g5.xlarge"], "no machine is named 'g5.xlarge'"),
        (["--nonsense"], "unrecognized"),
    ],
)
def test_wrong_input_is_one_line(arguments, said, capsys):
    assert said in failing(arguments, capsys)


def test_a_long_front_is_thinned_from_end_to_end(capsys):
    assert command.main([*BY_ROWS, "--most", "12", "--show", "5"]) == 0
    out = capsys.readouterr().out
    assert "(5 of 90 mixes, 5 of the " in out
    figures = answer([*BY_ROWS, "--most", "12"], capsys)
    rows = [line.split("  ")[0] for line in out.splitlines() if line.rstrip().endswith(("*", "* e"))]
    cheap, fast = (
        " + ".join(f"{count} {name}" for name, count in figures[key].items()) for key in ("cheapest", "fastest")
    )
    assert fast in rows
    assert len(rows) == 5
    assert cheap.split()[1] == "g5.xlarge"


def test_balancing_saves_nothing_on_like_gpus(capsys):
    assert command.main(["--among", "g3.4xlarge"]) == 0
    assert "Balancing saves nothing here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(4.21, "4.2 s"), (750, "12 min 30 s"), (3599.6, "1 h 00 min"), (11_100, "3 h 05 min"), (400_000, "4 d 15 h")],
)
def test_times_are_told_in_their_size(seconds, said):
    assert clock(seconds) == said


def test_the_reference_is_fitted_to_what_calibrates():
    training, machines = reference_training(read_catalogue())
    assert predict({"g3.4xlarge": 2}, machines, training).even.seconds == pytest.approx(24_316)
    assert OURS.name == "machines.toml"


def test_the_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    free = tmp_path / "free.toml"
    free.write_text("[machines.desk]\ndollars_per_hour = 0\nrows_per_second = 50\n")
    cases = {
        "all": [],
        "alike": ["--among", "p2.xlarge"],
        "short": BY_ROWS,
        "free": ["--machines", str(free), *BY_ROWS],
        "one": ["--mix", "p2.xlarge"],
    }
    for name, arguments in cases.items():
        path = tmp_path / f"{name}.png"
        assert command.main([*arguments, "--plot", str(path)]) == 0
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_without_matplotlib_the_table_comes_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "engine.cost_plot", raising=False)
    path = tmp_path / "cost.png"
    assert command.main(["--plot", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "Cheapest" in out
    (line,) = err.splitlines()
    assert "matplotlib is missing" in line
    assert not path.exists()


def test_the_committed_result_is_what_the_check_gives():
    committed = json.loads((OURS.parents[1] / "benchmarks" / "results" / "cost.json").read_text())
    figures = json.loads(json.dumps(check(read_catalogue())))
    assert committed.keys() == figures.keys()
    for mine, theirs in zip(figures["runs"], committed["runs"], strict=True):
        assert mine["mix"] == theirs["mix"]
        for part in ("even", "exact_shares", "balanced"):
            assert mine.get(part, {}) == pytest.approx(theirs.get(part, {}))
