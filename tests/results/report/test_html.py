"""The pages in a real browser."""

import csv
import io
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results import Evaluation, Study
from results.intervals import wilson_interval
from results.report.evaluation_table import evaluation_columns
from results.report.plot import plot_front
from results.report.report import write_report
from tests.patience import PATIENCE
from tests.results.shown import DENSE, EVIL, NOW, MakeEvaluation, MakeSpec, make_picture, write_evil_report


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install .[dev])")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("no Chromium is installed: the pages are not opened in a browser")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield launched
        launched.close()


def is_complaint(message: Any) -> bool:
    """Return whether a message is about the page, and not about the speed of the graphics driver."""
    return message.type in ("error", "warning") and not message.text.startswith("[.WebGL")


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a file at a width. A message on the console or a request of the page fails the test."""
    complaints: list[str] = []
    pages: list[Any] = []

    def opened(path: Path, width: int, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda m: complaints.append(m.text) if is_complaint(m) else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else complaints.append(r.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#chart .scatterlayer .point")
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []


def points(page: Any) -> list[int]:
    """Return the number of points of each trace that has any."""
    counted = page.evaluate(
        "[...document.querySelectorAll('#chart .scatterlayer .trace')]"
        ".map(trace => trace.querySelectorAll('.point').length)"
    )
    return [count for count in counted if count]


def until(page: Any, condition: str) -> None:
    """Wait for a condition. Playwright's own function needs eval, which the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_renders_without_errors_or_horizontal_scrolling(
    open_page: Callable[..., Any],
    tmp_path: Path,
    make_spec: MakeSpec,
    evaluations: list[Evaluation],
    width: int,
    scheme: str,
) -> None:
    path = tmp_path / "report.html"
    write_report(path, Study(1, NOW, make_spec(), 12, 1), evaluations, [make_picture(), make_picture("two")])
    page = open_page(path, width, scheme)
    assert points(page) == [7, 5, 1, 1], "dominated, front, fine-tuned, dense"
    assert page.text_content("#chart .annotation-text") == "budget 0.8"
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.text_content("td.schedule") == evaluations[0].schedule.text, "can be copied"
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    lightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(lightness) < 200) == (scheme == "dark")
    page.emulate_media(color_scheme="light" if scheme == "dark" else "dark")
    fill = "getComputedStyle(document.querySelector('#chart .legendtext')).fill"
    until(page, f"{fill} === getComputedStyle(document.querySelector('.lede')).color")  # the plot follows


def test_hover_switch_click_and_sort(
    open_page: Callable[..., Any], tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]
) -> None:
    write_report(tmp_path / "report.html", Study(1, NOW, make_spec(), 12, 1), evaluations)
    page = open_page(tmp_path / "report.html", 1280)
    page.evaluate("document.getElementById('front').scrollIntoView({behavior: 'instant'})")
    box = page.locator("#chart .scatterlayer .trace").nth(1).locator(".point").nth(2).bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.wait_for_selector("#chart .hovertext")
    hover = page.text_content("#chart .hovertext")
    assert "92.40 %" in hover
    assert "0.520 of dense" in hover
    assert "3:0.5, 9:0.7" in hover
    assert "context freeze" in hover

    page.mouse.click(*middle)
    page.wait_for_selector("tr.found")
    assert page.get_attribute("tr.found", "id") == f"row-{evaluations[2].hash}"

    lowest = "document.getElementById('chart').layout.yaxis.range[0]"
    assert page.evaluate(lowest) > 10
    page.click("[data-view=all]")
    assert page.get_attribute("[data-view=all]", "aria-pressed") == "true"
    assert page.evaluate(lowest) < 10

    first = "document.querySelector('table.front tbody tr').id"
    heading = page.locator("table.front th button", has_text="Top-1")
    heading.click()
    assert page.evaluate(first) == f"row-{evaluations[0].hash}"
    heading.click()
    assert page.evaluate(first) == f"row-{evaluations[4].hash}"
    page.locator("table.front th button", has_text="Fine-tuned").press("Enter")
    assert page.evaluate(first) == f"row-{evaluations[3].hash}", "missing values come last"


