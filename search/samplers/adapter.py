"""Any sampler of Optuna as the driver's `Sampler`: an Optuna study in memory, fed from the store on start."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from results import Evaluation
from search.samplers.base import Draw, scores
from search.samplers.gp_sampler import GpSampler
from search.samplers.points import clipped_point, point_in
from search.samplers.suggest import IMAGES_ATTR, SCHEDULE_ATTR, directions, distributions
from spaces.parameters import Value
from spaces.space import SearchSpace


class StudySampler:
    """A `Sampler` that asks and tells one Optuna study in memory; the store remains the record.

    Args:
        name: by which it is known, and which its proposals have as their origin.
        sampler: of Optuna.
        space: whose parameters are proposed.
        objectives: names from `OBJECTIVES`.
    """

    def __init__(self, name: str, sampler: BaseSampler, space: SearchSpace, objectives: Sequence[str]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = name
        self._sampler, self._objectives = sampler, tuple(objectives)
        self._parameters, self._distributions = space.parameters, distributions(space)
        self._study = optuna.create_study(sampler=sampler, directions=directions(objectives))

    def restore(self, evaluations: Iterable[Evaluation]) -> None:
        """Learn from recorded evaluations, in the order in which they were made.

        Of schedules that the space cannot express only `gp` learns; Optuna's samplers learn from parameters alone.
        """
        trials = [self._trial(evaluation) for evaluation in evaluations]
        schedules_count = isinstance(self._sampler, GpSampler)
        self._study.add_trials([trial for trial in trials if trial.params or schedules_count])

    def ask(self, values: Mapping[str, Value] | None = None) -> Draw:
        """Propose a point; with `values` that very point, as if the sampler had drawn it."""
        if values is not None:
            self._study.enqueue_trial(clipped_point(values, self._parameters))
        trial = self._study.ask(self._distributions)
        if values is not None and isinstance(self._sampler, NSGAIISampler):
            # Fixed parameters bypass the sampler, and a trial without a generation never breeds.
            self._sampler.get_trial_generation(self._study, self._frozen(trial))
        return Draw(dict(trial.params), trial)

    def state(self, draw: Draw) -> dict[str, Any]:
        """Return what `restore` needs beside the point itself, as JSON."""
        attrs = self._frozen(draw.handle).system_attrs
        return {key: value for key, value in attrs.items() if key != "fixed_params"}

    def tell(self, draw: Draw, evaluation: Evaluation | None) -> None:
        """Report the result of a point; None if it has none."""
        trial: Trial = draw.handle
        found = None if evaluation is None else scores(evaluation, self._objectives)
        if evaluation is None or found is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_user_attr(IMAGES_ATTR, evaluation.images)
            self._study.tell(trial, found)

    def _trial(self, evaluation: Evaluation) -> FrozenTrial:
        """Return an evaluation as a finished trial, without parameters if they are not the space's."""
        own = evaluation.parameters.keys() == self._parameters.keys()
        params = point_in(clipped_point(evaluation.parameters, self._parameters), self._parameters) if own else None
        found = scores(evaluation, self._objectives)
        return create_trial(
            state=TrialState.FAIL if found is None else TrialState.COMPLETE,
            values=found,
            params=params or {},
            distributions=dict(self._distributions) if params else {},
            user_attrs={SCHEDULE_ATTR: evaluation.schedule.text, IMAGES_ATTR: evaluation.images},
            system_attrs=dict(evaluation.sampler_state),
        )

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[trial.number]
