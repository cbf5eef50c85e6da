"""The pages: what stands in them, that nothing is fetched or executed, and how a real browser shows them."""

import base64
import csv
import inspect
import io
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from results import Confirmation, Evaluation, FineTune, Study, StudySpec
from results.charts import FrontChart, tokens_by_block
from results.intervals import wilson_interval
from results.listing import listing
from results.pictures import TILE, TokenPicture, tiles
from results.plot import plot_front
from results.report import Cost, Profile, Summary, reproducing_commands, write_report
from search.cli import app
from spaces import PruningSchedule, Stage, TokenLayout
from spaces.errors import PrunefrontError, UsageError

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]
NOW = datetime(2026, 11, 21, tzinfo=UTC)
EVIL = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">{{ 7*7 }}\'&'


@pytest.fixture
def evaluations(make_evaluation: MakeEvaluation) -> list[Evaluation]:
    """Twelve done, five of them on the front, one fine-tuned, one hopeless, and one failed."""
    front = [
        make_evaluation(f"{i + 1}:0.5,9:0.7;context=freeze", 400_000 + 60_000 * i, 0.9 + 0.012 * i, number=i)
        for i in range(5)
    ]
    front[3] = make_evaluation("4:0.5,9:0.7;context=freeze", 580_000, 0.936, number=3, finetuned_top1=0.97)
    rest = [make_evaluation(f"{i + 1}:0.4", 500_000 + 30_000 * i, 0.85 - 0.01 * i, number=5 + i) for i in range(6)]
    hopeless = make_evaluation("1:0.1", 450_000, 0.1, number=11)
    failed = make_evaluation("2:0.1", top1=None, state="failed", failure="OOM", error=EVIL, number=12)
    return [*front, *rest, hopeless, failed]


DENSE = Confirmation(PruningSchedule().hash, 0.97, 0.1, 1.0, 5000, 1.0, 1.0, 0.8)


@pytest.fixture
def confirmed(make_spec: MakeSpec, evaluations: list[Evaluation]) -> tuple[Study, list[Evaluation]]:
    """A study of which three points of the front are confirmed, and two more were stopped."""
    scores = {
        e.hash: Confirmation(e.hash, (e.top1 or 0.0) - 0.01, 0.3, 0.9, 5000, 1.0, 1.0, 0.8) for e in evaluations[:3]
    }
    stopped = [replace(evaluations[-2], schedule=PruningSchedule.parse(f"{i}:0.2"), state="stopped") for i in (1, 2)]
    found = [replace(e, confirmed=scores.get(e.hash)) for e in evaluations]
    return Study(1, NOW, make_spec(), 12, 1, 2, confirmed=4), [*found, *stopped]


def until(page: Any, condition: str) -> None:
    """Wait for a condition; Playwright's own waiting evaluates text in the page, which its policy forbids."""
    deadline = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def make_picture(label: str = "seven") -> TokenPicture:
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    schedule = PruningSchedule.parse("3:0.5,6:0.2")
    return TokenPicture(image, label, schedule, [list(range(25)), [0, 8, 24, 10, 11]], [(7, 7)] * 2, label, "one")


def write_evil_report(path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]) -> None:
    spec = make_spec(
        name=EVIL, data=f"folder:/{EVIL}", checkpoint=EVIL, space=EVIL, versions={EVIL: EVIL}, budget="0.8"
    )
    write_report(path, Study(1, NOW, spec, 12, 1), evaluations, [make_picture(EVIL)])


# --- without a browser ------------------------------------------------------------------------------------


def test_the_page_stands_alone_and_escapes_every_text(
    tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]
) -> None:
    write_evil_report(tmp_path / "report.html", make_spec, evaluations)
    page = (tmp_path / "report.html").read_text()
    own = re.sub(r"<script>\s*/\*\*\s*\* plotly\.js.*?</script>", "", page, flags=re.DOTALL)
    assert len(own) < 200_000, "plotly is cut out"
    assert "window.hacked=1</script>" not in own
    assert 'onerror="' not in own
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own), "something is fetched"
    assert "49'" not in own, "a name was taken for a template"


