"""Published schedules fit every model, and a search starts with schedules that differ widely."""

from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import FlopsBudget, PruningSchedule, Stage, TokenLayout
from spaces.published import PUBLISHED, published_schedules, starting_schedules
from spaces.ratios import canonical
from spaces.space import make_space
from tests.spaces.fakes import LAYOUT, STAGED, staged_flops, texts


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
def test_starting_schedules_are_within_the_budget_and_distinct(text, budget, depth):
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


def test_published_schedules_come_first_and_the_rest_spread_over_flops_and_contexts():
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


def test_in_a_model_with_stages_starting_schedules_prune_inside_them():
    space = make_space("stages", STAGED, staged_flops, FlopsBudget(0.7))
    starts = starting_schedules(space)
    assert starts and all(staged_flops(s) <= space.limit for s in starts)
    assert all(step.after in STAGED.places for s in starts for step in s.steps)
