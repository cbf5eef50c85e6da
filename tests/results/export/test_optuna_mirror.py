"""The mirror in an Optuna storage, read back with Optuna."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from results import Evaluation, Study, StudySpec
from results.export.optuna_mirror import CONFIRMED, CONSTRAINT, Mirror
from results.records import Confirmation
from results.store.store import Store
from spaces import PruningSchedule
from spaces.errors import StoreError, UsageError

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]
SECRET = "hunter2secret"


@pytest.fixture
def target(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


@pytest.fixture
def filled(store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> tuple[Store, Study]:
    """A study with contexts by step, a failed and a stopped evaluation, and one over the budget."""
    study = store.create_study(make_spec())
    for evaluation in (
        make_evaluation("3:0.8", 700_000, 0.9),
        make_evaluation("3:0.5:conv,6:0.5", 600_000, 0.85),
        make_evaluation("3:0.6;importance=l2", 650_000, 0.8),
        make_evaluation(
            "2:0.5", 500_000, None, state="failed", failure="NONFINITE", error="logits are NaN", images=0
        ),
        make_evaluation("1:0.5", 450_000, 0.4, state="stopped", images=100, estimate=0.41),
        make_evaluation("9:0.9;context=freeze", 900_000, 0.97),
    ):
        store.record(study, evaluation)
    return store, store.study(study.name)


def mirrored(target: str, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=target)


def points(evaluations: Sequence[Evaluation]) -> set[tuple[float | None, int]]:
    return {(e.reported.top1, e.flops) for e in evaluations}


def best(study: optuna.Study) -> set[tuple[float, ...]]:
    return {tuple(trial.values) for trial in study.best_trials}


def test_optuna_reads_the_study_as_recorded(filled: tuple[Store, Study], target: str) -> None:
    store, study = filled
    evaluations = store.evaluations(study, done_only=False)
    assert Mirror(target).update(study, evaluations) == 6
    found = mirrored(target, "digits")
    assert [d.name for d in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert found.metric_names == ["top1", "flops"]
    assert (found.user_attrs["budget"], found.user_attrs["model"]) == ("0.8", "vim_nano")
    states = {"done": TrialState.COMPLETE, "failed": TrialState.FAIL, "stopped": TrialState.PRUNED}
    for evaluation, trial in zip(evaluations, found.trials, strict=True):
        assert trial.number == evaluation.number
        assert trial.state is states[evaluation.state]
        assert trial.user_attrs["schedule"] == evaluation.schedule.text
        assert trial.user_attrs["hash"] == evaluation.hash
        assert trial.constraints[CONSTRAINT] == pytest.approx(evaluation.flops_ratio - 0.8)
        assert trial.system_attrs["constraints"] == [trial.constraints[CONSTRAINT]], "the dashboard reads this key"
        if evaluation.state == "done":
            assert trial.values == [evaluation.top1, evaluation.flops]
    assert found.trials[1].params == {
        **{"after_1": 3, "keep_1": 0.5, "context_1": "conv", "after_2": 6, "keep_2": 0.5, "context_2": "drop"},
        **{"importance": "clip", "alignment": "on", "reduction": "prune"},
    }
    assert found.trials[3].user_attrs["failure"] == "NONFINITE"


def test_a_second_update_adds_only_what_is_new(
    filled: tuple[Store, Study], target: str, make_evaluation: MakeEvaluation
) -> None:
    store, study = filled
    mirror = Mirror(target)
    mirror.update(study, store.evaluations(study, done_only=False)[:4])
    assert Mirror(target).update(study, store.evaluations(study, done_only=False)) == 2
    for again in (mirror, Mirror(target)):
        again.forget()
        assert again.update(study, store.evaluations(study, done_only=False)) == 0
    store.record(study, make_evaluation("4:0.7"))
    assert mirror.update(study, store.evaluations(study, done_only=False)) == 1
    assert len(mirrored(target, "digits").trials) == 7


def test_the_best_trials_are_the_front(filled: tuple[Store, Study], target: str) -> None:
    """The first study has the front of the search, the second the front of confirmed scores."""
    store, study = filled
    Mirror(target).update(study, store.evaluations(study, done_only=False))
    within = [e for e in store.front(study) if e.flops <= study.spec.limit]
    assert best(mirrored(target, "digits")) == points(within), "points over the budget are infeasible"

    for evaluation in [e for e in store.evaluations(study) if e.flops <= study.spec.limit]:
        top1 = {700_000: 0.7, 600_000: 0.84, 650_000: 0.82}[evaluation.flops]
        store.confirm(study, Confirmation(evaluation.hash, top1, 0.4, 0.9, 5000, 1.0, 1.0, 0.8))
    evaluations = store.evaluations(study, done_only=False)
    assert Mirror(target).update(study, evaluations) == 3
    assert best(mirrored(target, "digits" + CONFIRMED)) == {(0.84, 600_000)}
    front = store.front(study, max_flops=study.spec.limit)
    assert [e.flops for e in front] == [e.flops for e in within], "confirmed scores do not change the front"


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(st.tuples(st.integers(1, 99), st.sampled_from((0.5, 0.7, 0.9))), min_size=1, max_size=6))
def test_the_best_trials_are_the_front_of_any_objectives(
    store: Store,
    target: str,
    make_spec: MakeSpec,
    make_evaluation: MakeEvaluation,
    data: list[tuple[int, float]],
) -> None:
    study = store.create_study(make_spec(name=f"digits{len(store.studies())}", limit=1_000_000))
    for index, (flops, top1) in enumerate(data):
        store.record(study, make_evaluation(f"3:{0.01 + index / 100!r}", 1000 * flops, top1))
    storage = mirror_at(target)
    storage.update(study, store.evaluations(study))
    assert best(mirrored(target, study.name)) == points(store.front(study))


@cache
def mirror_at(target: str) -> Mirror:
    """Creating a storage takes a second, so all examples share one."""
    return Mirror(target)


def test_another_study_of_that_name_is_not_changed(filled: tuple[Store, Study], target: str) -> None:
    store, study = filled
    optuna.create_study(study_name="digits", storage=target, directions=["maximize"])
    with pytest.raises(UsageError, match="has another study named 'digits'"):
        Mirror(target).update(study, store.evaluations(study))
    later = replace(study, created_at=study.created_at.replace(year=2001))
    Mirror(target + "2").update(study, [])
    with pytest.raises(UsageError, match="has another study"):
        Mirror(target + "2").update(later, store.evaluations(study))
    assert mirrored(target, "digits").trials == []


def test_a_study_whose_creation_was_interrupted_is_completed(filled: tuple[Store, Study], target: str) -> None:
    """As if the process was killed between creating the study and setting its attributes."""
    store, study = filled
    optuna.create_study(study_name="digits", storage=target, directions=["maximize", "minimize"])
    assert Mirror(target).update(study, store.evaluations(study)) > 0
    there = mirrored(target, "digits")
    assert there.metric_names == ["top1", "flops"]
    assert there.user_attrs["model"] == study.spec.model


def test_a_mirror_with_fewer_choices_still_works(
    filled: tuple[Store, Study], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, study = filled
    first, *rest = store.evaluations(study, done_only=False)
    monkeypatch.setattr("results.export.optuna_mirror.CONTEXT", ("drop", "zeros"))
    Mirror(target).update(study, [first])
    monkeypatch.undo()
    Mirror(target).update(study, rest)
    trials = mirrored(target, "digits").trials
    assert len(trials) == 6
    assert "context_1" not in trials[1].params, "conv was not among the choices"
    assert trials[1].params["context_2"] == "drop"


def test_a_database_of_prunefront_is_refused(filled: tuple[Store, Study], url: str) -> None:
    with pytest.raises(UsageError, match="is a database of prunefront"):
        Mirror(url).update(filled[1], [])


@pytest.mark.parametrize("address", ["mysql://u@h/d", "optuna.db", "sqlite://"])
def test_invalid_addresses_are_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"expected sqlite:///FILE|name a file"):
        Mirror(address)


@pytest.mark.parametrize(
    "address", [f"postgresql://u:{SECRET}@127.0.0.1:1/d", f"postgresql://127.0.0.1:1/d?user=u&password={SECRET}"]
)
def test_an_unreachable_storage_is_an_error_of_one_line_without_the_password(
    filled: tuple[Store, Study], address: str
) -> None:
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1") as caught:
        Mirror(address).update(filled[1], [])
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_schedule_without_steps_has_no_step_parameters(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation, target: str
) -> None:
    study = store.create_study(make_spec(budget="1", limit=1_000_000))
    dense: Any = make_evaluation("", 1_000_000, 0.98, schedule=PruningSchedule())
    store.record(study, dense)
    Mirror(target).update(study, store.evaluations(study))
    (trial,) = mirrored(target, "digits").trials
    assert set(trial.params) == {"importance", "alignment", "reduction"}