def test_the_front_can_be_explored_by_keyboard(
    open_page: Callable[..., Any], tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]
) -> None:
    write_report(tmp_path / "report.html", Study(1, NOW, make_spec(), 12, 1), evaluations)
    page = open_page(tmp_path / "report.html", 1280)
    page.click("[data-view=all]")  # all points of the front are in view
    chart = page.locator("#chart")
    front = page.evaluate("document.getElementById('chart').data.find(trace => trace.error_y).customdata")
    said = []
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowRight", "ArrowLeft", "Home", "ArrowLeft"):
        chart.press(key)
        page.wait_for_selector("#chart .hovertext")
        said.append((int(chart.get_attribute("aria-valuenow") or 0), chart.get_attribute("aria-valuetext") or ""))
    count = len(front)
    assert [number for number, _ in said] == [1, 2, count, count, count - 1, 1, 1]
    assert "of dense" in said[0][1]
    assert "<" not in said[0][1]
    chart.press("Enter")
    page.wait_for_selector("tr.found")
    assert page.get_attribute("tr.found", "id") == f"row-{front[0]}"
    chart.press("Escape")
    until(page, "!document.querySelector('#chart .hovertext')")


def test_a_point_shows_both_scores_and_the_interval(
    open_page: Callable[..., Any], tmp_path: Path, confirmed: tuple[Study, list[Evaluation]]
) -> None:
    write_report(tmp_path / "report.html", *confirmed, dense_confirmed=DENSE)
    page = open_page(tmp_path / "report.html", 1280)
    assert points(page) == [7, 5, 2, 1, 1], "dominated, front, those of it not confirmed, fine-tuned, dense"
    assert page.locator("#chart .errorbars path.yerror").count() == 5
    page.evaluate("document.getElementById('front').scrollIntoView({behavior: 'instant'})")

    def hover(trace: int, point: int) -> str:
        box = page.locator("#chart .scatterlayer .trace").nth(trace).locator(".point").nth(point).bounding_box()
        page.mouse.move(1, 1)
        page.wait_for_selector("#chart .hovertext", state="detached")
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector("#chart .hovertext")
        return str(page.text_content("#chart .hovertext"))

    text = hover(1, 0)
    low, high = (100 * end for end in wilson_interval(0.89, 5000))
    assert "89.00 %" in text
    assert f"{low:.2f} % to {high:.2f} % (95 %, 5,000 images)" in text
    assert "90.00 % in the search (1,000 images)" in text
    assert "not confirmed" in hover(2, 0)
    assert "98.00 % in the search" in hover(-1, 0), "the dense model's, too"


def test_hostile_names_stay_text(
    open_page: Callable[..., Any], tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]
) -> None:
    write_evil_report(tmp_path / "report.html", make_spec, evaluations)
    page = open_page(tmp_path / "report.html", 390)
    assert page.evaluate("window.hacked") is None
    assert page.text_content("h1") == EVIL
    assert page.evaluate("document.documentElement.scrollWidth") == 390


HOSTILE = [
    *(
        "<script>hacked=1</script>",
        "</title></style></textarea><svg onload=hacked=1>",
        "<!--><img src=x onerror=hacked=1>",
    ),
    *(
        '"><iframe srcdoc="<script>parent.hacked=1</script>">',
        "' autofocus onfocus=hacked=1 '",
        "]]><script>hacked=1//",
    ),
    *("<link rel=stylesheet href=http://evil.test/x.css>", "<base href=http://evil.test/>", "javascript:hacked=1"),
    *("<meta http-equiv=refresh content='0;url=http://evil.test'>", "<a href='javascript:hacked=1'>click</a>"),
    *(
        "{{ 7*7 }}{% raw %}",
        "${hacked=1}",
        "%{texttemplate}<b>bold</b>",
        "\\u003cscript\\u003ehacked=1",
        "&lt;img&gt;",
    ),
    *("\u2028hacked=1\u2029", "\u202eright to left", "</script", "<math><mi//xlink:href='data:x,<script>hacked=1'>"),
    *(
        "<style>@import 'http://evil.test/y.css'</style>",
        "url(http://evil.test/z.png)",
        "a" * 3000,
        "\ud83d\ude00",
        "=1+1",
    ),
    *(
        "<object data=http://evil.test>",
        "<form action=http://evil.test><button id=go>",
        "`${alert(1)}`",
        "\\'-hacked=1//",
    ),
]


