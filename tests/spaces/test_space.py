import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import FlopsBudget, PruningSchedule, Stage, TokenLayout
from spaces.errors import BudgetError, SpaceError, UnknownNameError
from spaces.published import PUBLISHED, published_schedules, starting_schedules
from spaces.ratios import canonical
from spaces.space import ChoiceParameter, FloatParameter, IntParameter, make_space

LAYOUT = TokenLayout("model", (28, 28), (Stage(12, 7, 7),), protected=1)


def flops(schedule: PruningSchedule) -> int:
    """A cost as of a model: an embedding, and blocks linear in their tokens; frozen ones cost half."""
    left = [49, *LAYOUT.tokens(schedule)]
    cost = 500 + sum(100 * n for n in left[:-1])
    for step, context in zip(schedule.steps, schedule.contexts, strict=True):
        later = LAYOUT.depth - step.after
        cost += {"drop": 0, "conv": 20, "freeze": 50}[context] * later * (left[step.after - 1] - left[step.after])
    return cost


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
        "stages:3;context=each:drop,conv,freeze",
        "per-block;context=each:conv,freeze;importance=l2",
    ]
)


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
def test_small_budgets_are_reached_without_the_methods_that_cannot(share, data):
    space = make_space("stages", LAYOUT, flops, FlopsBudget(share))
    values = data.draw(st.fixed_dictionaries({k: value_of(p) for k, p in space.parameters.items()}))
    schedule = space.schedule(values)
    assert flops(schedule) <= space.limit
    assert schedule.method.context != "freeze"  # frozen tokens cost half of all: too much


@settings(max_examples=100)
@given(texts, st.tuples(st.floats(0.6, 1.0), st.floats(0.6, 1.0)).map(sorted), st.data())
def test_targets_are_spread_over_the_budgets_range(text, ends, data):
    space = make_space(text, LAYOUT, flops, FlopsBudget(ends[1], low=ends[0]))
    assert (space.least, space.limit) == (int(ends[0] * DENSE), int(ends[1] * DENSE))
    values = data.draw(st.fixed_dictionaries({k: value_of(p) for k, p in space.parameters.items()}))
    target = space.least + values["target"] * (space.limit - space.least)
    schedule = space.schedule(values)
    token = 100 * LAYOUT.depth  # what one token costs at most; a small rise in strength may take one at each step
    assert target - (len(schedule.steps) + 1) * token <= flops(schedule) <= target


def test_the_least_is_what_the_space_reaches():
    space = make_space("stages;context=freeze", LAYOUT, flops, FlopsBudget(0.7, low=0.1))
    assert space.least == space.floor > 0.1 * DENSE


@settings(max_examples=100)
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


def test_what_a_model_does_not_offer_is_left_out_and_refused_where_it_is_asked_for():
    offers = {"importance": ("clip",), "alignment": ("on",), "reduction": ("prune",), "context": ("drop", "freeze")}
    budget = FlopsBudget(0.9)
    assert make_space("stages", LAYOUT, flops, budget, offers).choices["context"] == ("drop", "freeze")
    with pytest.raises(SpaceError, match=f"alignment=off: {LAYOUT.model} offers on"):
        make_space("stages;alignment=on,off", LAYOUT, flops, budget, offers)


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


@settings(max_examples=60)
@given(
    texts, st.sampled_from(["0.6", "0.8", "1", "0.3:0.4", "0.5:0.7", "0.6:0.6", "0.35"]), st.sampled_from([4, 12, 24])
)
def test_a_search_starts_with_feasible_schedules_that_lie_apart(text, budget, depth):
    layout = TokenLayout("model", (28, 28), (Stage(max(depth, 6 if "5" in text else 4), 7, 7),))

    def cost(schedule: PruningSchedule) -> int:
        return sum([49, *layout.tokens(schedule)[:-1]]) + (schedule.method.context == "conv")

    space = make_space(text, layout, cost, FlopsBudget.parse(budget))
    starts = starting_schedules(space)
    assert len(starts) == len({s.hash for s in starts}) <= len(published_schedules(layout)) + 4 * 3
    published = [canonical(schedule, layout) for schedule in published_schedules(layout)]
    for schedule in starts:
        assert cost(schedule) <= space.limit
        assert canonical(schedule, layout) == schedule
        assert schedule in published or space.values(schedule) is not None


