"""What to evaluate next: Optuna's samplers over the space, without paying twice for a schedule.

The store is the truth. `Proposer` is rebuilt from what a study has recorded, so it needs no state of its
own: recorded evaluations become finished trials of an Optuna study that lives in memory.
"""

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from results.records import Evaluation
from search.config import OBJECTIVES, SAMPLERS
from spaces import PruningSchedule
from spaces.errors import BudgetError, UnknownNameError
from spaces.space import ChoiceParameter, FloatParameter, IntParameter, Parameter, SearchSpace

PUBLISHED = "published"
_REPEATS = 30  # known candidates in a row after which the sampler is helped by random draws
_DRAWS = 2000  # random draws without anything new after which the space counts as exhausted


@dataclass(frozen=True)
class Candidate:
    """A schedule that nobody has evaluated yet.

    Attributes:
        schedule: within the budget.
        flops: exact.
        parameters: its values in the space; empty if the space cannot express it.
        origin: `published`, or the sampler's name.
        trial: number of the Optuna trial that asked for it; None if none did.
    """

    schedule: PruningSchedule
    flops: int
    parameters: Mapping[str, Any]
    origin: str
    trial: int | None = None


class Proposer:
    """Proposes candidates and learns from their evaluations; one thread of the driver uses it.

    Args:
        space: where candidates come from.
        flops: what a schedule costs.
        sampler: one of `SAMPLERS`.
        objectives: names from `OBJECTIVES`.
        seed: of the sampler; a resumed study draws on from elsewhere, not the same again.
        trials: evaluations that are planned in all; the population of nsga2 suits it.
        published: schedules to be tried first.
        recorded: what the study holds already.

    Attributes:
        reused: how many proposals were known already and cost nothing.
    """

    def __init__(
        self,
        space: SearchSpace,
        flops: Any,
        *,
        sampler: str,
        objectives: Sequence[str],
        seed: int,
        trials: int,
        published: Sequence[PruningSchedule] = (),
        recorded: Sequence[Evaluation] = (),
    ) -> None:
        self._space, self._flops, self._sampler, self._objectives = space, flops, sampler, tuple(objectives)
        self._distributions = {name: _distribution(p) for name, p in space.parameters.items()}
        mixed = zlib.crc32(f"{seed}:{len(recorded)}".encode())
        self._random = random.Random(mixed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            directions=["maximize" if OBJECTIVES[name] else "minimize" for name in self._objectives],
            sampler=make_sampler(sampler, mixed, trials),
        )
        self._known: dict[str, Evaluation] = {}
        self._pending: set[str] = set()
        self.reused = 0
        for evaluation in recorded:
            self._known[evaluation.hash] = evaluation
            self._add(evaluation)
        self._published = [s for s in published if flops(s) <= space.limit and s.hash not in self._known]

    def ask(self) -> Candidate | None:
        """Return a candidate that is neither recorded nor being evaluated; None when there is no other."""
        while self._published:
            schedule = self._published.pop(0)
            if schedule.hash not in self._pending:
                return self._begin(schedule, self._space.values(schedule) or {}, PUBLISHED, None)
        for _ in range(_REPEATS):
            trial = self._study.ask(self._distributions)
            schedule = self._space.schedule(trial.params)
            known = self._known.get(schedule.hash)
            if known is None and schedule.hash not in self._pending:
                return self._begin(schedule, trial.params, self._sampler, trial.number)
            self._finish(trial.number, known)
            self.reused += 1
        for _ in range(_DRAWS):
            values = {name: self._draw(p) for name, p in self._space.parameters.items()}
            schedule = self._space.schedule(values)
            if schedule.hash not in self._known and schedule.hash not in self._pending:
                return self._begin(schedule, values, self._sampler, None)
        return None

    def sampler_state(self, candidate: Candidate) -> dict[str, Any]:
        """Return what the sampler noted with a candidate, for the store (nsga2: its generation)."""
        if candidate.trial is None:
            return {}
        return dict(self._study.get_trials(deepcopy=False)[candidate.trial].system_attrs)

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Learn what a candidate came to, failed ones too."""
        self._pending.discard(candidate.schedule.hash)
        self._known[evaluation.hash] = evaluation
        if candidate.trial is None:
            self._add(evaluation)
        else:
            self._finish(candidate.trial, evaluation)

    def forget(self, candidate: Candidate) -> None:
        """Give a candidate up that was not evaluated; it may be proposed again."""
        self._pending.discard(candidate.schedule.hash)
        if candidate.trial is not None:
            self._finish(candidate.trial, None)

    def _begin(
        self, schedule: PruningSchedule, parameters: Mapping[str, Any], origin: str, trial: int | None
    ) -> Candidate:
        flops = self._flops(schedule)
        if flops > self._space.limit:
            raise BudgetError(f"space {self._space.text!r} proposed {schedule}, which exceeds the budget: a bug")
        self._pending.add(schedule.hash)
        return Candidate(schedule, flops, dict(parameters), origin, trial)

    def _finish(self, trial: int, evaluation: Evaluation | None) -> None:
        values = None if evaluation is None else self._values(evaluation)
        if values is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, values)

    def _add(self, evaluation: Evaluation) -> None:
        """Add a recorded evaluation, if its parameters are of this space, as a finished trial."""
        values = self._values(evaluation)
        if values is None or evaluation.parameters.keys() != self._distributions.keys():
            return
        self._study.add_trial(
            optuna.trial.create_trial(
                params=dict(evaluation.parameters),
                distributions=self._distributions,
                values=values,
                system_attrs=dict(evaluation.sampler_state),
            )
        )

    def _values(self, evaluation: Evaluation) -> list[float] | None:
        found = {
            "top1": evaluation.top1,
            "loss": evaluation.loss,
            "agreement": evaluation.agreement,
            "latency": evaluation.latency_ms,
            "flops": evaluation.flops,
        }
        values = [found[name] for name in self._objectives]
        if evaluation.state != "done" or any(value is None for value in values):
            return None
        return [float(value) for value in values if value is not None]

    def _draw(self, parameter: Parameter) -> float | int | str:
        match parameter:
            case FloatParameter(low, high):
                return self._random.uniform(low, high)
            case IntParameter(low, high):
                return self._random.randint(low, high)
            case ChoiceParameter(choices):
                return self._random.choice(choices)


def make_sampler(name: str, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of that name.

    The population of nsga2 grows with the root of the trials, so that small searches see generations too.

    Raises:
        UnknownNameError: there is no such sampler.
    """
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=min(50, max(8, round(2 * trials**0.5))), seed=seed)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise UnknownNameError("sampler", name, SAMPLERS)


def _distribution(parameter: Parameter) -> BaseDistribution:
    match parameter:
        case FloatParameter(low, high):
            return FloatDistribution(low, high)
        case IntParameter(low, high):
            return IntDistribution(low, high)
        case ChoiceParameter(choices):
            return CategoricalDistribution(choices)
