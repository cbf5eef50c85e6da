"""The data of the plots."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from results import Confirmation, Evaluation, Study, StudySpec
from results.records import FineTuned
from results.report.chart_json import chart_json, schedule_lines
from results.report.front_chart import FrontChart, evenly_spaced, flops_text, tokens_by_block
from spaces import PruningSchedule, Stage, TokenLayout

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]
TUNED = FineTuned(1, 0.97, 0.97, 0.97, 1000, "val, first 1,000")
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def test_the_chart_sorts_the_evaluations(make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    cheap = make_evaluation("1:0.5", flops=500_000, top1=0.9)
    dear = make_evaluation("2:0.5", flops=700_000, top1=0.95, finetuned=TUNED)
    worse = make_evaluation("3:0.5", flops=600_000, top1=0.85)
    hopeless = make_evaluation("4:0.5", flops=600_000, top1=0.1)
    failed = make_evaluation("5:0.5", top1=None, state="failed", failure="OOM")
    chart = FrontChart.of(Study(1, NOW, make_spec()), [dear, worse, failed, cheap, hopeless])
    assert chart.front == [cheap, dear]
    assert chart.others == [worse, hopeless]
    assert chart.tuned == [dear]
    assert chart.budget_ratio == 0.8
    low, high = chart.view()
    assert 10 < low < 90
    assert 98 < high <= 102
    assert chart.hidden() == sum(100 * (e.top1 or 0) < low for e in chart.others) >= 1
    drawn = chart_json(chart)
    assert [point["y"] for point in drawn["front"]] == [90.0, 95.0]
    assert [(point["y"], point["before"]) for point in drawn["tuned"]] == [(97.0, 95.0)]
    assert drawn["dense"] == {"x": 1.0, "y": 98.0, "flops": "1.00 M", "search": None, "images": 1000}
    assert all(point["low"] < point["y"] < point["high"] for point in drawn["front"])
    assert drawn["line"] and not any(point["unconfirmed"] for point in drawn["front"])


def test_confirmed_scores_are_drawn_and_the_searchs_own_are_kept(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    lucky, plain = make_evaluation("1:0.5", flops=500_000, top1=0.96), make_evaluation("2:0.5", 600_000, 0.94)
    lucky = replace(lucky, confirmed=Confirmation(lucky.hash, 0.92, 0.3, 0.93, 5000, 1.0, 1.0, 0.8))
    dense = Confirmation(PruningSchedule().hash, 0.97, 0.1, 1.0, 5000, 1.0, 1.0, 0.8)
    chart = FrontChart.of(Study(1, NOW, make_spec(), done=2, confirmed=2), [lucky, plain], dense)
    assert (chart.front, chart.others) == ([lucky], [plain]), "by the search's scores the second is dominated"
    assert (chart.dense_top1, chart.dense_height) == (0.97, 97.0)
    better = make_evaluation("3:0.5", 600_000, 0.97)
    chart = FrontChart.of(Study(1, NOW, make_spec(), done=2, confirmed=2), [lucky, better], dense)
    drawn = chart_json(chart)
    first, second = drawn["front"]
    assert (first["y"], first["images"], first["search"]) == (92.0, 5000, {"y": 96.0, "images": 1000})
    assert (second["y"], second["images"], second["search"]) == (97.0, 1000, None)
    assert (first["unconfirmed"], second["unconfirmed"]) == (False, True)
    assert first["high"] - first["low"] < second["high"] - second["low"], "more images, a narrower bar"
    assert (drawn["dense"]["y"], drawn["dense"]["search"]) == (97.0, {"y": 98.0, "images": 1000})


def test_stopped_evaluations_are_counted_and_not_drawn(make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    stopped = [make_evaluation(f"{i}:0.5", top1=1.0, state="stopped", images=100) for i in (1, 2)]
    chart = FrontChart.of(Study(1, NOW, make_spec(), done=1, stopped=2), [*stopped, make_evaluation("3:0.5")])
    assert (len(chart.front), chart.others, chart.stopped) == (1, [], 2)
    assert chart.missing() == "2 stopped early, not drawn"


@pytest.mark.parametrize(
    ("objectives", "x", "y", "line"),
    [
        (("top1", "flops"), "flops", "top1", True),
        (("latency", "top1"), "latency", "top1", True),
        (("agreement", "flops"), "flops", "agreement", True),
        (("loss", "latency"), "latency", "loss", True),
        (("top1", "flops", "latency"), "flops", "top1", False),
        (("agreement", "top1"), "flops", "top1", False),
        (("latency", "flops"), "flops", "top1", False),
        (("loss",), "flops", "loss", False),
    ],
)
def test_the_axes_follow_the_objectives(
    make_spec: MakeSpec,
    make_evaluation: MakeEvaluation,
    objectives: tuple[str, ...],
    x: str,
    y: str,
    line: bool,
) -> None:
    evaluations = [
        make_evaluation(
            f"{i + 1}:0.5", 400_000 + 50_000 * i, 0.9 + 0.01 * i, loss=0.4 - 0.04 * i, latency_ratio=0.9 - 0.05 * i
        )
        for i in range(5)
    ]
    unmeasured = make_evaluation("6:0.5", 350_000, 0.99, loss=0.01)
    study = Study(1, NOW, make_spec(objectives=objectives))
    chart = FrontChart.of(study, [*evaluations, unmeasured])
    assert (chart.x.objective, chart.y.objective, chart.line) == (x, y, line)
    assert (unmeasured in [*chart.front, *chart.others]) == (x == "flops")
    assert [chart.cost(e) for e in chart.front] == sorted(chart.cost(e) for e in chart.front)
    low, high = chart.view()
    assert low < chart.dense_height < high
    assert all(low <= chart.height(e) <= high for e in chart.front)
    assert (chart.span(evaluations[0])[0] < chart.height(evaluations[0])) == (y != "loss"), "a share has a bar"
    drawn = chart_json(chart)
    assert (drawn["budget"] is None) == (x == "latency")
    assert drawn["axes"]["x"]["title"] == chart.x.title


def test_a_minimised_axis_hides_outliers_above(make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    front = [make_evaluation(f"{i}:0.5", i, loss=loss) for i, loss in enumerate([9.0, 0.2, 0.15, 0.12, 0.1], 1)]
    chart = FrontChart.of(Study(1, NOW, make_spec(objectives=("loss", "flops"))), front)
    assert chart.front == front
    assert chart.view()[1] < 1
    assert (chart.hidden(), chart.missing()) == (1, "1 outside the plot")


def test_an_outlier_on_the_front_does_not_flatten_the_rest(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    front = [make_evaluation(f"{i}:0.5", flops=i, top1=t) for i, t in enumerate([0.2, 0.94, 0.95, 0.96, 0.97], 1)]
    chart = FrontChart.of(Study(1, NOW, make_spec()), front)
    assert chart.front == front
    assert chart.view()[0] > 80
    assert chart.hidden() == 1


def test_an_empty_chart_has_a_view(make_spec: MakeSpec) -> None:
    low, high = FrontChart.of(Study(1, NOW, make_spec()), []).view()
    assert low < 98 < high


def test_tokens_that_each_block_processes() -> None:
    layout = TokenLayout("staged", (32, 32), (Stage(3, 4, 4), Stage(2, 2, 2)))
    blocks = tokens_by_block(layout, PruningSchedule.parse("1:0.5,4:0.5"))
    assert [b.tokens for b in blocks] == [16, 8, 8, 4, 2], "a step after block L takes effect in block L + 1"
    assert [b.of for b in blocks] == [16, 16, 16, 4, 4]
    assert [b.block for b in blocks if b.first] == [1, 2, 4, 5]
    assert blocks[1].share == 0.5


@pytest.mark.parametrize(
    ("flops", "text"),
    [(5, "5"), (1_000, "1.00 K"), (999_999_999, "1000 M"), (3_580_000_000, "3.58 G"), (20_887_000_000, "20.9 G")],
)
def test_flops_as_text(flops: int, text: str) -> None:
    assert flops_text(flops) == text


def test_labels_and_spacing() -> None:
    assert schedule_lines(PruningSchedule()) == ["dense"]
    assert schedule_lines(PruningSchedule.parse("1:0.9,2:0.8,3:0.7,4:0.6,5:0.12345;importance=l2")) == [
        "1:0.9, 2:0.8, 3:0.7, 4:0.6", "5:0.1235", "importance l2",
    ]  # fmt: skip
    assert evenly_spaced([1, 2], 5) == [1, 2]
    assert evenly_spaced(list(range(100)), 4) == [0, 33, 66, 99]
