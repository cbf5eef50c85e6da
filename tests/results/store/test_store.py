"""Records round-trip, contradictions are refused, and the front equals the pure function's."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from threading import Barrier

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event

from results import Confirmation, Evaluation, FineTune, Study, StudySpec, pareto_front
from results.objectives import OBJECTIVES, best_evaluation, objective_value, search_front
from results.records import FineTuned
from results.store.store import Store
from spaces import PruningSchedule
from spaces.errors import StoreError, StudyExistsError, UnknownNameError, UsageError
from tests.patience import PATIENCE
from tests.results.engines import both_engines

pytestmark = both_engines
MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]


def make_finetune(schedule_hash: str, **changes: object) -> FineTune:
    tuned = FineTune(
        schedule_hash, 0.97, 0.1, 2, 1000, 12.5, "out/model.safetensors", "c" * 64,
        {"lr": 1e-4}, [{"epoch": 1, "loss": 0.2}], {"torch": "2"},
    )  # fmt: skip
    return replace(tuned, **changes)  # type: ignore[arg-type]


def make_confirmation(schedule_hash: str, top1: float = 0.85, **changes: object) -> Confirmation:
    confirmation = Confirmation(schedule_hash, top1, 0.4, 0.92, 5000, 2.5, 1.0, 0.8)
    return replace(confirmation, **changes)  # type: ignore[arg-type]


def test_a_study_round_trips(store: Store, make_spec: MakeSpec) -> None:
    spec = make_spec(img_size=(224, 160), limit=2**40, dense_flops=2**41, seed=2**40, name="Grüße <&> 'x'")
    before = datetime.now(UTC)
    study = store.create_study(spec)
    assert study == store.study(spec.name) == store.studies()[0]
    assert replace(study.spec, layout=spec.layout) == spec
    assert study.spec.token_layout == spec.token_layout
    assert before <= study.created_at <= datetime.now(UTC)
    assert (study.done, study.failed, study.stopped, study.confirmed) == (0, 0, 0, 0)


def test_study_names_are_unique_and_unknown_names_get_a_suggestion(store: Store, make_spec: MakeSpec) -> None:
    store.create_study(make_spec())
    with pytest.raises(StudyExistsError, match="study 'digits': exists already"):
        store.create_study(make_spec(seed=8))
    with pytest.raises(UnknownNameError, match="unknown study 'digit': did you mean 'digits'"):
        store.study("digit")
    store.create_study(make_spec(name="a later one"))
    assert [study.name for study in store.studies()] == ["digits", "a later one"]


def test_only_one_of_several_threads_creates_a_study(store: Store, make_spec: MakeSpec) -> None:
    start = Barrier(4, timeout=PATIENCE)

    def create(seed: int) -> Study | None:
        start.wait()
        with suppress(StudyExistsError):
            return store.create_study(make_spec(seed=seed))
        return None

    with ThreadPoolExecutor(4) as pool:
        created = [study for study in pool.map(create, range(4)) if study]
    assert created == store.studies()
    assert len(created) == 1


def test_an_evaluation_round_trips(store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    study = store.create_study(make_spec())
    finished = datetime(2026, 11, 21, 12, 30, 15, 123456, tzinfo=timezone(timedelta(hours=2)))
    written = make_evaluation(
        "3:0.8,9:0.1;importance=l2;context=freeze",
        flops=2**40,
        latency_ms=1.25,
        latency_ratio=0.75,
        outcomes=bytes(range(125)),
        parameters={"place": 3, "ratio": 0.1},
        sampler_state={"population": [1, 2, 3]},
        finished_at=finished,
    )
    assert store.record(study, written)
    assert store.evaluation(study, written.hash) == replace(written, number=0)
    assert store.evaluation(study, "0" * 16) is None


def test_a_schedule_is_recorded_once(store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    study, other = store.create_study(make_spec()), store.create_study(make_spec(name="other"))
    assert store.record(study, make_evaluation("5:0.5,3:0.8", top1=0.9))
    assert not store.record(study, make_evaluation("3:0.8,5:0.50,6:1.0", top1=0.1)), "one canonical form"
    assert store.record(other, make_evaluation("3:0.8,5:0.5", top1=0.2)), "another study has its own"
    assert [e.top1 for e in store.evaluations(study)] == [0.9]


def test_failures_are_listed_separately(store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    study = store.create_study(make_spec())
    store.record(study, make_evaluation("1:0.5"))
    store.record(study, make_evaluation("2:0.5", top1=None, state="failed", failure="OOM", error="no memory"))
    store.record(study, make_evaluation("", flops=1_000_000, top1=0.98))
    assert [(e.number, e.state) for e in store.evaluations(study)] == [(0, "done"), (2, "done")]
    failed = store.evaluations(study, done_only=False)[1]
    assert (failed.number, failed.state, failed.failure, failed.error) == (1, "failed", "OOM", "no memory")
    assert (store.study("digits").done, store.study("digits").failed) == (2, 1)
    assert [e.schedule.text for e in store.front(study)] == ["1:0.5", ""]


def test_stopped_evaluations_are_never_on_the_front(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    study = store.create_study(make_spec())
    done = make_evaluation("1:0.5", flops=600_000, top1=0.9)
    partly = make_evaluation(
        "2:0.5", flops=500_000, top1=1.0, state="stopped", images=9, outcomes=b"\xff\x80", estimate=0.8
    )
    barely = make_evaluation("3:0.5", flops=500_000, top1=None, state="stopped", images=1)
    for each in (done, partly, barely):
        assert store.record(study, each)
    assert not store.record(study, make_evaluation("2:0.5")), "it is known"
    assert [e.hash for e in store.evaluations(study)] == [e.hash for e in store.front(study)] == [done.hash]
    recorded = store.evaluations(study, done_only=False)
    assert [replace(e, finished_at=None) for e in recorded] == [
        replace(e, number=i) for i, e in enumerate((done, partly, barely))
    ]
    assert [objective_value(e, "top1") for e in recorded] == [0.9, None, None]
    assert objective_value(recorded[1], "flops") == 500_000
    found = store.study("digits")
    assert (found.done, found.failed, found.stopped) == (1, 0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top1": math.nan}, "top1 is nan"),
        ({"loss": math.inf}, "loss is inf"),
        ({"latency_ms": math.nan}, "latency_ms is nan"),
        ({"top1": None}, "lacks its top1 or loss"),
        ({"failure": "OOM"}, "is done, but has the failure OOM"),
        ({"state": "stopped", "failure": "OOM"}, "is stopped, but has the failure OOM"),
        ({"state": "stopped", "images": 0}, "was stopped after 0 images; expected at least one"),
        ({"state": "stopped", "estimate": math.nan}, "estimate is nan"),
        ({"latency_ratio": math.inf}, "latency_ratio is inf"),
        ({"outcomes": b"123"}, "3 bytes of outcomes do not match 1000 images"),
        ({"state": "running"}, "state 'running'"),
        ({"state": "failed"}, "unknown failure None; use one of OOM"),
        ({"state": "failed", "failure": "BAD"}, "unknown failure 'BAD'; use one of OOM"),
        ({"parameters": {"ratio": math.nan}}, "parameters cannot be written as JSON: .*not JSON compliant"),
        ({"sampler_state": {"study": object()}}, "sampler_state cannot be written as JSON"),
    ],
)
def test_contradictory_records_are_refused(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation, changes: dict[str, object], message: str
) -> None:
    study = store.create_study(make_spec())
    with pytest.raises(StoreError, match=message) as caught:
        store.record(study, make_evaluation(**changes))
    assert "\n" not in str(caught.value)
    assert store.evaluations(study, done_only=False) == []


def test_a_study_with_nonfinite_numbers_is_refused(store: Store, make_spec: MakeSpec) -> None:
    with pytest.raises(StoreError, match="study 'digits': dense_loss is nan"):
        store.create_study(make_spec(dense_loss=math.nan))
    assert store.studies() == []


def test_an_evaluation_has_the_mean_of_its_latest_fine_tunings(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    study, other = store.create_study(make_spec()), store.create_study(make_spec(name="other"))
    for each in (study, other):
        store.record(each, make_evaluation("3:0.8"))
        store.record(each, make_evaluation("4:0.8", flops=720_000, top1=0.95))
    tuned = store.evaluations(study)[0]
    held_out = {"split": "val", "skip": 200, "images": 800, "before_top1": 0.9}
    runs = [
        make_finetune(tuned.hash, top1=0.99),  # of the images that chose the schedule
        make_finetune(tuned.hash, top1=0.75, weights_digest="d" * 64, config={"seed": 0}, **held_out),
        make_finetune(tuned.hash, top1=0.98, weights_digest="e" * 64, config={"seed": 0, "lr": 1}, **held_out),
        make_finetune(tuned.hash, top1=0.5, weights_digest="f" * 64, config={"seed": 1, "workers": 2}, **held_out),
    ]
    for run in runs:
        store.record_finetune(study, run)
    expected = FineTuned(2, 0.625, 0.5, 0.75, 800, "val, 201–1,000", 0.9)
    assert [e.finetuned for e in store.evaluations(study)] == [expected, None]
    assert [e.finetuned_top1 for e in store.front(study)] == [0.625, None]
    assert [e.finetuned_top1 for e in store.evaluations(other)] == [None, None]
    assert [replace(one, finished_at=None) for one in store.finetunes(study)] == runs


def test_a_finetuning_is_recorded_once(store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    study, other = store.create_study(make_spec()), store.create_study(make_spec(name="other"))
    one, two = make_evaluation("3:0.8"), make_evaluation("4:0.8")
    for evaluation in (one, two):
        store.record(study, evaluation)
    store.record(other, one)
    assert store.record_finetune(study, make_finetune(one.hash))
    assert not store.record_finetune(study, make_finetune(one.hash, top1=0.5))  # the same weights
    assert store.record_finetune(study, make_finetune(one.hash, weights_digest="d" * 64))
    assert store.record_finetune(study, make_finetune(two.hash))
    assert store.record_finetune(other, make_finetune(one.hash))
    assert [(f.schedule_hash, f.top1) for f in store.finetunes(study)] == [
        (one.hash, 0.97),
        (one.hash, 0.97),
        (two.hash, 0.97),
    ]


def test_a_finetuning_reported_at_once_by_many_is_recorded_once(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    study, evaluation = store.create_study(make_spec()), make_evaluation("3:0.8")
    store.record(study, evaluation)
    start = Barrier(4)

    def report(_: int) -> bool:
        start.wait()
        return store.record_finetune(study, make_finetune(evaluation.hash))

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(report, range(4))) == [False, False, False, True]
    assert len(store.finetunes(study)) == 1


def test_finetuning_of_an_unknown_schedule_is_refused(store: Store, make_spec: MakeSpec) -> None:
    study = store.create_study(make_spec())
    with pytest.raises(UsageError, match="study 'digits' has no evaluation of it"):
        store.record_finetune(study, make_finetune("0" * 16))
    assert store.finetunes(study) == []


def test_a_confirmed_score_is_reported(store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    study, other = store.create_study(make_spec()), store.create_study(make_spec(name="other"))
    lucky, plain = make_evaluation("1:0.5", 500_000, 0.95), make_evaluation("2:0.5", 600_000, 0.93)
    for each in (study, other):
        store.record(each, lucky)
        store.record(each, plain)
    assert [e.hash for e in store.front(study)] == [lucky.hash]
    store.confirm(study, make_confirmation(lucky.hash, 0.99))
    store.confirm(study, make_confirmation(lucky.hash, 0.88))
    (first,) = store.front(study)
    assert (first.top1, first.reported.top1, first.reported.images) == (0.95, 0.88, 5000)
    assert first.confirmed == store.confirmation(study, lucky.hash), "the later one, in place of the earlier"
    assert plain.hash != first.hash, "it is dominated in the search, and stays so"
    assert store.front(study, min_top1=0.9) == [], "the bound is on the reported top-1"
    assert [e.confirmed for e in store.front(other)] == [None]
    assert [e.confirmed is not None for e in store.evaluations(study)] == [True, False]
    assert [s.confirmed for s in store.studies()] == [1, 0]


def test_the_dense_model_is_confirmed_without_an_evaluation(store: Store, make_spec: MakeSpec) -> None:
    study, dense = store.create_study(make_spec()), PruningSchedule().hash
    assert store.confirmation(study, dense) is None
    finished = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
    written = make_confirmation(dense, 0.97, finished_at=finished)
    store.confirm(study, written)
    assert store.confirmation(study, dense) == written
    assert store.evaluations(study, done_only=False) == []


@pytest.mark.parametrize("changes", [{"top1": math.nan}, {"loss": math.inf}, {"seconds": math.nan}, {"images": 0}])
def test_a_confirmation_with_invalid_numbers_is_refused(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation, changes: dict[str, object]
) -> None:
    study, evaluation = store.create_study(make_spec()), make_evaluation()
    store.record(study, evaluation)
    with pytest.raises(StoreError, match=f"confirmation of {evaluation.hash}: .*{next(iter(changes))}"):
        store.confirm(study, make_confirmation(evaluation.hash, **changes))
    assert store.confirmation(study, evaluation.hash) is None


@pytest.mark.parametrize("state", ["failed", "stopped", None])
def test_only_finished_evaluations_can_be_confirmed(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation, state: str | None
) -> None:
    study = store.create_study(make_spec())
    evaluation = make_evaluation(state=state or "done", failure="OOM" if state == "failed" else None)
    if state:
        store.record(study, evaluation)
    with pytest.raises(UsageError, match="study 'digits' has no finished evaluation of it"):
        store.confirm(study, make_confirmation(evaluation.hash))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.tuples(*[st.integers(0, 5)] * 4),
            st.none() | st.integers(1, 5),
            st.none() | st.tuples(*[st.integers(0, 5)] * 3),
        ),
        max_size=15,
    ),
    objectives=st.lists(st.sampled_from(list(OBJECTIVES)), min_size=1, max_size=3, unique=True),
    least=st.none() | st.integers(0, 6),
)
def test_the_front_uses_the_studys_objectives_and_the_search_s_scores(
    store: Store,
    make_spec: MakeSpec,
    make_evaluation: MakeEvaluation,
    rows: list[tuple[tuple[int, ...], int | None, tuple[int, ...] | None]],
    objectives: list[str],
    least: int | None,
) -> None:
    study = store.create_study(make_spec(name=f"study {len(store.studies())}", objectives=tuple(objectives)))
    for number, ((flops, top1, loss, agreement), latency, confirmed) in enumerate(rows):
        scores = {"loss": loss / 5, "agreement": agreement / 5, "latency_ratio": latency and latency / 5}
        evaluation = make_evaluation(f"{number + 1}:0.5", flops=flops + 1, top1=top1 / 5, **scores)
        store.record(study, evaluation)
        if confirmed:
            share, loss, agreement = (value / 5 for value in confirmed)
            store.confirm(study, make_confirmation(evaluation.hash, share, loss=loss, agreement=agreement))
    bound = None if least is None else least / 5
    every = store.evaluations(study)
    chosen = [every[i] for i in search_front(every, objectives)]
    within = [e for e in chosen if bound is None or (e.reported.top1 or 0.0) >= bound]
    best = sorted(within, key=lambda e: (e.flops, e.number))
    assert sorted(store.front(study, min_top1=bound), key=lambda e: (e.flops, e.number)) == best


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    points=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 10)), max_size=25),
    most=st.none() | st.integers(0, 13),
    least=st.none() | st.integers(0, 11),
)
def test_the_front_within_bounds_equals_the_pure_function(
    store: Store,
    make_spec: MakeSpec,
    make_evaluation: MakeEvaluation,
    points: list[tuple[int, int]],
    most: int | None,
    least: int | None,
) -> None:
    study = store.create_study(make_spec(name=f"study {len(store.studies())}"))
    for number, (flops, top1) in enumerate(points):
        store.record(study, make_evaluation(f"{number + 1}:0.5", flops=flops, top1=top1 / 10))
    found = store.front(study, most, None if least is None else least / 10)
    evaluations = store.evaluations(study)
    whole = [evaluations[i] for i in pareto_front([(e.flops, e.top1 or 0.0) for e in evaluations])]
    assert found == [
        e for e in whole if (most is None or e.flops <= most) and (least is None or (e.top1 or 0.0) >= least / 10)
    ]


def test_only_writes_take_the_lock(
    store: Store, database: Engine, make_spec: MakeSpec, make_evaluation: MakeEvaluation, engine: str
) -> None:
    if engine != "sqlite":
        pytest.skip("only SQLite has one write lock")
    statements: list[str] = []

    @event.listens_for(database, "before_cursor_execute")
    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    study = store.create_study(make_spec())
    assert "BEGIN IMMEDIATE" in statements
    statements.clear()
    store.record(study, make_evaluation())
    assert statements[0] == "BEGIN IMMEDIATE"
    statements.clear()
    store.front(study)
    assert statements[0] == "BEGIN"
    with database.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 1, "busy_timeout": 60_000, "foreign_keys": 1}


def test_ten_thousand_evaluations_are_read_in_few_statements(
    store: Store, database: Engine, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    from results.store.database import writing
    from results.store.front_flags import flag_all
    from results.store.schema import EvaluationRow

    study = store.create_study(make_spec())
    count = 10_000
    rows = [
        {
            "study_id": study.id,
            "number": i,
            "schedule_hash": f"{i:016x}",
            "schedule": PruningSchedule.of([(i % 10 + 1, 0.5), (11, (i // 10 + 1) / 2000)]).text,
            "state": "done",
            "flops": 400_000 + (i * 7919) % 400_000,
            "flops_ratio": 0.5,
            "top1": (i * 104_729 % count) / count,
            "loss": 0.1,
            "images": 1000,
            "origin": "nsga2",
            "parameters": {"place": i},
            "sampler_state": {"values": [0.1] * 8},
        }
        for i in range(count)
    ]
    with writing(database).begin() as connection:
        connection.execute(EvaluationRow.__table__.insert(), rows)  # type: ignore[attr-defined]
        flag_all(connection, study)
    statements: list[str] = []
    event.listen(database, "before_cursor_execute", lambda *given: statements.append(given[2]))
    evaluations = store.evaluations(study)
    read_all = statements.copy()
    statements.clear()
    front = store.front(study)
    assert len(evaluations) == count
    assert front == [evaluations[i] for i in pareto_front([(e.flops, e.top1 or 0.0) for e in evaluations])]
    assert sum(e.top1 is not None for e in evaluations) == count
    # Never a query a row, on two cores 0.25 s and 0.07 s; each begins with BEGIN.
    assert len(read_all) <= 2
    assert len(statements) <= 5
    assert store.best(study, max_flops=600_000) == best_evaluation(evaluations, max_flops=600_000)
