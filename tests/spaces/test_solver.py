"""FLOPs fall as the strength rises, and the solver finds the weakest pruning within a target and the budget."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces import FlopsBudget, PruningMethod, PruningSchedule, Stage, TokenLayout
from spaces.ratios import canonical
from spaces.solver import STRENGTHS, BudgetSolver, Place, PruningCurve, normalised
from tests.spaces.fakes import LAYOUT, STAGED, flops, staged_flops

LAYOUTS = (
    TokenLayout("flat", (28, 28), (Stage(12, 7, 7),), protected=1),
    TokenLayout("fine", (224, 224), (Stage(6, 28, 28),)),
    TokenLayout("stages", (64, 64), (Stage(2, 16, 16), Stage(4, 8, 8), Stage(2, 4, 4))),
)


@st.composite
def curves(draw):
    """A curve of a random shape with a convex, linear or concave cost; its layout; the schedules it was asked for."""
    layout = draw(st.sampled_from(LAYOUTS))
    power = draw(st.sampled_from([0.5, 1.0, 2.0]))
    asked = []

    def cost(schedule: PruningSchedule) -> int:
        asked.append(schedule)
        totals = [stage.tokens for stage in layout.stages for _ in range(stage.blocks)]
        return sum(int(1000 * (n / total) ** power) for n, total in zip(layout.tokens(schedule), totals, strict=True))

    blocks = draw(st.sets(st.integers(1, layout.depth), min_size=1, max_size=4))
    shape = [Place(after, draw(st.floats(0.05, 1.0))) for after in sorted(blocks)]
    return PruningCurve(layout, cost, shape, PruningMethod()), layout, asked


class TestPruningCurve:
    @given(curves(), st.tuples(st.integers(0, STRENGTHS), st.integers(0, STRENGTHS)))
    def test_flops_and_tokens_fall_as_the_strength_rises(self, made, strengths):
        curve, layout, _ = made
        weak, strong = (curve.at(strength) for strength in sorted(strengths))
        assert strong.flops <= weak.flops and strong.tokens <= weak.tokens
        for pruning in (weak, strong):
            assert pruning.schedule == canonical(pruning.schedule, layout)
        assert curve.at(0).schedule.dense

    @given(curves(), st.floats(0.0, 1.0))
    def test_the_weakest_pruning_within_a_target(self, made, share):
        curve, _, asked = made
        dense, strongest = curve.at(0), curve.at(STRENGTHS)
        target = strongest.flops + share * (dense.flops - strongest.flops)
        asked.clear()
        found = curve.weakest(target)
        assert len(asked) <= 20
        assert found.flops <= target
        assert found.strength == 0 or curve.at(found.strength - 1).flops > target

    @given(curves(), st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)).map(sorted))
    def test_a_lower_target_prunes_at_least_as_much(self, made, shares):
        curve, _, _ = made
        lower, higher = (curve.weakest(share * curve.at(0).flops) for share in shares)
        assert lower.strength >= higher.strength and lower.flops <= higher.flops

    def test_a_target_out_of_reach_gives_the_strongest(self):
        layout = LAYOUTS[0]
        shape = [Place(3), Place(5, 0.5)]
        curve = PruningCurve(layout, lambda s: 100 + sum(layout.tokens(s)), shape, PruningMethod())
        assert curve.weakest(0.0).strength == STRENGTHS
        assert curve.weakest(10_000.0).schedule.dense


METHODS = [PruningMethod(context=context) for context in ("freeze", "drop", "conv")]
solvers = st.sampled_from([(LAYOUT, flops), (STAGED, staged_flops)])
weights = st.just(0.0) | st.floats(1e-6, 1.0)


def shapes(layout: TokenLayout) -> st.SearchStrategy[list[Place]]:
    contexts = st.sampled_from([None, "drop", "conv", "freeze"])
    places = st.builds(Place, st.sampled_from(layout.places), weights, contexts)
    return st.lists(places, min_size=1, max_size=5).map(normalised)


def solver_of(layout: TokenLayout, cost: Callable[[PruningSchedule], int], budget: FlopsBudget) -> BudgetSolver:
    return BudgetSolver(layout, cost, budget, METHODS)


class TestBudgetSolver:
    @given(solvers, st.floats(0.35, 1.0), st.floats(0.0, 1.0), st.sampled_from(METHODS), st.data())
    def test_no_schedule_exceeds_the_limit(self, made, budget, share, method, data):
        layout, cost = made
        solver = solver_of(layout, cost, FlopsBudget(budget))
        method = solver.affordable(method)
        schedule = solver.weakest(data.draw(shapes(layout)), solver.target(share, method), method)
        assert cost(schedule) <= solver.limit
        assert canonical(schedule, layout) == schedule
        assert {step.after for step in schedule.steps} <= set(layout.places)

    @given(solvers, st.floats(0.0, 1.0), st.data())
    def test_a_target_within_reach_of_the_shape_is_met_without_moving_a_step(self, made, share, data):
        layout, cost = made
        solver = solver_of(layout, cost, FlopsBudget(1.0))
        shape = normalised(place._replace(context=None) for place in data.draw(shapes(layout)))
        method = PruningMethod()
        curve = PruningCurve(layout, cost, shape, method)
        strongest = curve.at(STRENGTHS).flops
        target = strongest + share * (solver.limit - strongest)
        schedule = solver.weakest(shape, target, method)
        assert cost(schedule) <= target
        assert schedule == curve.weakest(target).schedule

    def test_steps_move_towards_the_beginning_of_their_stages_if_they_must(self):
        solver = solver_of(STAGED, staged_flops, FlopsBudget(0.6))
        shape = [Place(7), Place(11)]
        assert PruningCurve(STAGED, staged_flops, shape, PruningMethod()).at(STRENGTHS).flops > solver.limit
        schedule = solver.weakest(shape, solver.limit, PruningMethod())
        assert [STAGED.stage_of(step.after) for step in schedule.steps] == [1, 2]
        assert [step.after < place.after for step, place in zip(schedule.steps, shape, strict=True)] == [True, True]
        assert staged_flops(schedule) <= solver.limit

    def test_steps_give_up_their_contexts_before_their_places(self):
        solver = solver_of(LAYOUT, flops, FlopsBudget(0.4))
        schedule = solver.weakest([Place(2, 1.0, "freeze"), Place(4, 0.5, "conv")], solver.limit, PruningMethod())
        assert set(schedule.contexts) == {"drop"}
        assert len(schedule.steps) == 2

    def test_the_floor_is_that_of_the_cheapest_method(self):
        solver = solver_of(LAYOUT, flops, FlopsBudget(0.4))
        assert solver.floor == solver.floors[PruningMethod()] == min(solver.floors.values())
        assert solver.cheapest(METHODS) == PruningMethod()
        assert solver.affordable(PruningMethod(context="freeze")) == PruningMethod()
        assert solver.affordable(PruningMethod(context="conv")) == PruningMethod(context="conv")

    @given(st.floats(0.6, 1.0), st.floats(0.0, 1.0), st.sampled_from(METHODS))
    def test_a_share_of_the_range_and_its_target(self, budget, share, method):
        solver = solver_of(LAYOUT, flops, FlopsBudget(budget))
        target = solver.target(share, method)
        assert solver.least_of(method) <= target <= solver.limit
        again = solver.share(int(target), method)
        assert again is not None
        assert solver.target(again, method) == pytest.approx(int(target))

    def test_flops_outside_the_range_have_no_share(self):
        solver = solver_of(LAYOUT, flops, FlopsBudget(0.8))
        least = solver.least_of(PruningMethod())
        assert solver.share(least - 1, PruningMethod()) is None
        assert solver.share(solver.limit + 1, PruningMethod()) is None
        assert (solver.share(least, PruningMethod()), solver.share(solver.limit, PruningMethod())) == (0.0, 1.0)


def by_block(places: Sequence[Place]) -> dict[int, float]:
    found: dict[int, float] = {}
    for place in places:
        found[place.after] = found.get(place.after, 0.0) + place.weight
    return found


class TestNormalised:
    @given(st.lists(st.builds(Place, st.integers(1, 6), weights), min_size=1, max_size=8))
    def test_one_place_per_block_in_the_same_proportion(self, places):
        shape = normalised(places)
        blocks = [place.after for place in shape]
        assert blocks == sorted(set(blocks))
        assert max(place.weight for place in shape) == 1.0
        given_weights = by_block(places)
        most = max(given_weights.values())
        for place in shape:
            assert place.weight == pytest.approx(given_weights[place.after] / most if most else 1.0)
        assert set(given_weights) - set(blocks) == {b for b, w in given_weights.items() if not w and most}

    @given(st.lists(st.builds(Place, st.integers(1, 6), weights), min_size=1, max_size=8))
    def test_a_shape_is_normalised_already(self, places):
        assert normalised(normalised(places)) == normalised(places)

    def test_the_context_of_the_heaviest_place_counts(self):
        places = [Place(3, 0.2, "drop"), Place(3, 0.5, "conv"), Place(5, 0.0, "freeze")]
        assert normalised(places) == [Place(3, 1.0, "conv")]
