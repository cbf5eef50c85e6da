"""Patterns are counted over the good schedules only."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results import Evaluation, Study, StudySpec
from results.report.front_chart import FrontChart
from results.report.patterns import BANDS, Patterns, band, describe_patterns, good_schedules

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]
NOW = datetime(2026, 11, 21, tzinfo=UTC)


@given(st.integers(1, 1000))
def test_a_band_ends_with_its_upper_bound(thousandths: int) -> None:
    keep, found = thousandths / 1000, band(thousandths / 1000)
    assert found / BANDS < keep + 1e-12 and keep <= (found + 1) / BANDS + 1e-12
    assert 0 <= found < BANDS
    assert band(0.7) == 6 and band(0.3) == 2


def test_good_schedules_are_the_front_and_those_within_one_point(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    front = [make_evaluation("3:0.5", 500_000, 0.90), make_evaluation("3:0.6,6:0.8", 600_000, 0.95)]
    near = make_evaluation("3:0.52", 550_000, 0.892)
    others = [
        make_evaluation("9:0.1", 500_001, 0.88),
        make_evaluation("8:0.1", 700_000, 0.93),
        make_evaluation("7:0.1", 510_000, 0.5),
        make_evaluation("", 1_000_000, 0.98),
        make_evaluation("2:0.1", 400_000, 0.99, state="stopped"),
    ]
    chart = FrontChart.of(Study(1, NOW, make_spec(), 7), [*others, *front, near])
    assert {e.hash for e in good_schedules(chart)} == {e.hash for e in [*front, near]}
    patterns = Patterns.of(chart)
    assert patterns.schedules == 3 and len(patterns.blocks) == 12
    third, sixth = patterns.blocks[2], patterns.blocks[5]
    assert (third.share, third.keep) == (1.0, 0.52)
    assert third.bands[4:6] == pytest.approx((1 / 3, 2 / 3))
    assert (sixth.share, sixth.keep) == (pytest.approx(1 / 3), 0.8)
    assert [pattern.block for pattern in patterns.common_blocks] == [3, 6]
    assert (patterns.low, patterns.high) == (4, 8)
    assert describe_patterns(patterns.common_blocks)[0] == "100 % prune after block 3; the median keeps 0.52 there"


def test_an_empty_study_has_no_patterns(make_spec: MakeSpec) -> None:
    patterns = Patterns.of(FrontChart.of(Study(1, NOW, make_spec()), []))
    assert (patterns.schedules, patterns.largest_band, patterns.common_blocks) == (0, 0.0, [])
