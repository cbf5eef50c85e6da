"""Values become schedules within the budget, and schedules become values again."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spaces import FlopsBudget, PruningSchedule, Stage, TokenLayout
from spaces.errors import BudgetError, SpaceError
from spaces.parameters import ChoiceParameter
from spaces.ratios import canonical
from spaces.space import make_space
from tests.spaces.fakes import DENSE, LAYOUT, STAGED, flops, staged_flops, texts, value_of


@settings(max_examples=300)
@given(texts, st.floats(0.6, 1.0), st.data())
def test_every_candidate_lies_within_the_budget(text, share, data):
    space = make_space(text, LAYOUT, flops, FlopsBudget(share))
    values = data.draw(st.fixed_dictionaries({k: value_of(p) for k, p in space.parameters.items()}))
    schedule = space.schedule(values)
    assert flops(schedule) <= space.limit <= share * DENSE
    assert canonical(schedule, LAYOUT) == schedule
    assert set(schedule.contexts) <= set(space.choices["context"])
    for name in ("importance", "alignment", "reduction"):
        assert schedule.dense or getattr(schedule.method, name) in space.choices[name]


@settings(max_examples=100)
@given(st.floats(0.15, 0.5), st.data())
def test_methods_that_cannot_reach_a_small_budget_are_replaced(share, data):
    space = make_space("stages", LAYOUT, flops, FlopsBudget(share))
    values = data.draw(st.fixed_dictionaries({k: value_of(p) for k, p in space.parameters.items()}))
    schedule = space.schedule(values)
    assert flops(schedule) <= space.limit
    assert schedule.method.context != "freeze"  # frozen tokens cost half of all: too much


@settings(max_examples=100)
@given(texts, st.tuples(st.floats(0.6, 1.0), st.floats(0.6, 1.0)).map(sorted), st.data())
def test_targets_range_over_the_budget(text, ends, data):
    space = make_space(text, LAYOUT, flops, FlopsBudget(ends[1], low=ends[0]))
    assert (space.least, space.limit) == (int(ends[0] * DENSE), int(ends[1] * DENSE))
    values = data.draw(st.fixed_dictionaries({k: value_of(p) for k, p in space.parameters.items()}))
    target = space.least + values["target"] * (space.limit - space.least)
    schedule = space.schedule(values)
    token = 100 * LAYOUT.depth  # what one token costs at most; a small rise in strength may take one at each step
    assert target - (len(schedule.steps) + 1) * token <= flops(schedule) <= target


def test_the_lowest_target_is_one_that_the_space_reaches():
    space = make_space("stages;context=freeze", LAYOUT, flops, FlopsBudget(0.7, low=0.1))
    assert space.least == space.floor > 0.1 * DENSE


@settings(max_examples=100)
@given(st.data())
def test_a_round_trip_through_values_keeps_places_and_does_not_raise_the_cost(data):
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


def test_hand_made_schedules_survive_a_round_trip_through_values():
    space = make_space("stages", LAYOUT, flops, FlopsBudget(0.9))
    for text in ("3:0.8,5:0.8,8:0.8", "3:0.7,8:0.7", "4:0.6", "3:0.8,5:0.8,8:0.8;context=freeze"):
        schedule = PruningSchedule.parse(text)
        assert space.schedule(space.values(schedule)) == schedule


def test_schedules_that_the_space_cannot_express_have_no_values():
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


def test_a_budget_below_what_the_space_reaches():
    with pytest.raises(BudgetError, match="cheapest schedule"):
        make_space("stages", LAYOUT, flops, FlopsBudget(0.05))


def test_each_step_may_choose_its_own_context():
    space = make_space("stages:3; context = each: drop, freeze", LAYOUT, flops, FlopsBudget(0.9))
    assert space.text == "stages:3;context=each:drop,freeze"
    assert make_space(space.text, LAYOUT, flops, FlopsBudget(0.9)).parameters == space.parameters
    assert {f"context_{i}" for i in (1, 2, 3)} <= space.parameters.keys()
    assert "context" not in space.parameters
    mixed = canonical(PruningSchedule.parse("3:0.8:freeze,5:0.8,8:0.8"), LAYOUT)
    values = space.values(mixed)
    assert (values["context_1"], values["context_2"], values["context_3"]) == ("freeze", "drop", "drop")
    assert space.schedule(values).contexts == mixed.contexts
    plain = make_space("stages:3;context=drop,freeze", LAYOUT, flops, FlopsBudget(0.9))
    assert plain.values(mixed) is None
    assert not plain.context_per_step


def test_contexts_that_cannot_reach_the_budget_are_replaced():
    space = make_space("stages:3;context=each:drop,freeze", LAYOUT, flops, FlopsBudget(0.4))
    frozen = {f"context_{i}": "freeze" for i in (1, 2, 3)}
    places = {"after_1": 2, "after_2": 4, "after_3": 6, "weight_1": 0.5, "weight_2": 1.0, "weight_3": 0.5}
    schedule = space.schedule({**places, **frozen, "target": 1.0})
    assert flops(schedule) <= space.limit
    assert set(schedule.contexts) == {"drop"}
    assert len(schedule.steps) > 1


def test_targets_do_not_depend_on_the_order_of_the_contexts():
    spaces = [
        make_space(f"stages:1;context=each:{order}", LAYOUT, flops, FlopsBudget(0.9))
        for order in ("drop,freeze", "freeze,drop")
    ]
    values = {"after_1": 2, "weight_1": 1.0, "context_1": "drop", "target": 0.0}
    assert spaces[0].schedule(values) == spaces[1].schedule(values)


@settings(max_examples=100)
@given(st.sampled_from(["stages", "stages:1", "stages:5", "per-block"]), st.floats(0.35, 1.0), st.data())
def test_in_a_model_with_stages_no_step_follows_the_last_block_of_one(text, share, data):
    space = make_space(text, STAGED, staged_flops, FlopsBudget(share))
    values = data.draw(st.fixed_dictionaries({k: value_of(p) for k, p in space.parameters.items()}))
    schedule = space.schedule(values)
    assert staged_flops(schedule) <= space.limit
    assert {step.after for step in schedule.steps} <= set(STAGED.places)
    assert canonical(schedule, STAGED) == schedule
    back = space.values(schedule)
    if back is not None:
        assert {step.after for step in space.schedule(back).steps} <= {step.after for step in schedule.steps}


def test_in_a_model_with_stages_hand_made_schedules_survive_a_round_trip():
    space = make_space("stages", STAGED, staged_flops, FlopsBudget(0.95))
    for text in ("1:0.8,5:0.8,9:0.8", "3:0.7,6:0.7", "4:0.6"):
        schedule = PruningSchedule.parse(text)
        assert space.schedule(space.values(schedule)) == schedule
    assert space.values(PruningSchedule.parse("2:0.5,4:0.6")) is None


def test_a_model_that_cannot_be_pruned():
    layout = TokenLayout("short", (32, 32), (Stage(1, 8, 8), Stage(1, 4, 4)))
    for text in ("stages:1", "per-block"):
        with pytest.raises(SpaceError, match="short cannot be pruned: every stage is a single block"):
            make_space(text, layout, lambda schedule: 100, FlopsBudget(0.7))


@pytest.mark.parametrize("count", [0, 12])
def test_more_steps_than_the_model_has_room_for(count):
    with pytest.raises(SpaceError, match=f"space stages:{count}: model has room for 1 to 11 steps"):
        make_space(f"stages:{count}", LAYOUT, flops, FlopsBudget(0.9))


@given(texts, st.data())
def test_values_are_within_their_parameters_bounds(text, data):
    space = make_space(text, LAYOUT, flops, FlopsBudget(0.8))
    drawn = data.draw(st.fixed_dictionaries({k: value_of(p) for k, p in space.parameters.items()}))
    values = space.values(space.schedule(drawn))
    assume(values is not None)
    assert values.keys() == space.parameters.keys()
    for name, parameter in space.parameters.items():
        if isinstance(parameter, ChoiceParameter):
            assert values[name] in parameter.choices
        else:
            assert parameter.low <= values[name] <= parameter.high


def test_a_choice_that_the_model_does_not_offer():
    offers = {"importance": ("clip",), "alignment": ("on",), "reduction": ("prune",), "context": ("drop", "freeze")}
    budget = FlopsBudget(0.9)
    assert make_space("stages", LAYOUT, flops, budget, offers).choices["context"] == ("drop", "freeze")
    with pytest.raises(SpaceError, match=f"alignment=off: {LAYOUT.model} offers on"):
        make_space("stages;alignment=on,off", LAYOUT, flops, budget, offers)
