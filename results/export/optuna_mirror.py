"""Copies of studies in an Optuna storage, for Optuna's dashboard and for scripts that use Optuna.

A study is mirrored into an Optuna study of the same name. Each evaluation is a finished trial, written in one
transaction, with the study's objectives as values, its budget as a constraint, and its steps as parameters. Optuna
never changes a finished trial, so confirmed scores go into a second Optuna study, named `… (confirmed)`, whose best
trials are the confirmed front. Existing trials are not written again. One process may mirror a study at a time.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from results.objectives import OBJECTIVES, objective_value
from results.records import Evaluation, Study
from results.store.database import parse_address, shown_address, store_errors
from results.store.schema import VERSION_TABLE
from spaces.errors import StoreError, UsageError
from spaces.schedule import CONTEXT, METHOD_CHOICES

if TYPE_CHECKING:
    import optuna

CONFIRMED = " (confirmed)"  # suffix of the second study's name
CONSTRAINT = "FLOPs over the budget"  # as a share of the dense model's; at most 0 within the budget
_OLD_CONSTRAINTS = "constraints"  # the key that optuna-dashboard 0.21 reads; Optuna 5 reads both
_IDENTITY = "prunefront"  # user attribute that names the mirrored study
_STATES = {"done": "COMPLETE", "failed": "FAIL", "stopped": "PRUNED"}


class Mirror:
    """An Optuna storage that studies are mirrored into. The first update opens it.

    To mirror what a study has so far::

        Mirror("sqlite:///optuna.db").update(study, store.evaluations(study, done_only=False))

    Args:
        url: `sqlite:///FILE` or `postgresql://…`; not the database that holds the studies.

    Raises:
        UsageError: `url` is neither.
    """

    def __init__(self, url: str) -> None:
        self._address = parse_address(url)
        self.where = shown_address(self._address)
        self._storage: optuna.storages.RDBStorage | None = None
        self._known: dict[str, tuple[optuna.Study, set[str], dict[str, Any]]] = {}

    def update(self, study: Study, evaluations: Sequence[Evaluation]) -> int:
        """Add the evaluations that are missing, and return how many trials were added.

        Args:
            study: the study.
            evaluations: its finished evaluations, in the order of their numbers.

        Raises:
            UsageError: the storage has another study of that name, or is a database of prunefront.
            StoreError: the storage cannot be read or written; trials added before the error remain.
        """
        added = self._add(study, study.name, [replace(e, confirmed=None) for e in evaluations])
        if confirmed := [e for e in evaluations if e.confirmed is not None]:
            added += self._add(study, study.name + CONFIRMED, confirmed)
        return added

    def forget(self) -> None:
        """Reopen the storage with the next update: after an error, its content is unknown."""
        self._storage = None
        self._known.clear()

    def _add(self, study: Study, name: str, evaluations: Sequence[Evaluation]) -> int:
        with self._errors():
            if name not in self._known:
                self._known[name] = self._open(study, name)
            there, hashes, distributions = self._known[name]
            new = [evaluation for evaluation in evaluations if evaluation.hash not in hashes]
            for evaluation in new:
                there.add_trial(_trial(evaluation, study, distributions))
                hashes.add(evaluation.hash)
        return len(new)

    def _open(self, study: Study, name: str) -> "tuple[optuna.Study, set[str], dict[str, Any]]":
        import optuna

        if self._storage is None:
            self._storage = self._open_storage()
        spec = study.spec
        more, less = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [more if OBJECTIVES[objective] else less for objective in spec.objectives]
        names = {summary.study_name for summary in optuna.get_all_study_summaries(self._storage)}
        if name not in names:
            optuna.create_study(storage=self._storage, study_name=name, directions=directions)
        # No sampler is needed; naming one keeps Optuna from loading its default.
        there = optuna.load_study(study_name=name, storage=self._storage, sampler=optuna.samplers.RandomSampler())
        trials, identity = there.get_trials(deepcopy=False), _identity(study)
        if not trials and _IDENTITY not in there.user_attrs and there.directions == directions:
            # A new study, or one whose creation was interrupted. The identity comes last, when all else is set.
            there.set_metric_names(list(spec.objectives))
            for key, value in {**_study_attributes(study), _IDENTITY: identity}.items():
                there.set_user_attr(key, value)
        if there.user_attrs.get(_IDENTITY) != identity:
            raise UsageError(f"mirror {self.where}: has another study named {name!r}; choose another storage")
        distributions = {key: known for trial in trials for key, known in trial.distributions.items()}
        return there, {trial.user_attrs["hash"] for trial in trials if "hash" in trial.user_attrs}, distributions

    def _open_storage(self) -> "optuna.storages.RDBStorage":
        import optuna
        from sqlalchemy import create_engine, inspect

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it logs every study that it creates or finds
        address = self._address
        if address.get_backend_name() == "postgresql":
            address = address.set(drivername="postgresql+psycopg")
        engine = create_engine(address)
        try:
            if inspect(engine).has_table(VERSION_TABLE):
                raise UsageError(f"mirror {self.where}: is a database of prunefront; choose another database")
        finally:
            engine.dispose()
        return optuna.storages.RDBStorage(address.render_as_string(hide_password=False))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of Optuna into a StoreError of one line that contains no address."""
        import optuna

        try:
            with warnings.catch_warnings(action="ignore"), store_errors(self.where):
                yield
        except optuna.exceptions.OptunaError as error:
            cause = error.__cause__ or error
            lines = str(cause).strip().splitlines() or [type(cause).__name__]
            raise StoreError(f"mirror {self.where}: {lines[0]}") from None