def test_what_the_page_says(tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]) -> None:
    write_report(tmp_path / "report.html", Study(1, NOW, make_spec(), 12, 1), evaluations, commands=["make it so"])
    page = (tmp_path / "report.html").read_text()
    for e in evaluations[:5]:
        assert f'id="row-{e.hash}"' in page
    assert evaluations[5].hash not in page.split('<script type="application/json"')[0], "dominated: not in the table"
    assert "make it so" in page
    assert "97.00" in page, "the fine-tuned top-1"
    assert page.count("d" * 64) >= 1, "the digest of the data"


def test_the_page_tells_confirmed_scores_and_stopped_candidates(
    tmp_path: Path, confirmed: tuple[Study, list[Evaluation]]
) -> None:
    write_report(tmp_path / "report.html", *confirmed, dense_confirmed=DENSE)
    page = " ".join((tmp_path / "report.html").read_text().split('<script type="application/json"')[0].split())
    assert "Scores of the front were then confirmed on 5,000 images of the val split." in page
    assert "2 more were stopped early" in page
    assert page.count("not confirmed</td>") == 2
    assert '<td role="cell" class="strong" data-value="0.89">89.00</td>' in page, "the score that stands"
    assert "90.00</td>" in page, "the search's own"
    low, high = wilson_interval(0.89, 5000)
    assert f"{100 * low:.1f}–{100 * high:.1f}" in page
    assert "97.0<small>%</small>" in page, "the dense model's confirmed score"
    assert "e" * 64 in page


def test_the_summary_is_of_standing_scores(confirmed: tuple[Study, list[Evaluation]]) -> None:
    study, evaluations = confirmed
    worst = replace(evaluations[4], confirmed=Confirmation(evaluations[4].hash, 0.5, 1.0, 0.5, 5000, 1.0, 1.0, 0.8))
    summary = Summary.of(FrontChart.of(study, [*evaluations[:4], worst], DENSE))
    assert summary.best == evaluations[3], "the one that looked best was found to be bad"
    assert summary.images == 5000
    low, high = wilson_interval(0.97, 5000)
    assert summary.noise == pytest.approx((high - low) / 2)


def test_a_study_without_evaluations_has_a_page(tmp_path: Path, make_spec: MakeSpec) -> None:
    write_report(tmp_path / "report.html", Study(1, NOW, make_spec()), [])
    assert "No schedule has finished yet." in (tmp_path / "report.html").read_text()


def test_the_commands_reproduce_the_study(make_spec: MakeSpec) -> None:
    study = Study(1, NOW, make_spec(name="it's mine", checkpoint="/models/a b.safetensors"))
    search, front, export, report = reproducing_commands(study, 40)
    assert search.startswith("prunefront search --model vim_nano --data embedded --flops-budget 0.8 --trials 40 ")
    assert """--study 'it'"'"'s mine'""" in search
    assert "--checkpoint '/models/a b.safetensors'" in search
    assert report.endswith("--out report.html")
    assert front.startswith("prunefront front --study ") and export.endswith("--out schedule.json")
    assert "--objective" not in search
    other, *_ = reproducing_commands(Study(1, NOW, make_spec(objectives=("loss", "latency"))), 40)
    assert other.endswith("--objective loss --objective latency")


