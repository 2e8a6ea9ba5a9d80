"""Reports in a real browser: nothing fetched, no errors, no sideways scrolling, dark, printed. Skipped without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import report
from tests.chromium import Chromium, find
from tests.made_runs import make_run

PATH = find()
pytestmark = pytest.mark.skipif(
    PATH is None, reason="no Chromium on PATH (Debian: apt-get install chromium), nor named by $CHROMIUM"
)
CASES = ("usual", "alone", "many", "began", "several", "long-names", "many-long-names")
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
VISIBLE_CHARTS = "[...document.querySelectorAll('svg[role=img]')].filter(one => one.getClientRects().length)"
CONTRAST = """
(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 10.3 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = colour => colour.slice(0, 3).map(linear)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor, found = rgb(colour);
      if (colour.startsWith('rgb') && (found.length < 4 || found[3] > 0)) return found;
    }
    return [255, 255, 255];
  };
  const worst = [];
  const texts = 'h1, h2, h3, p, dt, dd, th, td:not(.cell), li, span.note, span.label, svg text';
  for (const node of document.querySelectorAll(texts)) {
    if (!node.getClientRects().length) continue;
    const style = getComputedStyle(node), ink = light(rgb(node.closest('svg') ? style.fill : style.color));
    const page = light(behind(node)), ratio = (Math.max(ink, page) + .05) / (Math.min(ink, page) + .05);
    if (ratio < 4.5) worst.push(node.tagName + ' ' + node.textContent.slice(0, 30) + ' ' + ratio.toFixed(2));
  }
  return worst;
})()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    usual = make_run(folder / "usual")
    many = make_run(folder / "many", ranks=64, decisions=3000)
    runs = {
        "usual": [usual],
        "alone": [make_run(folder / "alone", ranks=1)],
        "many": [many],
        "began": [make_run(folder / "began", epochs=0)],
        "several": [usual, many, make_run(folder / "seed=30", ranks=2, options={"batch_size": 12})],
        "many-long-names": [make_run(folder / "many-long-names", ranks=12, host="h" * 150)],
        "long-names": [make_run(folder / ("x" * 120), host="h" * 150, options={"data": "/" + "long" * 60})],
    }
    for name, given in runs.items():
        assert report.main([*map(str, given), "--out", str(folder / f"{name}.html")]) == 0
    return {name: folder / f"{name}.html" for name in runs}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Chromium]:
    assert PATH is not None
    with Chromium(PATH, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("width", [360, 768, 1200])
@pytest.mark.parametrize("name", CASES)
def test_pages_load_alone_and_fit_their_window(browser, pages, name, width):
    browser.open(pages[name], width)
    fetched = [request["request"]["url"] for request in browser.told("Network.requestWillBeSent")]
    assert [url for url in fetched if not url.startswith("data:")] == [pages[name].resolve().as_uri()]
    assert browser.told("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []
    assert browser.run(SIDEWAYS) <= 0
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.run(SIDEWAYS) <= 0, "with all details open"


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("name", CASES)
def test_charts_show_something_and_are_readable(browser, pages, name, width):
    browser.open(pages[name], width)
    charts = browser.run(
        f"{VISIBLE_CHARTS}.map(one => [one.querySelector('title').textContent, one.getBoundingClientRect().width,"
        "[...one.querySelectorAll('.line, .dot, rect, path[class^=h]')].filter(mark => {"
        "const box = mark.getBBox(); return box.width + box.height > 0; }).length,"
        "12.5 * one.getBoundingClientRect().width / one.viewBox.baseVal.width])"
    )
    assert charts
    for title, wide, marks, letters in charts:
        assert marks, f"{title} is empty"
        assert 0 < wide <= width
        assert letters >= 9, f"{title}: letters of {letters:.1f} pixels"
    assert browser.run(
        f"{VISIBLE_CHARTS}.every(one => one.getAttribute('aria-labelledby').split(' ').every(id => "
        "document.getElementById(id).textContent.length > 3))"
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["usual", "many", "several"])
def test_text_stands_out_by_day_and_by_night(browser, pages, name, dark):
    browser.open(pages[name], 1200, dark=dark)
    assert browser.run(CONTRAST) == []


def test_dark_mode_has_other_colours(browser, pages):
    colours = []
    for dark in (False, True):
        browser.open(pages["usual"], 1200, dark=dark)
        colours.append(
            browser.run(
                "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
                "getComputedStyle(document.querySelector('svg .line')).stroke]"
            )
        )
    assert all(light != dark for light, dark in zip(*colours, strict=True))


@pytest.mark.parametrize("name", ["usual", "many"])
def test_printing_shows_what_is_folded_and_prints_on_white(browser, pages, name):
    browser.open(pages[name], 1200, dark=True)
    assert browser.pdf().startswith(b"%PDF")
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    folded = "[...document.querySelectorAll('details table')].map(one => one.getBoundingClientRect().height)"
    heights = browser.run(folded)
    assert heights
    assert all(height > 0 for height in heights)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_cut_off_at_the_edge_of_a_printed_page(browser, pages, name):
    """A4 upright, with the margins that browsers take."""
    browser.open(pages[name], 715)
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    beyond = browser.run(
        "[...document.querySelectorAll('table, svg, figure, dd, p')].filter(one => one.checkVisibility() && "
        "one.getBoundingClientRect().right > innerWidth + 1).map(one => one.textContent.trim().slice(0, 60))"
    )
    assert beyond == []
    cut = browser.run(
        f"{VISIBLE_CHARTS}.flatMap(chart => [...chart.querySelectorAll('text')].filter(one => {{"
        "const [box, all] = [one, chart].map(part => part.getBoundingClientRect());"
        "return box.left < all.left - 1 || box.right > all.right + 1; }).map(one => one.textContent))"
    )
    assert cut == []
