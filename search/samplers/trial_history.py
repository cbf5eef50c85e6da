"""What the trials of an Optuna study say about schedules.

The study is the only record. A history reads each trial once when it has finished, and looks again only at those
that have not, so that keeping up with a long study costs little.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.config import OBJECTIVES
from search.samplers.points import Point, point_in
from search.samplers.suggest import IMAGES_ATTR, SCHEDULE_ATTR
from search.samplers.surrogate import Array, Features
from spaces import PruningSchedule
from spaces.errors import ScheduleError
from spaces.space import SearchSpace


@dataclass(frozen=True)
class EncodedSchedule:
    """A schedule as the surrogate takes it in.

    Attributes:
        values: of the space's parameters; None for a schedule that did not come from the space.
        schedule: what they stand for.
        flops: share of the dense model's FLOPs.
        features: (features,), from `Features`.
    """

    values: Point | None
    schedule: PruningSchedule
    flops: float
    features: Array


@dataclass(frozen=True)
class Observation:
    """What a finished trial measured.

    Attributes:
        encoded: the schedule.
        scores: one for each objective, signed so that more is better.
        images: how many images the scores were measured on; None if the trial does not say.
    """

    encoded: EncodedSchedule
    scores: tuple[float, ...]
    images: float | None

    def dominates(self, other: "Observation") -> bool:
        """Whether no score is worse than the other's, and some score is better."""
        pairs = zip(self.scores, other.scores, strict=True)
        return self.scores != other.scores and all(a >= b for a, b in pairs)


class TrialHistory:
    """The trials of one study, by the schedules that they tried.

    A trial's schedule is its user attribute `schedule` if it has one, or what its parameters stand for. A trial with
    neither, or whose parameters are not all within the space, is ignored. FLOPs are the space's own count, whatever a
    trial reports. A trial that failed or was pruned, or whose values are not finite, only tells what was tried.

    Args:
        space: that parameters belong to.
        features: of schedules.
        objectives: names from `OBJECTIVES`, in the order of the study's directions.

    Attributes:
        observations: by schedule, in the order in which the trials finished; of several of one schedule the last.
        front: the observations that no other one dominates.
        pending: schedules of running trials, in the order of the trials.
        closed: schedules of finished trials, failed ones among them.
    """

    def __init__(self, space: SearchSpace, features: Features, objectives: Sequence[str]) -> None:
        self._space, self._features, self._objectives = space, features, tuple(objectives)
        self._parameters = space.parameters
        self.observations: dict[PruningSchedule, Observation] = {}
        self.front: list[Observation] = []
        self.pending: dict[PruningSchedule, EncodedSchedule] = {}
        self.closed: set[PruningSchedule] = set()
        self._read = 0  # trials seen so far
        self._unfinished: list[int] = []  # of these, by number
        self._encoded: dict[int, EncodedSchedule] = {}  # unfinished trials, by number

    def update(self, study: Study) -> None:
        """Read what is new in the study."""
        trials = study.get_trials(deepcopy=False)
        current = [trials[number] for number in self._unfinished] + trials[self._read :]
        self._read = len(trials)
        finished = [trial for trial in current if trial.state.is_finished()]
        for trial in sorted(finished, key=lambda t: (t.datetime_complete or datetime.min, t.number)):
            self._learn(trial)
        self._unfinished = [trial.number for trial in current if not trial.state.is_finished()]
        self.pending = {}
        for trial in current:
            if trial.state is TrialState.RUNNING and (encoded := self._encode(trial)) is not None:
                self._encoded[trial.number] = encoded
                self.pending.setdefault(encoded.schedule, encoded)

    def propose(self, number: int, encoded: EncodedSchedule) -> None:
        """Note what a trial is about to be given; its parameters do not say so until it has suggested them all."""
        self._encoded[number] = encoded

    def encode(self, schedule: PruningSchedule, values: Point | None) -> EncodedSchedule:
        """Return a schedule as the surrogate takes it in.

        Raises:
            ScheduleError: it does not fit the model.
        """
        features = self._features(schedule)
        return EncodedSchedule(values, schedule, self._space.flops(schedule) / self._space.dense_flops, features)

    def _encode(self, trial: FrozenTrial) -> EncodedSchedule | None:
        """Return the schedule of a trial; None if it cannot be told or does not fit the model."""
        values, text = point_in(trial.params, self._parameters), trial.user_attrs.get(SCHEDULE_ATTR)
        known = self._encoded.get(trial.number)
        unfinished = values is None and not trial.state.is_finished()  # it may yet suggest what was proposed
        if known and text in (None, known.schedule.text) and (unfinished or known.values == values):
            return known
        try:
            if isinstance(text, str):
                return self.encode(PruningSchedule.parse(text), values)
            return None if values is None else self.encode(self._space.schedule(values), values)
        except ScheduleError:
            return None

    def _learn(self, trial: FrozenTrial) -> None:
        encoded = self._encode(trial)
        self._encoded.pop(trial.number, None)
        if encoded is None:
            return
        self.closed.add(encoded.schedule)
        scores = self._scores(trial, encoded)
        if scores is None:
            return
        observation = Observation(encoded, scores, _images(trial))
        self.observations[encoded.schedule] = observation
        if not any(other.dominates(observation) for other in self.front):
            self.front = [*(other for other in self.front if not observation.dominates(other)), observation]

    def _scores(self, trial: FrozenTrial, encoded: EncodedSchedule) -> tuple[float, ...] | None:
        if trial.state is not TrialState.COMPLETE:
            return None
        found = zip(self._objectives, trial.values, strict=True)
        scores = [
            -encoded.flops if name == "flops" else value if OBJECTIVES[name] else -value for name, value in found
        ]
        return tuple(scores) if all(math.isfinite(score) for score in scores) else None


def _images(trial: FrozenTrial) -> float | None:
    images = trial.user_attrs.get(IMAGES_ATTR)
    if not isinstance(images, int | float) or isinstance(images, bool) or not 0 < images < math.inf:
        return None
    return float(images)