def test_what_was_fine_tuned_is_exported_and_fine_tuned_again(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    point = make_evaluation("3:0.8;context=freeze")
    config = {"lr": 0.001, "batch_size": 32, "seed": 5}
    record = FineTune(point.hash, 0.95, 0.2, 7, 1000, 60.0, "out/a b/model.safetensors", "f" * 64, config)
    study = Study(1, NOW, make_spec(checkpoint="w.pth"))
    _, _, export, finetune, _ = reproducing_commands(study, 40, [(point, record)])
    assert export == f"prunefront export --study digits --schedule '3:0.8;context=freeze' --out {point.hash}.json"
    assert finetune == (
        f"prunefront finetune {point.hash}.json --data embedded --checkpoint w.pth --epochs 7 --seed 5 --lr 0.001 "
        "--batch-size 32 --out 'out/a b' --study digits"
    )


def test_the_commands_are_commands(make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    point = make_evaluation()
    record = FineTune(point.hash, 0.95, 0.2, 7, 1000, 60.0, "out/m.safetensors", "f" * 64, {"lr": 0.001, "seed": 5})
    offered = {command.name or command.callback.__name__: command.callback for command in app.registered_commands}
    for line in reproducing_commands(Study(1, NOW, make_spec(checkpoint="w")), 40, [(point, record)]):
        _, name, *words = shlex.split(line)
        names = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
        hints = inspect.signature(offered[name]).parameters
        flags = {flag for p in hints.values() for flag in re.findall(r"--([a-z0-9-]+)", str(p.annotation))}
        assert names <= {*hints, *(flag.replace("-", "_") for flag in flags)}, line


def test_the_cost_adds_up(evaluations: list[Evaluation]) -> None:
    cost = Cost.of(evaluations)
    assert (cost.evaluations, cost.seconds, cost.median) == (13, 6.5, 0.5)
    assert cost.failures == [("OOM", 1, EVIL)]
    assert cost.origins == [("nsga2", 13)]
    assert cost.stopped == 0
    stopped = replace(evaluations[0], state="stopped", seconds=0.1)
    assert (Cost.of([*evaluations, stopped]).stopped, Cost.of([stopped]).median) == (1, None)


def test_the_cost_in_cpu_time_images_and_pace(make_evaluation: MakeEvaluation) -> None:
    times = [NOW + timedelta(seconds=s) for s in (0, 10, 20, 20_000, 20_010)]  # with a night's rest
    ran = [make_evaluation(f"{i + 1}:0.5", finished_at=time, number=i) for i, time in enumerate(times)]
    ran[1] = replace(ran[1], state="stopped", images=250)
    cost = Cost.of(ran, images=1000, cpus=4)
    assert (cost.cpu_seconds, cost.images, cost.spared) == (10.0, 4250, 0.15)
    assert cost.hourly == pytest.approx(360)
    assert (Cost.of([]).hourly, Cost.of([]).spared) == (None, 0.0)


def test_the_listing_has_every_evaluation_once(evaluations: list[Evaluation]) -> None:
    columns = listing(evaluations, {evaluations[0].hash})
    assert {len(column) for column in columns.values()} == {13}
    assert columns["hash"] == [e.hash for e in evaluations]
    assert [columns["state"][i] for i in (0, 1, 12)] == ["front", "done", "OOM"]
    assert columns["top1"][12] is None and columns["tuned"][3] == 0.97
    low, high = wilson_interval(0.9, 1000)
    assert (columns["low"][0], columns["high"][0]) == (low, high)


def test_numbers_above_the_bars_have_room(make_evaluation: MakeEvaluation) -> None:
    layout = TokenLayout("deep", (224, 224), (Stage(24, 14, 14),))
    schedule = PruningSchedule.of([(block, 0.9) for block in range(1, 24)])
    profile = Profile(make_evaluation(), tokens_by_block(layout, schedule))
    assert profile.labelled == set(range(1, 24, 2))


def test_dropped_patches_are_veiled_and_kept_ones_are_not() -> None:
    picture = make_picture()
    shown = tiles(picture)
    assert [tile.caption for tile in shown] == ["whole", "after 3: 25 of 49", "after 6: 5 of 49"]
    whole, first, second = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(tile.source.partition(",")[2])))) for tile in shown
    )
    cell = TILE // 7
    assert whole.shape == (TILE, TILE, 3)
    assert np.array_equal(whole[:: cell // 4, :: cell // 4][:28, :28], picture.image), "upscaled to the nearest"
    for pixels, kept in ((first, picture.kept[0]), (second, picture.kept[1])):
        for index in range(49):
            row, column = divmod(index, 7)
            patch = np.s_[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            assert np.array_equal(pixels[patch], whole[patch]) == (index in kept)


def test_each_step_is_shown_on_the_grid_of_its_stage() -> None:
    picture = replace(make_picture(), kept=[list(range(25)), [0, 3]], grids=[(7, 7), (2, 4)])
    whole, _, last = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(tile.source.partition(",")[2])))) for tile in tiles(picture)
    )
    same = (whole == last).all(-1)
    assert same[: TILE // 2, : TILE // 4].all() and same[: TILE // 2, 3 * TILE // 4 :].all()
    assert same.mean() == pytest.approx(2 / 8, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((28, 28), np.uint8)}, "expected"),
        ({"image": np.zeros((28, 28, 3), np.float32)}, "uint8"),
        ({"kept": [[0]]}, "1 lists for 2 steps"),
        ({"grids": [(7, 7)]}, "1 lists for 2 steps"),
        ({"kept": [[0], [49]]}, "outside the grid of 49"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    values = vars(make_picture()) | changes
    with pytest.raises(ValueError, match=message):
        TokenPicture(**values)


def test_plots_by_ending(tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]) -> None:
    study = Study(1, NOW, make_spec(name="costs $5 and $6_x$"), 12, 1)
    plot_front(tmp_path / "front.PNG", study, evaluations)
    with Image.open(tmp_path / "front.PNG") as image:
        assert image.format == "PNG"
        assert image.width >= 1000
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50, "something is drawn"
    plot_front(tmp_path / "front.html", study, evaluations)
    assert "Plotly.react" in (tmp_path / "front.html").read_text()
    for name, message in (("front.pdf", "ends in '.pdf'; use .html or .png"), ("front", "ends in 'nothing'")):
        with pytest.raises(UsageError, match=message):
            plot_front(tmp_path / name, study, evaluations)
    with pytest.raises(PrunefrontError, match="cannot be written"):
        plot_front(tmp_path / "nowhere" / "front.png", study, evaluations)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["front.PNG", "front.html"]


