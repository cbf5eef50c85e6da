"""Trackers hear of everything, and cannot harm the search."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from results import Evaluation, Study
from results.store.store import Store
from search.driver.progress import Snapshot
from search.driver.trackers import MirrorTracker, MLflowTracker, WandbTracker, make_tracker, metrics
from search.driver.tracking import Tracking
from spaces.errors import StoreError, UnknownNameError, UsageError

SNAPSHOT = Snapshot(done=3, stopped=1, failed=0, reused=0, trials=9, front=2, hypervolume=0.5)
OUTCOME = SimpleNamespace(ending="8 evaluations are recorded", exit_code=0)
SECRET = "hunter2secret"


class Listener:
    """Hears, and raises where told."""

    name = "listener"

    def __init__(self, failing: dict[str, Exception] | None = None) -> None:
        self.heard: list[Any] = []
        self._failing = failing or {}

    def _hear(self, what: str, value: Any) -> None:
        self.heard.append((what, value))
        if what in self._failing:
            raise self._failing[what]

    def on_start(self, study: Study) -> None:
        self._hear("start", study.name)

    def on_evaluation(self, evaluation: Evaluation, snapshot: Snapshot) -> None:
        self._hear("evaluation", (evaluation.number, snapshot))

    def on_end(self, outcome: Any) -> None:
        self._hear("end", outcome)


@pytest.fixture
def opened(study_url: str) -> Iterator[tuple[Store, Study]]:
    with Store.open(study_url) as store:
        yield store, store.study("digits")


def follow(opened: tuple[Store, Study], listeners: list[Any], notes: list[str], fails: bool = False) -> None:
    """A search that records the study's first three evaluations, two of them at once."""
    store, study = opened
    recorded = store.evaluations(study, done_only=False)
    with Tracking(listeners, study, notes.append) as tracking:
        tracking.observe(SNAPSHOT, recorded[:1])
        tracking.observe(SNAPSHOT, [])
        if fails:
            raise StoreError("gone")
        tracking.observe(SNAPSHOT, recorded[1:3])
        tracking.end(OUTCOME)  # type: ignore[arg-type]


def test_each_hears_everything_once_and_in_order(opened: tuple[Store, Study]) -> None:
    listeners, notes = [Listener(), Listener()], []  # type: ignore[var-annotated]
    follow(opened, listeners, notes)
    expected = [
        ("start", "digits"),
        *(("evaluation", (number, SNAPSHOT)) for number in range(3)),
        ("end", OUTCOME),
    ]
    assert listeners[0].heard == listeners[1].heard == expected
    assert notes == []


def test_a_search_that_fails_has_no_outcome(opened: tuple[Store, Study]) -> None:
    listener = Listener()
    with pytest.raises(StoreError, match="gone"):
        follow(opened, [listener], [], fails=True)
    assert listener.heard[-1] == ("end", None)


def test_an_error_is_said_once_and_keeps_nobody_from_hearing(opened: tuple[Store, Study]) -> None:
    broken = Listener(dict.fromkeys(("start", "evaluation", "end"), StoreError("mirror full")))
    foreign = Listener({"evaluation": RuntimeError(f"https://u:{SECRET}@host")})
    fine, notes = Listener(), []  # type: ignore[var-annotated]
    follow(opened, [broken, foreign, fine], notes)
    assert len(broken.heard) == len(foreign.heard) == len(fine.heard) == 5
    assert notes == [
        "warning: listener: mirror full; the search goes on",
        "warning: listener: RuntimeError in builtins; the search goes on",
    ]


def test_an_evaluation_in_the_spool_is_not_told_of(opened: tuple[Store, Study]) -> None:
    """It has no number yet; a resume takes it in."""
    store, study = opened
    first, second = store.evaluations(study, done_only=False)[:2]
    listener = Listener()
    with Tracking([listener], study, pytest.fail) as tracking:
        tracking.observe(SNAPSHOT, [replace(first, number=-1), second])
    assert listener.heard == [("start", "digits"), ("evaluation", (second.number, SNAPSHOT)), ("end", None)]


def test_a_mirror_that_was_away_catches_up(opened: tuple[Store, Study]) -> None:
    """It is given all evaluations at the start, after an error, and at the end."""
    store, study = opened
    given: list[int] = []
    away = [False]

    def update(study: Study, evaluations: list[Evaluation]) -> int:
        given.append(len(evaluations))
        if away[0]:
            raise StoreError("away")
        return len(evaluations)

    mirror: Any = SimpleNamespace(update=update, forget=lambda: None)
    tracker = MirrorTracker(mirror, lambda study: store.evaluations(study, done_only=False))
    first = store.evaluations(study, done_only=False)[0]
    tracker.on_start(study)
    tracker.on_evaluation(first, SNAPSHOT)
    away[0] = True
    for _ in range(2):
        with pytest.raises(StoreError):
            tracker.on_evaluation(first, SNAPSHOT)
    away[0] = False
    tracker.on_evaluation(first, SNAPSHOT)
    tracker.on_evaluation(first, SNAPSHOT)
    tracker.on_end(None)
    assert given == [8, 1, 1, 8, 8, 1, 8]


def test_metrics_leave_out_what_there_is_not(opened: tuple[Store, Study]) -> None:
    store, study = opened
    for evaluation in store.evaluations(study, done_only=False):
        found = metrics(evaluation, SNAPSHOT)
        assert all(isinstance(value, float) for value in found.values())
        assert ("top1" in found) == (evaluation.state == "done")
        assert found["hypervolume"] == 0.5


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mlflow'"):
        make_tracker("mlflw")
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UsageError, match=rf"pip install {name}"):
            make_tracker(name)


# --- against the real libraries where they are installed, and else their documented interface -----------------


class Calls:
    """Takes every call and remembers it."""

    def __init__(self) -> None:
        self.summary: dict[str, str] = {}
        self.made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.made.append((name, arguments, options))
            return SimpleNamespace(experiment_id="1", info=SimpleNamespace(run_id="r"))

        return call


def test_mlflow_gets_a_run(opened: tuple[Store, Study], monkeypatch: pytest.MonkeyPatch) -> None:
    client = Calls()
    entities = SimpleNamespace(Param=lambda *a: a, Metric=lambda *a: a)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: client))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)  # type: ignore[arg-type]
    notes: list[str] = []
    follow(opened, [MLflowTracker()], notes, fails=False)
    names = [name for name, _, _ in client.made]
    assert names == ["get_experiment_by_name", "create_run", *["log_batch"] * 4, "set_tag", "set_terminated"]
    assert notes == []
    (_, _, options) = client.made[2]
    assert ("study", "digits") in options["params"]
    steps = {metric[3] for _, arguments, _ in client.made[3:6] for metric in arguments[1]}
    assert steps == {0, 1, 2}


def test_wandb_gets_a_run(opened: tuple[Store, Study], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Calls()
    started: list[dict[str, Any]] = []

    def init(**options: Any) -> Calls:
        started.append(options)
        return run

    stand_in = SimpleNamespace(init=init, Settings=lambda **options: options)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)  # type: ignore[arg-type]
    follow(opened, [WandbTracker()], [], fails=False)
    assert started[0]["group"] == "digits"
    assert started[0]["settings"] == {"silent": True, "console": "off"}
    assert [name for name, _, _ in run.made] == [*["log"] * 3, "finish"]
    assert run.summary == {"ending": OUTCOME.ending}
