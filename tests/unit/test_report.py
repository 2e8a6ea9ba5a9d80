"""Reports of runs that are whole, torn, old, strange, of 1 and of 64 ranks."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import report
from engine.report_record import read_record
from engine.report_svg import Axis, ticks
from engine.report_time import times_of
from engine.report_words import THIN, duration, percent
from engine.timeline import LEAST_STEPS, MOST_CELLS, MOST_PARTS, Timeline, ends_of_parts
from tests.made_runs import make_run

VOID = {"meta", "link", "br", "hr", "img"}


class Outline(HTMLParser):
    """Tags and visible texts of a page; raises where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        self.text += data if not self.open or self.open[-1] not in ("style", "title", "desc") else " "


def shown(*runs: Path, out: Path | None = None) -> Outline:
    target = out or runs[0] / "report.html"
    arguments = [*map(str, runs), *(["--out", str(target)] if out else [])]
    assert report.main(arguments) == 0
    return Outline(target.read_text(encoding="utf-8"))


def squeezed(outline: Outline) -> str:
    return re.sub(r"\s+", " ", outline.text)


def test_a_run_is_told_with_its_figures(tmp_path):
    page = shown(make_run(tmp_path / "run"))
    text = squeezed(page)
    good = ("finished", "0.800", "most frequent class 0.700")
    for words in (*good, "E = ", "rank 2 on host-1 was the last", "of the rows"):
        assert words in text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag != "script"
        if tag == "svg" and attributes.get("role") == "img":
            assert all(name in ids for name in (attributes["aria-labelledby"] or "").split())
        for name in ("src", "href"):
            assert not re.match("[a-z]*:?//", attributes.get(name) or ""), "something is fetched"


def test_a_point_that_is_pointed_at_tells_what_the_table_does(tmp_path):
    run = make_run(tmp_path / "run")
    losses = [epoch.figure("loss") for epoch in read_record(run).epochs]
    page = shown(run)
    assert "Learning rate" in page.text
    drawn = (run / "report.html").read_text(encoding="utf-8")
    for loss in losses:
        assert f"validation: {loss:.4f}, step" in drawn


def test_what_is_named_first_is_what_cost_most(tmp_path):
    """The rest of a step costs 5.6 % here, and the exchange 4.5 %."""
    run = make_run(tmp_path / "run", ranks=2, speeds=[200.0, 200.0])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for event in lines:
        if event["event"] == "timeline":
            less = 0.6 * event["least_wait_seconds"]
            event["least_wait_seconds"] -= less
            event["seconds"] -= less
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = read_record(run)
    times = times_of(record)
    assert times is not None
    assert 0.05 * times.whole.seconds < times.parts.rest < 0.06 * times.whole.seconds
    assert times.parts.rest > times.parts.exchange > 0.04 * times.whole.seconds
    assert "Most was lost here: optimizer, clipping and the rest took" in squeezed(shown(run))


def test_equal_runs_give_equal_bytes(tmp_path):
    run = make_run(tmp_path / "run")
    shown(run)
    first = (run / "report.html").read_bytes()
    shown(run)
    assert (run / "report.html").read_bytes() == first


def test_factors_are_those_of_the_times(tmp_path):
    # Two ranks, one twice as fast and with twice the rows: what is computed by hand below.
    run = make_run(tmp_path / "run", ranks=2, epochs=1, speeds=(200.0, 100.0), shares=(64, 32), profile=True)
    times = times_of(read_record(run))
    assert times is not None
    span = times.whole
    assert times.efficiency.balance == pytest.approx(1.0, abs=1e-3)
    assert times.efficiency.exposure == pytest.approx(max(span.compute) / span.seconds, rel=1e-3)
    parts = times.parts
    whole = parts.compute + parts.imbalance + parts.input + parts.exchange + parts.rest
    assert whole == pytest.approx(span.seconds)
    # An even split instead: the fast rank waits for the slow one, and E is that of the doubled work of the slow one.
    even = make_run(tmp_path / "even", ranks=2, epochs=1, speeds=(200.0, 100.0), shares=(48, 48), profile=True)
    found = times_of(read_record(even))
    assert found is not None
    assert found.efficiency.balance == pytest.approx((200 * 0.24 + 100 * 0.48) / (300 * 0.48), rel=1e-3)
    assert found.efficiency.mean_over_max == pytest.approx(0.75, rel=1e-3)
    assert found.slowest is not None
    assert (found.slowest.rank, found.slowest.why) == (1, "compute")


def test_a_rank_that_waits_for_input_is_named(tmp_path):
    text = squeezed(shown(make_run(tmp_path / "run", starved=1)))
    assert "input held everyone up" in text
    assert re.search(r"rank 1 on host-0 was the last in \d+.% of the steps: waited \d+.% of its time for input", text)