def test_starts_begin_with_the_published_and_spread_over_flops_and_contexts():
    layout = TokenLayout("vim_small", (224, 224), (Stage(24, 14, 14),))
    cost = lambda schedule: sum([196, *layout.tokens(schedule)[:-1]])  # noqa: E731
    starts = starting_schedules(make_space("stages", layout, cost, FlopsBudget.parse("0.85")))
    assert [s.text for s in starts[:4]] == list(PUBLISHED["vim_small"])
    solved = starts[4:]
    assert {tuple(step.after for step in s.steps) for s in solved} == {(5, 10, 15)}
    assert {s.method.context for s in solved[:3]} == {"drop", "conv", "freeze"}
    ratios = [cost(s) / (24 * 196) for s in solved[:4]]
    assert max(ratios) > 0.84 and min(ratios) < 0.47
    assert min(abs(a - b) for i, a in enumerate(ratios) for b in ratios[:i]) > 0.08
    assert len(solved) == 12


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
    assert not plain.each


def test_contexts_that_cannot_reach_the_budget_give_way():
    space = make_space("stages:3;context=each:drop,freeze", LAYOUT, flops, FlopsBudget(0.4))
    frozen = {f"context_{i}": "freeze" for i in (1, 2, 3)}
    places = {"after_1": 2, "after_2": 4, "after_3": 6, "weight_1": 0.5, "weight_2": 1.0, "weight_3": 0.5}
    schedule = space.schedule({**places, **frozen, "target": 1.0})
    assert flops(schedule) <= space.limit
    assert set(schedule.contexts) == {"drop"}
    assert len(schedule.steps) > 1


def test_zeros_is_not_chosen_step_by_step():
    with pytest.raises(SpaceError, match="zeros cannot be mixed"):
        make_space("stages:3;context=each:drop,zeros", LAYOUT, flops, FlopsBudget(0.9))


def test_targets_do_not_depend_on_which_context_stands_first():
    spaces = [
        make_space(f"stages:1;context=each:{order}", LAYOUT, flops, FlopsBudget(0.9))
        for order in ("drop,freeze", "freeze,drop")
    ]
    values = {"after_1": 2, "weight_1": 1.0, "context_1": "drop", "target": 0.0}
    assert spaces[0].schedule(values) == spaces[1].schedule(values)


STAGED = TokenLayout("staged", (32, 32), (Stage(2, 16, 16), Stage(6, 8, 8), Stage(4, 4, 4)))


def staged_flops(schedule: PruningSchedule) -> int:
    """Blocks linear in their tokens, each stage's twice as dear a token as the one's before, and constant parts."""
    widths = [2**stage for stage, s in enumerate(STAGED.stages) for _ in range(s.blocks)]
    return 1000 + sum(100 * width * n for width, n in zip(widths, STAGED.worked_on(schedule), strict=True))


@settings(max_examples=100)
@given(st.sampled_from(["stages", "stages:1", "stages:5", "per-block"]), st.floats(0.35, 1.0), st.data())
def test_with_stages_no_step_stands_where_all_tokens_come_back(text, share, data):
    space = make_space(text, STAGED, staged_flops, FlopsBudget(share))
    values = data.draw(st.fixed_dictionaries({k: value_of(p) for k, p in space.parameters.items()}))
    schedule = space.schedule(values)
    assert staged_flops(schedule) <= space.limit
    assert {step.after for step in schedule.steps} <= set(STAGED.places)
    assert canonical(schedule, STAGED) == schedule
    back = space.values(schedule)
    if back is not None:
        assert {step.after for step in space.schedule(back).steps} <= {step.after for step in schedule.steps}


def test_with_stages_a_hand_made_schedule_comes_back_exactly():
    space = make_space("stages", STAGED, staged_flops, FlopsBudget(0.95))
    for text in ("1:0.8,5:0.8,9:0.8", "3:0.7,6:0.7", "4:0.6"):
        schedule = PruningSchedule.parse(text)
        assert space.schedule(space.values(schedule)) == schedule
    assert space.values(PruningSchedule.parse("2:0.5,4:0.6")) is None


def test_with_stages_starting_schedules_prune_inside_them():
    space = make_space("stages", STAGED, staged_flops, FlopsBudget(0.7))
    starts = starting_schedules(space)
    assert starts and all(staged_flops(s) <= space.limit for s in starts)
    assert all(step.after in STAGED.places for s in starts for step in s.steps)


def test_a_model_without_a_place_to_prune():
    layout = TokenLayout("short", (32, 32), (Stage(1, 8, 8), Stage(1, 4, 4)))
    for text in ("stages:1", "per-block"):
        with pytest.raises(SpaceError, match="short"):
            make_space(text, layout, lambda schedule: 100, FlopsBudget(0.7))
