import pytest

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
def test_what_is_no_budget(text):
    with pytest.raises(BudgetError, match="FLOPs budget") as caught:
        FlopsBudget.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["0.6", "3.6G", "900M", "12K", "0.5K"])
def test_the_text_form_reads_back(text):
    assert FlopsBudget.parse(str(FlopsBudget.parse(text))) == FlopsBudget.parse(text)