def test_nothing_in_hostile_strings_runs_or_is_fetched(
    open_page: Callable[..., Any], tmp_path: Path, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    strings = [one.encode(errors="surrogatepass").decode("utf-8", "replace") for one in HOSTILE]
    everything = " ".join(strings)
    spec = make_spec(
        name=everything,
        data=f"folder:{everything}",
        checkpoint=everything,
        space=everything,
        sampler=everything,
        versions=dict(zip(strings, strings, strict=True)),
        config={"trials": 1, "class_order": everything, "checkpoint": everything},
    )
    found = [make_evaluation(f"{i + 1}:0.5", top1=0.5, number=i, origin=one) for i, one in enumerate(strings[:11])]
    found += [
        make_evaluation(
            f"1:0.{i + 11}", top1=None, state="failed", failure="ERROR", error=one, origin=one, number=20 + i
        )
        for i, one in enumerate(strings)
    ]
    pictures = [make_picture(one) for one in strings]
    write_report(tmp_path / "report.html", Study(1, NOW, spec, 11, 1), found, pictures)
    page = open_page(tmp_path / "report.html", 1280)
    for heading in page.locator("th button").all():
        if heading.is_visible():
            heading.click()
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert (
        page.evaluate(
            "document.querySelectorAll('iframe, object, base, form, svg[onload], meta[http-equiv=refresh]').length"
        )
        == 0
    )
    assert page.evaluate(
        "[...document.querySelectorAll('*')].every(e => ![...e.attributes].some(a => a.name.startsWith('on')))"
    )
    assert page.text_content("h1").split() == everything.split(), "shown as it is"


def test_the_plot_page_renders(
    open_page: Callable[..., Any], tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]
) -> None:
    plot_front(tmp_path / "front.html", Study(1, NOW, make_spec(name=EVIL), 12, 1), evaluations)
    page = open_page(tmp_path / "front.html", 390)
    assert points(page) == [7, 5, 1, 1]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("window.hacked") is None


def test_an_empty_study_renders(open_page: Callable[..., Any], tmp_path: Path, make_spec: MakeSpec) -> None:
    write_report(tmp_path / "report.html", Study(1, NOW, make_spec()), [])
    assert points(open_page(tmp_path / "report.html", 390)) == [1], "the dense model alone"


def test_the_front_over_time(
    open_page: Callable[..., Any], tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]
) -> None:
    numbered = [replace(e, number=i) for i, e in enumerate(reversed(evaluations))]  # the front comes last
    write_report(tmp_path / "report.html", Study(1, NOW, make_spec(), 12, 1), numbered)
    page = open_page(tmp_path / "report.html", 1280)
    slider = page.locator("#upto")
    assert (slider.get_attribute("max"), page.text_content(".timeline output")) == ("13", "all 13 evaluations")
    assert page.locator("#chart .annotation-arrow-g path").count() > 0, "fine-tuning is an arrow"
    slider.fill("8")
    assert page.text_content(".timeline output") == "8 of 13 evaluations"
    until(page, "document.getElementById('chart').data[1].name === 'front after 8'")
    drawn = page.evaluate("document.getElementById('chart').data.map(trace => trace.customdata || [])")
    early = [e for e in numbered if e.number < 8 and e.state == "done"]
    front = {e.hash for e in early if not any(o.flops <= e.flops and o.top1 > e.top1 for o in early)}
    assert (set(drawn[1]), set(drawn[0])) == (front, {e.hash for e in early} - front)
    slider.press("End")
    until(page, "document.getElementById('chart').data[1].name.startsWith('Pareto front')")
    assert points(page) == [7, 5, 1, 1]