def test_what_is_not_all_is_not_told_as_all():
    assert [percent(part).replace(THIN, " ") for part in (0.0, 0.001, 0.993, 0.998, 1.0)] == [
        "0 %", "< 1 %", "99 %", "> 99 %", "100 %"]  # fmt: skip
    assert percent(0.9998, 1).replace(THIN, " ") == "> 99.9 %"


def test_a_rank_that_stood_out_in_one_epoch_is_named(tmp_path):
    speeds = {"speeds": (200.0, 200.0, 200.0), "epochs": 20}
    text = squeezed(shown(make_run(tmp_path / "run", **speeds, other_speeds={4: (200.0, 150.0, 200.0)})))
    assert "In epoch 4 it was rank 1 on host-0 that stood out, by its compute." in text
    text = squeezed(shown(make_run(tmp_path / "even", **speeds)))
    assert "stood out" not in text
    # One that is behind the whole run's loss is named once, for all of it.
    assert "stood out" not in squeezed(shown(make_run(tmp_path / "slow")))


def test_a_decision_that_no_step_followed_says_so(tmp_path):
    late = {"event": "shares", "step": 120, "first_step": 124, "shares": [20, 40, 36], "reason": "gains 2.4% in all"}
    text = squeezed(shown(make_run(tmp_path / "run", more=[late])))
    assert "124, not reached" in text
    assert "gains 2.4 % in all" in text
    assert text.count("not reached") == 1


@pytest.mark.parametrize("ranks", [1, 64])
def test_any_number_of_ranks(tmp_path, ranks):
    page = shown(make_run(tmp_path / "run", ranks=ranks))
    assert f"{ranks} rank" in squeezed(page)
    assert len((tmp_path / "run" / "report.html").read_bytes()) < 2_000_000


def test_thousands_of_decisions_stay_readable(tmp_path):
    page = shown(make_run(tmp_path / "run", decisions=5000))
    assert "Of 5," in page.text
    assert sum(tag == "tr" for tag, _ in page.tags) < 400
    assert len((tmp_path / "run" / "report.html").read_bytes()) < 1_000_000


def test_no_epoch_is_no_error(tmp_path):
    text = squeezed(shown(make_run(tmp_path / "run", epochs=0)))
    assert "No epoch is done" in text
    assert "no end recorded" in text


def test_a_torn_file_is_told_and_read_as_far_as_it_goes(tmp_path):
    run = make_run(tmp_path / "run")
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe not json\n[1]\n" + whole[:-20])
    text = squeezed(shown(run))
    assert "2 lines of metrics.jsonl could not be read" in text
    assert "The last line of metrics.jsonl is cut off" in text
    assert "0.800" in text


def test_every_cut_and_every_missing_field_still_makes_a_page(tmp_path):
    run = make_run(tmp_path / "run", steps=20)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    config = json.loads((run / "config.json").read_text())
    for strange in (None, "x", -1, [], {}, [None], [["x"]], 1e400):
        for number, line in enumerate(lines):
            event = json.loads(line)
            for field in event if number % 3 == 0 or event["event"] != "step" else ():
                if field == "event":
                    continue
                changed = json.dumps({**event, field: strange})
                (run / "metrics.jsonl").write_text("\n".join([*lines[:number], changed, *lines[number + 1 :], ""]))
                shown(run)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for field in config:
        (run / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != field}))
        shown(run)


