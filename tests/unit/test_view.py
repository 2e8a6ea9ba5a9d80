"""What people are shown of a run, as text: without a terminal, a clock or other ranks."""

from __future__ import annotations

import re

import pytest

from engine.view import Decision, Renderer, Snapshot, duration, plain_line, selected, size
from engine.watch import RankFigures

COLORS = re.compile(r"\x1b\[[0-9;]*m")


def rank(number: int, compute: float = 0.8, **more: object) -> RankFigures:
    known = {"state": "computing", "known": True, "input": 0.05, "wait": 0.95 - compute, "memory": 3 << 28}
    known |= {"compute": compute, "step_compute": compute / 10, "host": f"node-{number // 4}", "share": 8}
    return RankFigures(rank=number, **(known | more))  # type: ignore[arg-type]


def snapshot(count: int = 3, **more: object) -> Snapshot:
    given = {"epoch": 2, "epochs": 5, "step": 120, "steps": 480, "loss": 0.4312, "mean_loss": 0.4508}
    given |= {"rows_per_second": 12345.0, "epoch_left": 31.0, "run_left": 372.0}
    given |= {"ranks": [rank(number, 0.5 + 0.4 * number / count) for number in range(count)]}
    return Snapshot(**(given | more))  # type: ignore[arg-type]


def plain(lines: list[str]) -> list[str]:
    return [COLORS.sub("", line) for line in lines]


def drawn(now: Snapshot, columns: int = 80, rows: int = 24, **how: object) -> list[str]:
    return plain(Renderer(**how).lines(now, columns, rows))  # type: ignore[arg-type]


def test_the_run_the_ranks_and_the_decisions_are_shown():
    decisions = [
        Decision(150, "rank 1 was the slowest", 0.12, True, 0.112),
        Decision(200, "kept: a change would gain 0.5%", 0.005, False),
    ]
    shown = drawn(snapshot(decisions=decisions))
    assert len(shown) == 2 + 1 + 3 + 2
    assert re.fullmatch(r"epoch 2/5 ━+─+ 120/480  loss 0.4312, mean 0.4508  0:31 left", shown[0].rstrip())
    assert re.fullmatch(r"run +━+─+ +25%  12,345 rows/s +6:12 left", shown[1].rstrip())
    assert "share" in shown[2]
    assert re.fullmatch(r" +1 node-0 +8 +33\.3% █+▒·+ +63 +5 +32 +768M computing", shown[4].rstrip())
    assert shown[6].startswith("step 150: 12.0% expected, 11.2% gained: rank 1 was the slowest")
    assert shown[7].startswith("step 200: kept: a change would gain 0.5%")


def test_a_bar_is_in_proportion():
    shown = drawn(snapshot(ranks=[rank(0, 0.5, input=0.25, wait=0.25)]), 120)
    bar = re.search(r"(█+)(▒+)(·+)", shown[3])
    assert bar is not None
    compute, read, wait = map(len, bar.groups())
    assert (compute, read, wait) == (2 * read, read, read)


@pytest.mark.parametrize("ranks", [1, 3, 40, 1000])
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 50), (200, 60), (40, 24), (20, 5), (5, 2), (1, 1)])
def test_it_fits_any_terminal(columns, rows, ranks):
    now = snapshot(ranks, decisions=[Decision(1, "x" * 300, 0.1, True)] * 5)
    many = snapshot(ranks=[rank(0, host="глубокий.узел.example.org" * 5, gpu_memory=1 << 36), *now.ranks[1:]])
    for each in (now, many):
        shown = drawn(each, columns, rows)
        assert 1 <= len(shown) <= max(1, rows - 1)
        assert max(map(len, shown)) <= max(1, columns - 1)


def test_of_many_ranks_the_slowest_and_fastest_are_shown_and_the_rest_summed_up():
    shown = drawn(snapshot(40))
    numbers = [int(line.split()[0]) for line in shown[3:] if line.split()[0].isdigit()]
    assert numbers[:3] == [39, 38, 37]
    assert numbers[-1] == 0
    assert f"{40 - len(numbers)} ranks between" in "\n".join(shown)
    assert len(shown) <= 22


def test_a_rank_that_somebody_should_look_at_is_always_shown():
    ranks = [rank(number, 0.5 + number / 100) for number in range(40)]
    ranks[17] = rank(17, 0.6, state="silent 12 s", alarming=True)
    above, below = selected(ranks, 8)
    assert above[0].rank == 17
    assert len(above) + len(below) == 7
    assert not {each.rank for each in above} & {each.rank for each in below}


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert re.search(r"\x1b\[[0-9;]*32m", "".join(Renderer().lines(snapshot(), 80, 24)))
    monkeypatch.setenv("NO_COLOR", "1")
    text = "".join(Renderer().lines(snapshot(), 80, 24))
    assert not re.search(r"\x1b\[[0-9;]*[39][0-7]m", text)
    assert "█" in text


def test_a_terminal_without_unicode_gets_ascii():
    shown = drawn(snapshot(), unicode=False)
    assert re.search(r"#+i\.+", "\n".join(shown))
    assert "\n".join(shown[:6]).isascii()


def test_the_plain_line():
    assert plain_line(snapshot(1)) == (
        "epoch 2/5: step 120 of 480, loss 0.4312, 12,345 rows/s, 0:31 left of the epoch, 6:12 of the run"
    )
    silent = snapshot(ranks=[rank(0), rank(1, 0.9), rank(2, state="silent 12 s", alarming=True, known=False)])
    assert plain_line(silent).endswith("; slowest: rank 1, computing 90% of the time; rank 2 on node-0: silent 12 s")
    nothing_yet = Snapshot(1, 1, 0, 7, activity="no step for 0:12")
    assert plain_line(nothing_yet) == "epoch 1/1: step 0 of 7, no step for 0:12"


def test_times_and_sizes():
    assert [duration(seconds) for seconds in (0, 59.9, 61, 3599, 3600, 90061, 400000)] == [
        "0:00", "0:59", "1:01", "59:59", "1 h 00", "25 h 01", "4 d 15 h"]  # fmt: skip
    assert [size(count) for count in (0, 1, 1023, 1 << 20, 1234 << 20, 80 << 30)] == [
        "", "1", "1.00K", "1.00M", "1.21G", "80.0G"]  # fmt: skip
