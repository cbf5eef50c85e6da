import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces import PruningSchedule, Stage, TokenLayout
from spaces.ratios import canonical, keep_ratio
from spaces.schedule import kept_tokens


@pytest.mark.parametrize("tokens", [1, 2, 9, 10, 49, 64, 100])
def test_the_ratio_has_the_fewest_digits_and_then_is_the_nearest(tokens):
    for kept in range(1, tokens + 1):
        for digits in (1, 2):
            numerators = range(1, 10**digits + 1)
            fitting = [m for m in numerators if kept_tokens(tokens, m / 10**digits) == kept]
            if fitting:
                best = min(fitting, key=lambda m: (abs(m * tokens - kept * 10**digits), m))
                assert keep_ratio(tokens, kept) == (best / 10**digits, kept)
                break
        else:
            pytest.fail(f"{kept} of {tokens}: two digits should suffice")


@given(st.integers(1, 4000), st.data())
def test_a_ratio_keeps_the_number_of_tokens_that_is_returned_with_it(tokens, data):
    kept = data.draw(st.integers(1, tokens))
    ratio, count = keep_ratio(tokens, kept)
    assert kept_tokens(tokens, ratio) == count
    assert len(repr(ratio)) <= len("0.123")
    assert abs(count - kept) <= max(1, tokens / 1000)
    if tokens <= 1000:
        assert count == kept
    assert keep_ratio(tokens, count) == (ratio, count)


@given(st.integers(1, 4000), st.data())
def test_more_tokens_have_a_larger_ratio(tokens, data):
    fewer, more = sorted(data.draw(st.tuples(st.integers(1, tokens), st.integers(1, tokens))))
    assert keep_ratio(tokens, fewer) <= keep_ratio(tokens, more)


def test_numbers_of_kept_tokens_out_of_range():
    for kept in (0, 50):
        with pytest.raises(ValueError, match="outside"):
            keep_ratio(49, kept)


LAYOUT = TokenLayout("model", (64, 64), (Stage(3, 16, 16), Stage(5, 8, 8)), protected=1)


@given(st.dictionaries(st.integers(1, 8), st.floats(0.01, 1.0), max_size=5))
def test_schedules_that_keep_the_same_tokens_have_one_canonical_form(keeps):
    schedule = PruningSchedule.of(keeps.items(), context="conv")
    one = canonical(schedule, LAYOUT)
    assert LAYOUT.tokens(one) == LAYOUT.tokens(schedule)
    assert canonical(one, LAYOUT) == one
    finer = PruningSchedule.of([(step.after, step.keep + 1e-9) for step in one.steps], **one.method.as_dict())
    assert canonical(finer, LAYOUT).hash == one.hash
    assert one.dense or one.method == schedule.method


def test_a_step_that_drops_nothing_is_removed():
    assert canonical(PruningSchedule.parse("1:0.5,5:0.995"), LAYOUT) == PruningSchedule.parse("1:0.5")


def test_a_step_at_the_end_of_a_stage_is_removed():
    assert canonical(PruningSchedule.parse("1:0.5,3:0.5,8:0.2"), LAYOUT) == PruningSchedule.parse("1:0.5")