def test_runs_of_before_the_timeline_say_what_was_not_measured(tmp_path):
    run = make_run(tmp_path / "run", profile=False)
    kept = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"timeline"' not in line]
    (run / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    text = squeezed(shown(run))
    assert "The batch-size factor was not measured" in text
    assert "Who computed longest at each step was not recorded" in text


def test_names_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    run = make_run(tmp_path / "run", host=evil, options={"data": evil, "strange": evil}, reason=evil)
    page = shown(run)
    assert not any(tag == "script" for tag, _ in page.tags)
    assert evil in page.text


def test_faults_are_told(tmp_path):
    events: list[dict[str, Any]] = [
        {"event": "nonfinite", "step": 7, "rows": {"0": [3]}, "skipped": 1},
        {"event": "resync", "step": 40, "ranks": [1, 2]},
    ]
    text = squeezed(shown(make_run(tmp_path / "run", resumed_at=40, more=events, status="failed")))
    for words in ("failed: out of luck", "Resumed after step 40", "no finite number: 7", "ranks 1, 2 took over"):
        assert words in text


def test_several_runs_are_compared_first(tmp_path):
    first, second = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", options={"batch_size": 12})
    page = shown(first, second, out=tmp_path / "both.html")
    text = squeezed(page)
    assert (
        text.index("2 runs side by side") < text.index("What differs in their configurations") < text.index("a/run f")
    )
    assert "--batch-size" in text
    assert not (first / "report.html").exists()


@pytest.mark.parametrize(
    ("options", "macro_f1", "told"),
    [
        # A hundred reviews: the standard error at 0.76 is 0.043.
        (
            {"dropout": 0.1},
            0.73,
            "The best model is that of b: macro-F1 0.760; next is a with 0.730, which may be chance",
        ),
        ({"dropout": 0.1}, 0.78, "best model is that of b: macro-F1 0.810; next is a with 0.730.All"),
        ({"seed": 8}, 0.73, "They differ in their seed alone: macro-F1 from 0.730 to 0.760, mean 0.745.All"),
    ],
)
def test_differences_that_chance_makes_are_told_as_such(tmp_path, options, macro_f1, told):
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", options=options, macro_f1=macro_f1)
    text = squeezed(shown(*runs, out=tmp_path / "both.html"))
    assert told in text
    assert "All were about as fast" in text


def test_a_run_that_is_faster_is_named(tmp_path):
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", speeds=(400.0, 400.0, 240.0))
    assert re.search(r"The fastest is b: \d+ reviews/s, 1\.\d\d times as fast as a\.",
                     squeezed(shown(*runs, out=tmp_path / "both.html")))  # fmt: skip


@pytest.mark.parametrize(
    ("most", "ticks_shown"),
    [
        (4.0, ["0 s", "1.0 s", "2.0 s", "3.0 s", "4.0 s"]),
        (200.0, ["0 s", "1 min 00 s", "2 min 00 s", "3 min 00 s"]),
        (50_000.0, ["0 s", "3 h 00 min", "6 h 00 min", "9 h 00 min", "12 h 00 min"]),
        (2_000_000.0, ["0 s", "5 d 00 h", "10 d 00 h", "15 d 00 h", "20 d 00 h"]),
    ],
)
def test_times_are_ticked_at_whole_minutes_hours_or_days(most, ticks_shown):
    axis = Axis("time", duration, clock=True)
    shown_ticks = [duration(tick) for tick in ticks(0.0, most, 5, axis)]
    assert [text.replace(THIN, " ") for text in shown_ticks] == ticks_shown


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda run: None, "no such folder"),
        (lambda run: run.mkdir(), "config.json"),
        (lambda run: run.write_text(""), "is a file"),
        (lambda run: (make_run(run) / "metrics.jsonl").unlink(), "metrics.jsonl"),
        (lambda run: (make_run(run) / "config.json").write_text("["), "not a JSON object"),
        (lambda run: (make_run(run) / "report.html").mkdir(), "cannot be written"),
    ],
)
def test_errors_are_one_line_with_status_2(tmp_path, capsys, prepare, message):
    prepare(tmp_path / "run")
    assert report.main([str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_several_runs_need_a_name_for_the_page(tmp_path, capsys):
    assert report.main([str(make_run(tmp_path / "a")), str(make_run(tmp_path / "b"))]) == 2
    assert "--out FILE" in capsys.readouterr().err


def test_a_report_that_fails_is_one_warning(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("engine.report.write_report", lambda *_: 1 / 0)
    report.write_report_or_warn(make_run(tmp_path / "run"), said.append)
    assert len(said) == 1
    assert "division by zero" in said[0]
    assert "\n" not in said[0]


class Alone:
    """A communicator of one rank."""

    size = 1

    def Allreduce(self, *_: Any, **__: Any) -> None:
        """Of one rank: nothing to do."""

    def gather(self, value: Any, root: int) -> list[Any]:
        return [value]


def test_a_timeline_adds_up():
    timeline = Timeline()
    timeline.start(5.0)
    costs = np.random.default_rng(1).random((100, 3))
    for compute, read, wait in costs:
        timeline.add(16, 7, compute, read, wait)
    event = timeline.collect(Alone(), step=140, epoch=2, seconds=25.0)
    assert event is not None
    assert (event["first_step"], event["ends"][-1], event["seconds"]) == (41, 140, 20.0)
    for column, name in enumerate(("compute_seconds", "input_seconds", "wait_seconds")):
        assert sum(event[name][0]) == pytest.approx(costs[:, column].sum(), rel=1e-4)
    assert sum(event["rows"][0]) == 700
    assert event["longest_ready_seconds"] == pytest.approx(costs[:, :2].sum())
    assert event["last_steps"] == [100]
    assert timeline.collect(Alone(), step=140, epoch=2, seconds=25.0) is None


@pytest.mark.parametrize("ranks", [1, 3, 64, 5000])
@pytest.mark.parametrize("steps", [1, LEAST_STEPS, 47, 12_345])
def test_parts_of_an_epoch_cover_it(steps, ranks):
    ends = ends_of_parts(steps, ranks)
    assert ends[-1] == steps
    assert (np.diff(ends, prepend=0) > 0).all()
    assert len(ends) <= max(1, min(MOST_PARTS, MOST_CELLS // ranks))


def test_a_long_run_does_not_take_long(tmp_path):
    run = make_run(tmp_path / "run", epochs=50, steps=2000)
    began = time.process_time()
    shown(run)
    print(f"{time.process_time() - began:.1f} s of CPU time")
    assert len((run / "report.html").read_bytes()) < 3_000_000
