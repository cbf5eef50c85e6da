import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces import FlopsBudget
from spaces.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "limit"),
    [("0.6", 600), ("1", 1000), (".5", 500), ("900", None), ("0.8K", 800), ("3.6G", 1000), ("1e-1", 100)],
)
def test_shares_and_absolute_numbers(text, limit):
    if limit is None:
        with pytest.raises(BudgetError):
            FlopsBudget.parse(text)
    else:
        assert FlopsBudget.parse(text).limit(1000) == limit


@pytest.mark.parametrize("text", ["0", "1.7", "abc", "", "-0.5", "nan", "inf", "3.6X", "0G", "1e999G", "0,6"])
def test_malformed_budgets(text):
    with pytest.raises(BudgetError, match="FLOPs budget") as caught:
        FlopsBudget.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "least", "limit"),
    [
        ("0.6", 300, 600),
        ("1", 500, 1000),
        ("5K", 500, 1000),
        ("0.5:0.7", 500, 700),
        ("0.8K:9K", 800, 1000),
        ("0.6:0.6", 600, 600),
        (" .5 : .7 ", 500, 700),
    ],
)
def test_targets_begin_at_half_the_limit_or_at_the_low_end_of_a_range(text, least, limit):
    budget = FlopsBudget.parse(text)
    assert (budget.least(1000), budget.limit(1000)) == (least, limit)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5:x", "part 'x': expected a share"),
        ("0:0.5", "part '0': must be above 0"),
        ("0.5:1.5", "part '1.5': a share is at most 1"),
        (":0.5", "part '': expected a share"),
        ("0.7:0.5", "begins above its end"),
        ("0.5:3G", "both be shares or both FLOPs"),
        ("0.1:0.2:0.3", "two ends"),
    ],
)
def test_malformed_ranges(text, said):
    with pytest.raises(BudgetError, match=f"FLOPs budget .*{said}") as caught:
        FlopsBudget.parse(text)
    assert "\n" not in str(caught.value)


def test_a_range_above_the_dense_model():
    with pytest.raises(BudgetError, match="'2K:3K': the range begins above the dense model's 1,000 FLOPs"):
        FlopsBudget.parse("2K:3K").least(1000)


shares = st.floats(1e-6, 1.0).map(repr)
absolutes = st.tuples(st.floats(1e-2, 1e6), st.sampled_from("KMGTg")).map(lambda pair: f"{pair[0]!r}{pair[1]}")


@given(
    shares | absolutes | st.sampled_from(["0.6", "3.6G", "900M", "12K", "0.5K", "0.5:0.7", "2.9G:3.6G", "0.5M:3G"])
)
def test_the_text_form_reads_back(text):
    assert FlopsBudget.parse(str(FlopsBudget.parse(text))) == FlopsBudget.parse(text)


@given(st.tuples(shares, shares).map(lambda pair: sorted(pair, key=float)), st.integers(1, 10**12))
def test_targets_stay_within_the_range(ends, dense):
    budget = FlopsBudget.parse(":".join(ends))
    assert 0 <= budget.least(dense) <= budget.limit(dense) <= dense
    assert str(FlopsBudget.parse(str(budget))) == str(budget)


def test_the_text_form_is_the_shortest():
    for text in ("0.6", "3.6G", "900M", "0.5:0.7", "2.9G:3.6G", "1"):
        assert str(FlopsBudget.parse(text)) == text
