import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import FlopsBudget, PruningSchedule, Stage, TokenLayout
from spaces.errors import BudgetError, SpaceError, UnknownNameError
from spaces.published import PUBLISHED, published_schedules
from spaces.space import ChoiceParameter, FloatParameter, IntParameter, make_space

LAYOUT = TokenLayout("model", (28, 28), (Stage(12, 7, 7),), protected=1)


def flops(schedule: PruningSchedule) -> int:
    """A cost as of a model: an embedding, and blocks linear in their tokens; frozen ones cost half."""
    before = [49, *LAYOUT.tokens(schedule)[:-1]]
    pruned = {"drop": 0, "conv": 20, "freeze": 50}[schedule.method.context]
    return 500 + sum(100 * n + pruned * (49 - n) for n in before)


DENSE = flops(PruningSchedule())


def value_of(parameter):
    match parameter:
        case FloatParameter(low, high):
            return st.floats(low, high)
        case IntParameter(low, high):
            return st.integers(low, high)
        case ChoiceParameter(choices):
            return st.sampled_from(choices)


texts = st.sampled_from(
    [
        "stages",
        "stages:1",
        "stages:5",
        "per-block",
        "stages:3;context=drop;importance=clip,l2,random",
        "stages;context=freeze",
    ]
)


@settings(max_examples=300, deadline=None)
@given(texts, st.floats(0.6, 1.0), st.data())
def test_every_candidate_lies_within_the_budget(text, share, data):
    space = make_space(text, LAYOUT, flops, FlopsBudget(share))
    values = data.draw(st.fixed_dictionaries({k: value_of(p) for k, p in space.parameters.items()}))
    schedule = space.schedule(values)
    assert flops(schedule) <= space.limit <= share * DENSE
    LAYOUT.check(schedule)
    for name, choices in space.choices.items():
        assert schedule.dense or getattr(schedule.method, name) in choices


@settings(max_examples=100, deadline=None)
@given(st.floats(0.15, 0.5), st.data())
def test_small_budgets_are_reached_without_the_methods_that_cannot(share, data):
    space = make_space("stages", LAYOUT, flops, FlopsBudget(share))
    values = data.draw(st.fixed_dictionaries({k: value_of(p) for k, p in space.parameters.items()}))
    schedule = space.schedule(values)
    assert flops(schedule) <= space.limit
    assert schedule.method.context != "freeze"  # frozen tokens cost half of all: too much


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_values_give_a_schedule_of_the_same_places_and_no_higher_cost(data):
    space = make_space("per-block", LAYOUT, flops, FlopsBudget(0.8))
    values = data.draw(st.fixed_dictionaries({k: value_of(p) for k, p in space.parameters.items()}))
    schedule = space.schedule(values)
    back = space.values(schedule)
    if back is not None:
        assert back.keys() == space.parameters.keys()
        again = space.schedule(back)
        assert flops(again) <= flops(schedule)
        assert {s.after for s in again.steps} <= {s.after for s in schedule.steps}
        assert again.method == schedule.method


def test_a_hand_made_schedule_comes_back_exactly():
    space = make_space("stages", LAYOUT, flops, FlopsBudget(0.9))
    for text in ("3:0.8,5:0.8,8:0.8", "3:0.7,8:0.7", "4:0.6", "3:0.8,5:0.8,8:0.8;context=freeze"):
        schedule = PruningSchedule.parse(text)
        assert space.schedule(space.values(schedule)) == schedule


def test_what_the_space_cannot_express():
    space = make_space("stages:2;context=drop", LAYOUT, flops, FlopsBudget(0.9))
    for text in (
        "",
        "2:0.9,3:0.9,4:0.9",
        "3:0.5;importance=l2",
        "3:0.5;context=freeze",
        "12:0.1",
        "11:0.99",
        "3:0.01",
    ):
        assert space.values(PruningSchedule.parse(text)) is None


def test_the_text_makes_the_same_space():
    for text in ("stages", "per-block;importance=l2,clip", "stages:5;context=drop"):
        space = make_space(text, LAYOUT, flops, FlopsBudget(0.9))
        again = make_space(space.text, LAYOUT, flops, FlopsBudget(0.9))
        assert (again.text, again.parameters) == (space.text, space.parameters)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("stage", UnknownNameError),
        ("stages:0", SpaceError),
        ("stages:12", SpaceError),
        ("stages:x", SpaceError),
        ("per-block:3", SpaceError),
        ("stages;context", SpaceError),
        ("stages;context=gone", SpaceError),
        ("stages;context=drop;context=freeze", SpaceError),
        ("stages;colour=red", SpaceError),
    ],
)
def test_malformed_spaces(text, error):
    with pytest.raises(error):
        make_space(text, LAYOUT, flops, FlopsBudget(0.9))


def test_a_budget_below_what_the_space_reaches():
    with pytest.raises(BudgetError, match="cheapest schedule"):
        make_space("stages", LAYOUT, flops, FlopsBudget(0.05))


def test_published_schedules_fit_any_layout():
    for model in PUBLISHED:
        layout = TokenLayout(model, (224, 224), (Stage(24, 14, 14),), protected=1)
        assert [s.text for s in published_schedules(layout)] == list(PUBLISHED[model])
    for depth in (1, 2, 12, 36):
        layout = TokenLayout("other", (28, 28), (Stage(depth, 7, 7),))
        schedules = published_schedules(layout)
        assert schedules and len(set(schedules)) == len(schedules)
        for schedule in schedules:
            layout.check(schedule)
    assert PruningSchedule.parse("3:0.8,5:0.8,8:0.8") in published_schedules(LAYOUT)
