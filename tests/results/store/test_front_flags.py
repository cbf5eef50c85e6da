"""The front in the database always equals the pure function's, on both databases."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Event

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from results import Confirmation, Evaluation, StudySpec
from results.objectives import OBJECTIVES, best_evaluation, search_front
from results.store.store import Store
from spaces import PruningSchedule
from spaces.errors import StoreError, UsageError
from tests.results.engines import both_engines

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]

pytestmark = both_engines
READERS = 24
FEW = st.integers(0, 3)  # few values, so that many points are equal
STEP = st.tuples(st.sampled_from(["done", "done", "done", "failed", "stopped", "confirm"]), FEW, FEW, FEW, FEW, FEW)


def pure_front(evaluations: list[Evaluation], objectives: tuple[str, ...]) -> list[Evaluation]:
    return [evaluations[i] for i in search_front(evaluations, objectives)]


def hashes(evaluations: list[Evaluation]) -> list[str]:
    return sorted(evaluation.hash for evaluation in evaluations)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(STEP, max_size=14),
    objectives=st.lists(st.sampled_from(list(OBJECTIVES)), min_size=1, max_size=4, unique=True).map(tuple),
    most=st.none() | st.integers(0, 4),
    least=st.none() | st.integers(0, 4),
)
def test_the_stored_front_equals_the_pure_function(
    store: Store,
    make_spec: MakeSpec,
    make_evaluation: MakeEvaluation,
    steps: list[tuple[str, int, int, int, int, int]],
    objectives: tuple[str, ...],
    most: int | None,
    least: int | None,
) -> None:
    study = store.create_study(make_spec(name=f"study {len(store.studies())}", objectives=objectives))
    recorded: list[Evaluation] = []
    for number, (what, flops, top1, loss, agreement, latency) in enumerate(steps):
        figures = {"loss": float(loss), "agreement": agreement / 4, "latency_ratio": float(latency)}
        if what == "confirm":
            done = [e for e in recorded if e.state == "done"]
            chosen = done[flops % len(done)].hash if done else PruningSchedule().hash
            store.confirm(
                study,
                Confirmation(chosen, top1 / 4, images=9, seconds=1.0, latency_ms=1.0, **figures),
            )
        else:
            changes = {"state": what, "failure": "OOM" if what == "failed" else None}
            recorded.append(make_evaluation(f"1:{(number + 1) / 100}", flops, top1 / 4, **figures, **changes))
            assert store.record(study, recorded[-1])
        evaluations = store.evaluations(study)
        assert hashes(store.front(study)) == hashes(pure_front(evaluations, objectives))
    bound = None if least is None else least / 4
    affordable = [e for e in store.evaluations(study) if most is None or e.flops <= most]
    front = [e for e in pure_front(affordable, objectives) if bound is None or (e.reported.top1 or 0.0) >= bound]
    assert hashes(store.front(study, most, bound)) == hashes(front)
    whole = set(objectives) == {"top1", "flops"}
    try:
        expected = best_evaluation(
            store.front(study) if whole else store.evaluations(study), max_flops=most, min_top1=bound
        )
    except UsageError as error:
        with pytest.raises(UsageError) as caught:
            store.best(study, max_flops=most, min_top1=bound)
        assert str(caught.value) == str(error)
    else:
        found = store.best(study, max_flops=most, min_top1=bound)
        assert (found.reported.top1, found.flops) == (expected.reported.top1, expected.flops)


def test_refused_records_do_not_change_the_front(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    study = store.create_study(make_spec())
    store.record(study, make_evaluation("1:0.5"))
    with pytest.raises(StoreError):
        store.record(study, make_evaluation("2:0.5", top1=float("nan")))
    assert not store.record(study, make_evaluation("1:0.5", top1=1.0))
    assert [e.top1 for e in store.front(study)] == [0.9]


def test_concurrent_readers_see_a_consistent_front(
    store: Store, url: str, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    study, over, rounds = store.create_study(make_spec()), Event(), [0] * READERS

    def read(reader: int) -> None:
        with Store.open(url) as own:
            while not over.is_set():
                front = own.front(study)
                assert all(a.flops < b.flops and (a.top1 or 0) < (b.top1 or 0) for a, b in pairwise(front))
                assert own.study(study.name).done >= len(front)
                rounds[reader] += 1
                over.wait(0.5)  # the threads share one interpreter with the writer

    with ThreadPoolExecutor(READERS) as pool:
        readers = [pool.submit(read, reader) for reader in range(READERS)]
        number = 0
        try:
            # A reader that is done has failed.
            while min(rounds) < 2 and not any(reader.done() for reader in readers):
                flops, top1 = 400_000 + number * 7919 % 400_000, (number * 37 % 15) / 15
                assert store.record(study, make_evaluation(f"1:{(number + 1) / 100_000}", flops, top1))
                number += 1
        finally:
            over.set()
        for reader in readers:
            reader.result()
    assert len(store.evaluations(study)) == number > 0
