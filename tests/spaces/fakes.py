"""Small models as token layouts with plain cost functions, and strategies that draw spaces and their values."""

from hypothesis import strategies as st

from spaces import PruningSchedule, Stage, TokenLayout
from spaces.parameters import ChoiceParameter, FloatParameter, IntParameter, Parameter, Value

LAYOUT = TokenLayout("model", (28, 28), (Stage(12, 7, 7),), protected=1)
STAGED = TokenLayout("staged", (32, 32), (Stage(2, 16, 16), Stage(6, 8, 8), Stage(4, 4, 4)))


def flops(schedule: PruningSchedule) -> int:
    """An embedding, and blocks linear in their tokens; a frozen token costs half of a kept one."""
    left = [49, *LAYOUT.tokens(schedule)]
    cost = 500 + sum(100 * n for n in left[:-1])
    for step, context in zip(schedule.steps, schedule.contexts, strict=True):
        later = LAYOUT.depth - step.after
        cost += {"drop": 0, "conv": 20, "freeze": 50}[context] * later * (left[step.after - 1] - left[step.after])
    return cost


def staged_flops(schedule: PruningSchedule) -> int:
    """A constant, and blocks linear in their tokens; a token costs twice as much as in the stage before."""
    widths = [2**stage for stage, s in enumerate(STAGED.stages) for _ in range(s.blocks)]
    return 1000 + sum(100 * width * n for width, n in zip(widths, STAGED.worked_on(schedule), strict=True))


DENSE = flops(PruningSchedule())


def value_of(parameter: Parameter) -> st.SearchStrategy[Value]:
    """Values within the bounds of a parameter."""
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
