"""The numbers behind the plots."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from results import Evaluation, Study, StudySpec
from results.charts import FrontChart, flops_text, schedule_lines, spread, tokens_by_block
from spaces import PruningSchedule, Stage, TokenLayout

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def test_the_chart_sorts_the_evaluations(make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    cheap = make_evaluation("1:0.5", flops=500_000, top1=0.9)
    dear = make_evaluation("2:0.5", flops=700_000, top1=0.95, finetuned_top1=0.97)
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
    drawn = chart.as_dict()
    assert [point["y"] for point in drawn["front"]] == [90.0, 95.0]
    assert [(point["y"], point["before"]) for point in drawn["tuned"]] == [(97.0, 95.0)]
    assert drawn["dense"] == {"x": 1.0, "y": 98.0, "flops": "1.00 M"}


def test_a_hopeless_point_of_the_front_does_not_press_the_rest_flat(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    front = [make_evaluation(f"{i}:0.5", flops=i, top1=t) for i, t in enumerate([0.2, 0.94, 0.95, 0.96, 0.97], 1)]
    chart = FrontChart.of(Study(1, NOW, make_spec()), front)
    assert chart.front == front
    assert chart.view()[0] > 80
    assert chart.hidden() == 1


def test_a_chart_of_nothing_still_has_a_view(make_spec: MakeSpec) -> None:
    low, high = FrontChart.of(Study(1, NOW, make_spec()), []).view()
    assert low < 98 < high


def test_tokens_that_each_block_works_on() -> None:
    layout = TokenLayout("staged", (32, 32), (Stage(3, 4, 4), Stage(2, 2, 2)))
    blocks = tokens_by_block(layout, PruningSchedule.parse("1:0.5,4:0.5"))
    assert [b.tokens for b in blocks] == [16, 8, 8, 4, 2], "a step after block L is felt from L + 1 on"
    assert [b.of for b in blocks] == [16, 16, 16, 4, 4]
    assert [b.block for b in blocks if b.first] == [1, 2, 4, 5]
    assert blocks[1].share == 0.5


@pytest.mark.parametrize(
    ("flops", "text"),
    [(5, "5"), (1_000, "1.00 K"), (999_999_999, "1000 M"), (3_580_000_000, "3.58 G"), (20_887_000_000, "20.9 G")],
)
def test_flops_in_words(flops: int, text: str) -> None:
    assert flops_text(flops) == text


def test_labels_and_spreading() -> None:
    assert schedule_lines(PruningSchedule()) == ["dense"]
    assert schedule_lines(PruningSchedule.parse("1:0.9,2:0.8,3:0.7,4:0.6,5:0.12345;importance=l2")) == [
        "1:0.9, 2:0.8, 3:0.7, 4:0.6", "5:0.1235", "importance l2",
    ]  # fmt: skip
    assert spread([1, 2], 5) == [1, 2]
    assert spread(list(range(100)), 4) == [0, 33, 66, 99]