@pytest.mark.parametrize(
    "objectives", [("latency", "top1"), ("loss", "flops"), ("agreement", "flops", "latency"), ("top1",)]
)
def test_plots_of_other_objectives(
    tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation], objectives: tuple[str, ...]
) -> None:
    study = Study(1, NOW, make_spec(objectives=objectives), 12, 1)
    timed = [replace(e, latency_ratio=e.flops_ratio) for e in evaluations]
    for name in ("front.png", "front.html"):
        plot_front(tmp_path / name, study, timed)
        assert (tmp_path / name).stat().st_size > 10_000
    write_report(tmp_path / "report.html", study, timed)
    write_report(tmp_path / "report.html", study, evaluations)


# --- in a real browser ------------------------------------------------------------------------------------


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
    """Whether the page itself is to blame: what a graphics driver says of its speed is not."""
    return message.type in ("error", "warning") and not message.text.startswith("[.WebGL")


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a file at a width; whatever the page complains of, or tries to fetch, fails the test at its end."""
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
    """Count the points drawn of each trace that has any."""
    counted = page.evaluate(
        "[...document.querySelectorAll('#chart .scatterlayer .trace')]"
        ".map(trace => trace.querySelectorAll('.point').length)"
    )
    return [count for count in counted if count]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_renders_without_complaint_or_sideways_scroll(
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
    page.wait_for_timeout(200)
    fill = page.evaluate("getComputedStyle(document.querySelector('#chart .legendtext')).fill")
    assert fill == page.evaluate("getComputedStyle(document.querySelector('.lede')).color"), "the plot follows"


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
    assert page.evaluate(first) == f"row-{evaluations[3].hash}", "the one with a value stands before the gaps"


def test_the_front_is_walked_by_keyboard(
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


def test_both_scores_and_the_interval_are_read_off_a_point(
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


def test_the_table_of_all_sorts_filters_copies_and_is_found(
    open_page: Callable[..., Any], tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]
) -> None:
    write_report(tmp_path / "report.html", Study(1, NOW, make_spec(), 12, 1), evaluations)
    page = open_page(tmp_path / "report.html", 1280)
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")

    def hashes() -> list[str]:
        return page.evaluate("[...document.querySelectorAll('#all tbody tr')].map(row => row.dataset.hash)")

    assert hashes() == [e.hash for e in evaluations], "as they were recorded"
    heading = page.locator("#all th", has_text="Top-1")
    heading.locator("button").press("Enter")
    ranked = sorted(evaluations[:12], key=lambda e: -(e.top1 or 0))
    assert hashes() == [*(e.hash for e in ranked), evaluations[12].hash], "what failed stands last"
    assert heading.get_attribute("aria-sort") == "descending"
    heading.locator("button").click()
    assert hashes()[0] == evaluations[11].hash and hashes()[-1] == evaluations[12].hash
    page.fill("#all-filter", "FRONT 0.7")
    assert set(hashes()) == {e.hash for e in evaluations[:5]}
    page.click("#all-copy")
    until(page, "window.copied")
    rows = list(csv.DictReader(io.StringIO(page.evaluate("window.copied"))))
    assert {row["schedule"] for row in rows} == {e.schedule.text for e in evaluations[:5]}
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
    assert page.evaluate("document.querySelectorAll('*').length") < 6000, "most are no elements"
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