def test_the_table_of_all_evaluations_sorts_filters_and_copies(
    open_page: Callable[..., Any], tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]
) -> None:
    write_report(tmp_path / "report.html", Study(1, NOW, make_spec(), 12, 1), evaluations)
    page = open_page(tmp_path / "report.html", 1280)
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")

    def hashes() -> list[str]:
        return page.evaluate("[...document.querySelectorAll('#all tbody tr')].map(row => row.dataset.hash)")

    assert hashes() == [e.hash for e in evaluations], "in recorded order"
    heading = page.locator("#all th", has_text="Top-1")
    heading.locator("button").press("Enter")
    ranked = sorted(evaluations[:12], key=lambda e: -(e.top1 or 0))
    assert hashes() == [*(e.hash for e in ranked), evaluations[12].hash], "missing values come last"
    assert heading.get_attribute("aria-sort") == "descending"
    heading.locator("button").click()
    assert hashes()[0] == evaluations[11].hash and hashes()[-1] == evaluations[12].hash
    page.fill("#all-filter", "FRONT 0.7")
    assert set(hashes()) == {e.hash for e in evaluations[:5]}
    page.click("#all-copy")
    until(page, "window.copied")
    rows = list(csv.DictReader(io.StringIO(page.evaluate("window.copied"))))
    assert {row["schedule"] for row in rows} == {e.schedule.text for e in evaluations[:5]}
    assert list(rows[0]) == sorted(evaluation_columns(evaluations, set())), "values that are not columns are left out"
    assert all(None not in row and None not in row.values() for row in rows)
    page.evaluate(f"document.dispatchEvent(new CustomEvent('evaluation', {{ detail: '{evaluations[7].hash}' }}))")
    assert page.get_attribute("#all tr.found", "data-hash") == evaluations[7].hash
    page.click("[data-copy=commands]")
    until(page, "window.copied.startsWith('prunefront search')")


def test_ten_thousand_evaluations(
    open_page: Callable[..., Any], tmp_path: Path, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    random = np.random.default_rng(0)
    costs, noise = random.uniform(400_000, 800_000, 10_000), random.uniform(0, 0.3, 10_000)
    many = [
        make_evaluation(f"{i % 11 + 1}:0.{i + 1:05}", int(cost), 0.95 * (cost / 800_000) ** 0.3 - lost, number=i)
        for i, (cost, lost) in enumerate(zip(costs.tolist(), noise.tolist(), strict=True))
    ]
    write_report(tmp_path / "report.html", Study(1, NOW, make_spec(), 10_000), many)
    assert (tmp_path / "report.html").stat().st_size < 16_000_000
    page = open_page(tmp_path / "report.html", 390)
    assert page.evaluate("document.querySelectorAll('*').length") < 6000, "most points are not elements"
    assert page.evaluate("document.getElementById('chart').data[0].x.length") > 9000
    assert page.locator("#chart .no-webgl").count() == 0
    page.evaluate("document.getElementById('front').scrollIntoView({behavior: 'instant'})")
    there = page.evaluate(
        """() => {
          const chart = document.getElementById("chart");
          const [{ xaxis, yaxis }, { x, y }] = [chart._fullLayout, chart.data[0]];
          const i = x.findIndex((value, i) => y[i] > yaxis.range[0] + 1 && y[i] < 60 && value > 0.6);
          const box = chart.getBoundingClientRect();
          return [box.x + xaxis._offset + xaxis.d2p(x[i]), box.y + yaxis._offset + yaxis.d2p(y[i])];
        }"""
    )
    page.mouse.move(*there)
    page.wait_for_selector("#chart .hovertext")
    assert "of dense" in page.text_content("#chart .hovertext")
    for title in ("Top-1", "Share", "Schedule"):
        heading = page.locator("#all th", has_text=title)
        if heading.is_visible():
            heading.locator("button").click()
        assert page.locator("#all tbody tr").count() == 25
    page.fill("#all-filter", many[4321].hash)
    assert page.text_content("#all-count").startswith("1–1 of 1 ")
    page.fill("#all-filter", "")
    page.click("#all-on")
    assert page.text_content("#all-count").startswith("26–50 of 10,000")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