def _identity(study: Study) -> str:
    """Return the identity of a study among studies of the same name."""
    return f"{study.spec.name} begun {study.created_at.isoformat()}"


def _study_attributes(study: Study) -> dict[str, Any]:
    spec = study.spec
    return {
        "model": spec.model,
        "data": spec.shown_data,
        "budget": spec.budget,
        "limit": spec.limit,
        "dense_flops": spec.dense_flops,
        "dense_top1": spec.dense_top1,
        "images": spec.images,
        "space": spec.space,
        "sampler": spec.sampler,
        "seed": spec.seed,
        "weights_digest": spec.weights_digest,
        "data_digest": spec.data_digest,
    }


def _trial(evaluation: Evaluation, study: Study, distributions: dict[str, Any]) -> "optuna.trial.FrozenTrial":
    """Return an evaluation as a finished trial.

    `distributions` holds the distribution of each parameter in the study, which Optuna requires to stay the same; new
    parameters are added to it.
    """
    import optuna

    objectives = [objective_value(evaluation, name) for name in study.spec.objectives]
    values = [value for value in objectives if value is not None]  # complete if it is done
    state = optuna.trial.TrialState[_STATES[evaluation.state]]
    complete = state is optuna.trial.TrialState.COMPLETE
    over = evaluation.flops_ratio - study.spec.limit / study.spec.dense_flops
    params: dict[str, Any] = {}
    for name, (value, distribution) in _parameters(evaluation, study).items():
        known = distributions.setdefault(name, distribution)
        # A mirror started by an older version lacks the choices that were added since.
        if not isinstance(known, optuna.distributions.CategoricalDistribution) or value in known.choices:
            params[name] = value
    trial = optuna.trial.create_trial(
        state=state,
        values=values if complete else None,
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs=_attributes(evaluation),
        system_attrs={_OLD_CONSTRAINTS: [over]},
        constraints={CONSTRAINT: over},
    )
    if evaluation.finished_at is not None:
        trial.datetime_complete = evaluation.finished_at.replace(tzinfo=None)
        trial.datetime_start = trial.datetime_complete
    return trial


def _parameters(evaluation: Evaluation, study: Study) -> dict[str, tuple[Any, Any]]:
    """Return the parameters of a schedule by name, each with its distribution; three for each step."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    schedule, depth = evaluation.schedule, study.spec.token_layout.depth
    found: dict[str, tuple[Any, Any]] = {}
    for number, (step, context) in enumerate(zip(schedule.steps, schedule.contexts, strict=True), 1):
        found[f"after_{number}"] = (step.after, IntDistribution(1, depth))
        found[f"keep_{number}"] = (step.keep, FloatDistribution(0.0, 1.0))
        found[f"context_{number}"] = (context, CategoricalDistribution(CONTEXT))
    for name, choice in schedule.method.as_dict().items():
        if name != "context":  # each step has its own context
            found[name] = (choice, CategoricalDistribution(METHOD_CHOICES[name]))
    return found


def _attributes(evaluation: Evaluation) -> dict[str, Any]:
    """Return the user attributes of a trial; those that are None are left out."""
    reported = evaluation.reported
    found = {
        "schedule": evaluation.schedule.text,
        "hash": evaluation.hash,
        "number": evaluation.number,
        "flops": evaluation.flops,
        "flops_ratio": evaluation.flops_ratio,
        "images": reported.images,
        "origin": evaluation.origin,
        "top1": reported.top1,
        "loss": reported.loss,
        "agreement": reported.agreement,
        "latency_ms": reported.latency_ms,
        "latency_ratio": reported.latency_ratio,
        "estimate": evaluation.estimate,
        "seconds": reported.seconds,
        "failure": evaluation.failure,
        "error": evaluation.error,
    }
    return {name: value for name, value in found.items() if value is not None}
