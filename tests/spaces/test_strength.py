"""Along the strengths FLOPs fall, and the search finds the weakest pruning that a target allows."""

from hypothesis import given
from hypothesis import strategies as st

from spaces import PruningMethod, PruningSchedule, Stage, TokenLayout
from spaces.ratios import canonical
from spaces.strength import STRENGTHS, Place, Prunings

LAYOUTS = (
    TokenLayout("flat", (28, 28), (Stage(12, 7, 7),), protected=1),
    TokenLayout("fine", (224, 224), (Stage(6, 28, 28),)),
    TokenLayout("stages", (64, 64), (Stage(2, 16, 16), Stage(4, 8, 8), Stage(2, 4, 4))),
)


@st.composite
def prunings(draw):
    """Prunings of a random shape, with a cost of whichever curvature, and how often it was asked for."""
    layout = draw(st.sampled_from(LAYOUTS))
    power = draw(st.sampled_from([0.5, 1.0, 2.0]))
    asked = []

    def flops(schedule: PruningSchedule) -> int:
        asked.append(schedule)
        totals = [stage.tokens for stage in layout.stages for _ in range(stage.blocks)]
        return sum(int(1000 * (n / total) ** power) for n, total in zip(layout.tokens(schedule), totals, strict=True))

    places = draw(st.sets(st.integers(1, layout.depth), min_size=1, max_size=4))
    shape = [Place(after, draw(st.floats(0.05, 1.0))) for after in sorted(places)]
    return Prunings(layout, flops, shape, PruningMethod()), layout, asked


@given(prunings(), st.tuples(st.integers(0, STRENGTHS), st.integers(0, STRENGTHS)))
def test_flops_and_tokens_fall_as_the_strength_rises(made, strengths):
    line, layout, _ = made
    weak, strong = (line.at(strength) for strength in sorted(strengths))
    assert strong.flops <= weak.flops and strong.tokens <= weak.tokens
    for pruning in (weak, strong):
        assert pruning.schedule == canonical(pruning.schedule, layout)
    assert line.at(0).schedule.dense


@given(prunings(), st.floats(0.0, 1.0))
def test_the_weakest_that_costs_no_more(made, share):
    line, _, asked = made
    dense, strongest = line.at(0), line.at(STRENGTHS)
    target = strongest.flops + share * (dense.flops - strongest.flops)
    asked.clear()
    found = line.weakest(target)
    assert len(asked) <= 20
    assert found.flops <= target
    assert found.strength == 0 or line.at(found.strength - 1).flops > target


def test_a_target_out_of_reach_gives_the_strongest():
    line = Prunings(LAYOUTS[0], lambda s: 100 + sum(LAYOUTS[0].tokens(s)), [Place(3), Place(5, 0.5)], PruningMethod())
    assert line.weakest(0.0).strength == STRENGTHS
    assert line.weakest(10_000.0).schedule.dense
