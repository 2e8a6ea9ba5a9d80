"""The simulator: the engine's plan and balancer on modelled ranks; the command around it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine import simulate as command
from engine.plan import Plan
from engine.simulation import POLICIES, Run, Scenario, simulate
from engine.simulation_check import compare
from engine.simulation_clocks import RankClocks
from engine.simulation_metrics import read_metrics
from engine.simulation_original import PUBLISHED, calibrate, original
from engine.simulation_ranks import Failure, Hardware, Network, Throttle, TrueCosts
from engine.timing import RankClock
from native.format import BucketShape


def scenario(speeds, *, batch_size=512, steps=300, epochs=2, fixed=0.0, every=50, **hardware) -> Scenario:
    """Ranks of so many thousand rows per second."""
    rates = 1000.0 * np.array(speeds)
    costs = TrueCosts.affine(np.full(len(rates), fixed), 1 / rates, batch_size)
    plan = Plan(rows=batch_size * steps, batch_size=batch_size, seed=1)
    return Scenario(plan, Hardware([costs], **hardware), epochs, every)


def comparable(run: Run) -> dict:
    """All figures but what the controller took here."""
    figures = {name: value for name, value in vars(run).items() if name not in ("controller_seconds", "shares")}
    return figures | {"shares": [(done, shares.tolist()) for done, shares in run.shares]}


def failing(arguments: list[str], capsys) -> str:
    """The one line of a command that ends with status 2."""
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_seeds_give_equal_runs(policy):
    made = scenario([1, 0.5, 0.8], noise=0.05, throttles=[Throttle(1, 0.5, 100, 200)])
    assert comparable(simulate(made, policy)) == comparable(simulate(made, policy))
    other = replace(made, hardware=replace(made.hardware, seed=5))
    assert simulate(other, policy).seconds != simulate(made, policy).seconds


def test_all_clocks_at_once_see_what_each_ranks_own_clock_sees():
    random = np.random.default_rng(3)
    bounds, ranks = (32, 64), 5
    tables = random.integers(0, 4, (3, ranks))
    together, alone = RankClocks(len(bounds), ranks), [RankClock(bounds) for _ in range(ranks)]
    for step in range(300):
        bucket, rows = int(random.integers(2)), tables[min(2, int(random.integers(4)))]
        seconds = random.random(ranks)
        together.add(bucket, rows, seconds)
        for rank, clock in enumerate(alone):
            clock.add(bounds[bucket], int(rows[rank]), seconds[rank], 0.0, 0.0)
        if step % 50 == 49 or step in (3, 4):
            mine = together.look()
            expected = np.stack([clock.look() for clock in alone])
            np.testing.assert_allclose(together.looks_RB4, expected, rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(mine, together.looks_RB4[0])


def test_on_even_ranks_nothing_changes_and_nothing_is_lost():
    for policy in POLICIES:
        run = simulate(scenario([1, 1, 1, 1]), policy)
        assert (run.changes, run.E) == (0, pytest.approx(1.0))


def test_noise_alone_hardly_moves_shares():
    run = simulate(scenario([1, 1, 1, 1], noise=0.05, steps=1000, epochs=3), "auto")
    assert run.changes <= 3


def test_uneven_ranks_finish_together():
    made = scenario([1, 0.56], noise=0.01)
    even, auto, oracle = (simulate(made, policy) for policy in ("even", "auto", "oracle"))
    # The slow rank has half the rows instead of 0.56 / 1.56 of them.
    assert even.seconds / auto.seconds == pytest.approx(0.5 * 1.56 / 0.56, rel=0.02)
    assert auto.seconds <= 1.02 * oracle.seconds
    assert auto.mean_over_max >= 0.98
    for run in (even, auto, oracle):
        assert run.batch_size * run.balance * run.exposure == pytest.approx(run.E)
        assert run.rows == 2 * 300 * 512


def test_a_slow_down_in_mid_epoch_is_caught_within_a_window():
    made = scenario([1, 1, 1, 0.56], noise=0.03, steps=600, epochs=1, throttles=[Throttle(2, 1 / 3, 301)])
    auto, oracle, epoch = (np.array(simulate(made, name).step_seconds) for name in ("auto", "oracle", "epoch"))
    settled = slice(300 + 50 + 2, None)
    assert auto[settled].mean() <= 1.05 * oracle[settled].mean()
    assert epoch[settled].mean() > 1.5 * oracle[settled].mean()


def test_new_shares_begin_where_the_engine_says():
    made = scenario([1, 1, 1, 0.56], steps=600, epochs=1, throttles=[Throttle(2, 1 / 3, 301)])
    run = simulate(made, "auto")
    told = {event["first_step"] - 1 for event in run.events if event["event"] == "shares" and event["step"]}
    begun = [done for done, _ in run.shares[1:]]
    assert begun
    assert set(begun) <= told
    assert 310 <= begun[0] <= 316  # look after step 310, decided after 311, taken after 312, two batches read ahead


def test_lengths_and_short_batches_are_those_of_the_plan():
    plan = Plan(layout=[BucketShape(32, 5_000, 1000, 64), BucketShape(100, 7_001, 1000, 200)], batch_size=512, seed=2)
    costs = [TrueCosts.affine(np.zeros(3), bound / np.array([1e5, 5e4, 2e4]), 512) for bound in (32, 100)]
    run = simulate(Scenario(plan, Hardware(costs)), "oracle")
    assert run.rows == 12_001
    assert len(run.step_seconds) == plan.steps_per_epoch == 10 + 14
    assert run.E > 0.98


def test_exchange_is_a_ring():
    network = Network(bandwidth=1e8, latency=1e-4, gradient_bytes=4e6, hidden=0.5, step_seconds=0.25)
    assert network.seconds(1) == 0.25
    assert network.seconds(4) == pytest.approx(0.25 + 0.5 * (4e6 * 1.5 / 1e8 + 6e-4))


def test_a_dead_rank_costs_the_steps_since_the_checkpoint_and_the_restart():
    made = replace(
        scenario([1, 1, 1], failures=[Failure(1, 470)]), checkpoint_every=100, checkpoint_minutes=0, restart_seconds=9.0
    )
    run, undisturbed = (simulate(replace(made, hardware=hardware), "even") for hardware in (
        made.hardware, replace(made.hardware, failures=())))  # fmt: skip
    (lost,) = run.lost
    assert (lost.rank, lost.step, lost.steps, lost.restart_seconds) == (1, 470, 69, 9.0)
    assert run.rows == undisturbed.rows
    # 469 steps on three ranks, then 200 on two.
    three = undisturbed.seconds / 600
    assert run.seconds == pytest.approx(469 * three + 9 + 200 * three * 1.5, rel=0.01)
    assert np.isnan(run.shares[-1][1][1])


def test_a_rank_that_is_not_worth_its_start_gets_no_rows_and_is_asked_again():
    made = scenario([1, 1, 0.01], fixed=0.0, epochs=3)
    made.hardware.costs[0].seconds_RK[2] += 2.0
    run = simulate(made, "auto")
    assert run.shares[-1][1].tolist() == [256, 256, 0]


def test_ten_thousand_ranks():
    speeds = np.random.default_rng(0).uniform(0.5, 1, 10_000)
    made = scenario(speeds, batch_size=640_000, steps=40, epochs=1, noise=0.02)
    # Without a start-up profile, which is fitted rank by rank.
    made = replace(made, hardware=_Unprofiled(made.hardware.costs, noise=0.02))
    even, auto, oracle = (simulate(made, policy) for policy in ("even", "auto", "oracle"))
    assert auto.looks == 4
    assert oracle.seconds < auto.seconds < even.seconds
    assert auto.step_seconds[-1] < 1.05 * oracle.step_seconds[-1]


class _Unprofiled(Hardware):
    def profiles(self, plan, buckets, ranks_A, step):
        return [[] for _ in ranks_A]


def test_the_originals_table_is_reproduced():
    figures = original(steps=50)
    two, four = figures["clusters"]
    assert figures["calibrated"] == vars(calibrate())
    for cluster in (two, four):
        assert abs(cluster["off"]["even"]) < 0.001
        made = cluster["simulated"]
        assert cluster["ideal_seconds"] < made["oracle"] <= made["auto"] * 1.001
        assert made["auto"] < 0.85 * made["original"] < made["even"]
    assert abs(two["off"]["balanced"]) < 0.003  # calibrated, but for the rounding of shares
    assert abs(four["off"]["balanced"]) < 0.01  # predicted
    assert two["ideal_seconds"] == pytest.approx(22_998, abs=1)
    told = PUBLISHED[tuple(four["gpus"])][0]
    assert figures["four_even_by_one_number"]["fixed"] / told == pytest.approx(0.965, abs=0.001)


def test_original_tells_what_is_calibrated(capsys, monkeypatch):
    monkeypatch.setattr("engine.simulation_original.STEPS", 20)
    monkeypatch.setattr("engine.simulation_original.original.__defaults__", (20,))
    assert command.main(["--original"]) == 0
    out = capsys.readouterr().out
    assert "3 M60 + K80, its balancer" in out
    assert "predicted" in out
    assert "prove nothing" in out


DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "simulate.md").read_text()
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def test_the_page_shows_what_its_first_command_says(capsys):
    (line,) = (line for line in PAGE.splitlines() if "--throttle" in line and "python -m engine.simulate" in line)
    assert command.main(line.partition("#")[0].split()[3:]) == 0
    said = {line.split()[0]: numbers(line) for line in capsys.readouterr().out.splitlines()[3:7]}
    for policy in POLICIES:
        (row,) = re.findall(rf"^ {{4}}{policy} .*", PAGE, re.MULTILINE)
        seconds, efficiency, evenness = numbers(row)[:3]
        assert seconds == pytest.approx(said[policy][0], abs=0.11)  # a last digit may hang on the processor
        assert [efficiency, evenness] == pytest.approx([said[policy][3], said[policy][7]], abs=0.0011)


def test_the_page_shows_the_originals_table(capsys):
    assert command.main(["--original"]) == 0
    said = [line[28:] for line in capsys.readouterr().out.splitlines()[2:] if "%" in line[28:]][:14]
    rows = [row.split("|")[2:6] for row in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE)]
    shown = [" ".join(row) for row in rows if numbers(" ".join(row))]
    assert len(shown) == len(said) == 14
    for ours, line in zip(shown, said, strict=True):
        assert numbers(ours) == pytest.approx(numbers(line)[: len(numbers(ours))], rel=2e-4)
    (elsewhere,) = re.findall(r"--original` comes to ([\d,]+) and ([\d,]+) s", (DOCS / "cost.md").read_text())
    assert list(elsewhere) == re.findall(r"this engine, auto \| \| ([\d,]+)", PAGE)


def test_the_table_and_its_json(capsys):
    arguments = ["--speeds", "1,0.5", "--steps", "60", "--epochs", "1", "--bandwidth", "1", "--fail", "1:40"]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[3:7]] == list(POLICIES)
    assert "rank 1 died in step 40: 39 steps" in out
    assert command.main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures["policies"]) == set(POLICIES)
    assert figures["policies"]["auto"]["lost"][0]["steps"] == 39
    assert figures["policies"]["auto"]["last_shares"] == [512.0, None]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ranks", "0"], "--ranks must be at least 1"),
        (["--ranks", "4", "--speeds", "1,2,3"], "--speeds gives 3 numbers for 4 ranks"),
        (["--speeds", "1,0"], "--speeds must be numbers above 0"),
        (["--speeds", "1,x"], "--speeds"),
        (["--throttle", "2:0.33"], "--throttle '2:0.33' is not RANK:FACTOR:FROM[:TO]"),
        (["--throttle", "9:0.33:1"], "ranks are 0 to 3"),
        (["--throttle", "1:0:1"], "FACTOR must be above 0"),
        (["--fail", "1"], "RANK:STEP"),
        (["--fail", "1:5000"], "the run has steps 1 to 2000"),
        (["--ranks", "1", "--fail", "0:5"], "no rank alive"),
        (["--rows", "10", "--steps", "10"], "leave one out"),
        (["--lengths", "64,32"], "lengths must rise"),
        (["--lengths", "a"], "--lengths 'a'"),
        (["--noise", "nan"], "--noise"),
        (["--hidden", "2"], "--hidden"),
        (["--rank-caps", "1,1,1,1"], "--rank-caps"),
        (["--rank-caps", "1"], "--rank-caps names 1 ranks"),
        (["--policies", "best"], "--policies"),
        (["--add-speeds", "1"], "--metrics"),
        (["--metrics", "nowhere/metrics.jsonl"], "No such file"),
        (["--check", "nowhere.json"], "No such file"),
        (["--original", "--check", "x"], "leave one out"),
        (["--nonsense"], "unrecognized"),
    ],
)
def test_wrong_input_is_one_line(arguments, said, capsys):
    assert said in failing(arguments, capsys)


def run_events(changed: bool = False) -> list[dict]:
    """Metrics of a run of two epochs on two ranks, 1,000 and 500 rows per second; the last one is torn."""
    epochs = [
        {"event": "epoch", "epoch": number, "step": 10 * number, "seconds": 12.0, "rows": 9000, "shares": [200, 100],
         "compute_seconds": [6.0, 6.0]} for number in (1, 2)
    ]  # fmt: skip
    shares = {"event": "shares", "step": 0, "bucket": None, "shares": [200, 100], "first_step": 1}
    later = shares | {"step": 13, "first_step": 17, "shares": [150, 150]}
    return [{"event": "start"}, shares, epochs[0], *([later] if changed else []), epochs[1]]


def test_a_real_runs_metrics_give_its_ranks(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, run_events())) + '\n{"event": "st')
    found, rough = read_metrics(path)
    assert (found.epoch, found.batch_size, found.steps, rough) == (2, 300, 10, False)
    assert found.rates == (1000.0, 500.0)
    assert found.step_seconds == pytest.approx(0.6)
    path.write_text("\n".join(map(json.dumps, run_events(changed=True))))
    assert read_metrics(path)[0].epoch == 1
    arguments = ["--metrics", str(path), "--noise", "0", "--json", "--epochs", "1", "--policies", "oracle"]
    assert command.main(arguments) == 0
    as_it_was = json.loads(capsys.readouterr().out)["policies"]["oracle"]
    assert as_it_was["seconds"] == pytest.approx(30 * (0.2 + 0.6))
    assert command.main([*arguments, "--add-speeds", "1.5", "--bandwidth", "1000"]) == 0
    assert json.loads(capsys.readouterr().out)["policies"]["oracle"]["last_shares"] == [100.0, 50.0, 150.0]


@pytest.mark.parametrize(
    "text", ["", "[1]\n", '{"event": "epoch"}\n', json.dumps(run_events()[2] | {"shares": [0, 9]})]
)
def test_unusable_metrics_are_one_line(text, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    assert "--metrics" in failing(["--metrics", str(path)], capsys)


def measured_setting() -> dict:
    """A setting as benchmarks.balance records it, made up of 2,000 and 1,000 rows per second and 50 ms of exchange."""
    sizes = (32, 64, 128, 256, 512)
    methods = {
        "off": {"rows_per_second": 512 / (0.256 + 0.05), "shares": [256.0, 256.0],
                "mean_over_max": 0.75, "mean_over_max_p10": 0.75},
        "auto": {"rows_per_second": 512 / (512 / 3000 + 0.05), "shares": [341.0, 171.0]},
    }  # fmt: skip
    return {
        "name": "1:2/local/512", "kind": "plain", "ratio": "1:2", "network": "local", "batch_size": 512,
        "rates": [2000.0, 1000.0], "best_local_batch": [512, 512],
        "rates_at": [{str(size): rate for size in sizes} for rate in (2000.0, 1000.0)], "methods": methods,
    }  # fmt: skip


def test_predictions_are_checked_against_the_benchmark(tmp_path, capsys):
    setting = measured_setting()
    found = compare(setting, [setting])
    assert found["outside_seconds"] == pytest.approx(0.05)
    assert abs(found["methods"]["auto"]["off"]) < 0.01
    path = tmp_path / "balance.json"
    path.write_text(json.dumps({"settings": [setting, {"name": "x", "skipped": "no root"}]}))
    assert command.main(["--check", str(path)]) == 0
    assert "1 of 1 predictions within 10%" in capsys.readouterr().out
    path.write_text('{"settings": []}')
    assert "no setting" in failing(["--check", str(path)], capsys)
    path.write_text('{"settings": [{"methods": {"off": {}}, "kind": "plain"}]}')
    assert "not a result" in failing(["--check", str(path)], capsys)


def test_the_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    for ranks in ("4", "40"):
        path = tmp_path / f"{ranks}.png"
        arguments = ["--ranks", ranks, "--speeds", "1,0.5", "--steps", "30", "--fail", "1:20", "--plot", str(path)]
        assert command.main(arguments) == 0
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_without_matplotlib_the_table_comes_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "engine.simulation_plot", raising=False)
    path = tmp_path / "run.png"
    assert command.main(["--steps", "20", "--plot", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "oracle" in out
    (line,) = err.splitlines()
    assert "matplotlib is missing" in line
    assert not path.exists()
