"""A search in Optuna's terms: distributions, directions, and a trial's parameters as a schedule."""

from collections.abc import Sequence

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import BaseTrial

from search.config import OBJECTIVES
from spaces import PruningSchedule
from spaces.parameters import FloatParameter, IntParameter, Parameter, Value
from spaces.space import SearchSpace

SCHEDULE_ATTR = "schedule"  # user attribute of a trial: the text of the schedule that it evaluated
IMAGES_ATTR = "images"  # user attribute of a trial: how many images its objectives were measured on


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return the distribution of each parameter of a space, by name, for `study.ask` and `create_trial`.

    >>> from spaces import FlopsBudget, Stage, TokenLayout
    >>> from spaces.space import make_space
    >>> layout = TokenLayout("small", (28, 28), (Stage(12, 7, 7),), protected=1)
    >>> flops = lambda schedule: sum(layout.tokens(schedule))
    >>> space = make_space("stages:1", layout, flops, FlopsBudget.parse("0.8"))
    >>> {name: type(one).__name__ for name, one in distributions(space).items() if name != "context"}
    {'after_1': 'IntDistribution', 'weight_1': 'FloatDistribution', 'target': 'FloatDistribution'}
    """
    return {name: _distribution(parameter) for name, parameter in space.parameters.items()}


def directions(objectives: Sequence[str]) -> list[StudyDirection]:
    """Return the direction of each objective, by their names from `OBJECTIVES`, for `optuna.create_study`.

    >>> [direction.name for direction in directions(("top1", "flops"))]
    ['MAXIMIZE', 'MINIMIZE']
    """
    return [StudyDirection.MAXIMIZE if OBJECTIVES[name] else StudyDirection.MINIMIZE for name in objectives]


def suggest_schedule(trial: BaseTrial, space: SearchSpace) -> PruningSchedule:
    """Suggest every parameter of a space and return the schedule that they stand for, which is within the budget.

    The schedule's text becomes the trial's user attribute `schedule`, so that a finished trial tells what it tried.

    Example:
        >>> from optuna.trial import FixedTrial
        >>> from spaces import FlopsBudget, Stage, TokenLayout
        >>> from spaces.space import make_space
        >>> layout = TokenLayout("model", (28, 28), (Stage(12, 7, 7),))
        >>> space = make_space("stages:1", layout, lambda s: sum(layout.worked_on(s)), FlopsBudget.parse("0.8"))
        >>> trial = FixedTrial({"after_1": 5, "weight_1": 1.0, "target": 1.0, "context": "drop"})
        >>> suggest_schedule(trial, space).text
        '5:0.65'
        >>> trial.user_attrs
        {'schedule': '5:0.65'}
    """
    schedule = space.schedule({name: _suggest(trial, name, p) for name, p in space.parameters.items()})
    trial.set_user_attr(SCHEDULE_ATTR, schedule.text)
    return schedule


def _suggest(trial: BaseTrial, name: str, parameter: Parameter) -> Value:
    match parameter:
        case FloatParameter(low, high):
            return trial.suggest_float(name, low, high)
        case IntParameter(low, high):
            return trial.suggest_int(name, low, high)
        case _:
            return str(trial.suggest_categorical(name, parameter.choices))


def _distribution(parameter: Parameter) -> BaseDistribution:
    match parameter:
        case FloatParameter(low, high):
            return FloatDistribution(low, high)
        case IntParameter(low, high):
            return IntDistribution(low, high)
        case _:
            return CategoricalDistribution(parameter.choices)
