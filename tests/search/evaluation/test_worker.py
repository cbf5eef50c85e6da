"""A worker takes tasks and returns results, with the driver's model and images."""

import pickle
import re
import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search.data.image_order import STRATIFIED
from search.data.image_set import ImageSet
from search.driver.search_setup import SearchSetup
from search.evaluation.evaluator import Evaluator
from search.evaluation.metrics import DenseAnswers
from search.evaluation.protocol import (
    CONFIRM,
    SEARCH,
    DenseResult,
    Failure,
    Measurement,
    WorkerSetup,
    confirm_task,
    pack,
    search_task,
    task_entries,
    unpack,
)
from search.evaluation.race import Entry
from search.evaluation.worker import CandidateRunner, EvaluationTrainable
from search.models import evaluation_fingerprint
from search.runtime.failures import first_line
from spaces import PruningSchedule
from spaces.errors import OutOfMemoryError

IMAGES = 40
SCHEDULES = [PruningSchedule.parse(text) for text in ("3:0.3;context=freeze", "3:0.3,8:0.5;context=freeze", "1:0.1")]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """A worker sets the process's threads, on which the last bits depend."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dense(search_setup: SearchSetup) -> DenseAnswers:
    return search_setup.dense_answers()[0]


@pytest.fixture(scope="module")
def setup(search_setup: SearchSetup, dense: DenseAnswers) -> WorkerSetup:
    """A worker on 40 images of val, which confirms on the 60 after them."""
    return WorkerSetup(
        model="vim_nano",
        checkpoint=None,
        data="embedded",
        class_order=None,
        images=ImageSet("val", IMAGES),
        confirm=ImageSet("val", 60, skip=IMAGES),
        batch_size=20,
        fingerprint=evaluation_fingerprint(search_setup.model, search_setup.data, ImageSet("val", 60, skip=IMAGES)),
        threads=1,
        gpu=False,
        folder=".",
        dense=DenseResult(asdict(dense.metrics), dense.answers.numpy()),
        prefix_cache=2**26,
        race_error=0.05,
        agreement=False,
        latency=False,
    )


@pytest.fixture(scope="module")
def runner(setup: WorkerSetup) -> CandidateRunner:
    return CandidateRunner(setup)


def group(*schedules: PruningSchedule) -> dict[str, Any]:
    """A task whose candidates do not race."""
    return search_task([Entry(schedule) for schedule in schedules])


def measured(result: Measurement | Failure) -> Measurement:
    assert isinstance(result, Measurement)
    return result


@pytest.fixture
def evaluator(search_setup: SearchSetup, dense: DenseAnswers) -> Evaluator:
    """The driver's own."""
    model = search_setup.model
    batches = search_setup.data.batches(model.pretrained_cfg, model.img_size, images=IMAGES, batch_size=20)
    return Evaluator(model, batches, dense=dense, error=0.05)


@given(st.lists(st.booleans(), max_size=40))
def test_outcomes_are_packed_and_unpacked(outcomes: list[bool]) -> None:
    packed = pack(np.array(outcomes, np.bool_))
    assert len(packed) == (len(outcomes) + 7) // 8
    found = unpack(packed, len(outcomes))
    assert (found.dtype, found.tolist()) == (np.bool_, outcomes)


def test_a_task_is_plain_values() -> None:
    bar = np.arange(9) % 2 == 0
    task = search_task([Entry(SCHEDULES[0], bar, 7), Entry(SCHEDULES[1])])
    assert task == {
        "task": SEARCH,
        "schedules": [s.text for s in SCHEDULES[:2]],
        "flops": [7, None],
        "bars": [pack(bar), None],
    }
    first, second = task_entries(task, 9)
    assert first.bar is not None
    assert (first.schedule, first.bar.tolist(), first.flops) == (SCHEDULES[0], bar.tolist(), 7)
    assert second == Entry(SCHEDULES[1])
    assert confirm_task(PruningSchedule()) == {"task": CONFIRM, "schedules": [""]}


class TestSearching:
    def test_a_group_has_the_evaluators_results(self, runner: CandidateRunner, evaluator: Evaluator) -> None:
        found = runner.search(group(*SCHEDULES))
        for schedule, result in zip(SCHEDULES, map(measured, found), strict=True):
            metrics = evaluator.evaluate(schedule)
            names = ("top1", "loss", "agreement", "images", "stopped", "estimate")
            assert [getattr(result, name) for name in names] == [getattr(metrics, name) for name in names]
            assert metrics.outcomes is not None
            assert result.outcomes == pack(metrics.outcomes)
            assert 0 < result.forward_seconds <= result.seconds
            assert result.latency_ms is result.latency_ratio is None
        assert pickle.loads(pickle.dumps(found)) == found

    def test_candidates_race(self, runner: CandidateRunner, evaluator: Evaluator) -> None:
        entries = [Entry(SCHEDULES[2], np.ones(IMAGES, np.bool_)), Entry(SCHEDULES[0])]
        expected, _ = evaluator.evaluate_group(entries)
        stopped, whole = map(measured, runner.search(search_task(entries)))
        assert not isinstance(expected, Exception)
        assert expected.outcomes is not None
        assert (stopped.stopped, stopped.images) == (True, 20)
        assert (stopped.top1, stopped.estimate) == (expected.top1, expected.estimate)
        assert stopped.outcomes == pack(expected.outcomes)
        assert (whole.stopped, whole.images) == (False, IMAGES)

    def test_a_schedule_that_does_not_fit_fails_alone(self, runner: CandidateRunner) -> None:
        failed, fine = runner.search(group(PruningSchedule.parse("99:0.5"), SCHEDULES[0]))
        message = "ScheduleError: step after block 99: vim_nano has 12 blocks, numbered from 1"
        assert failed == Failure("ERROR", message, 0.0)
        assert measured(fine).images == IMAGES


class TestLatency:
    def test_it_is_measured_where_it_is_an_objective(self, setup: WorkerSetup) -> None:
        timing = CandidateRunner(replace(setup, latency=True))
        entries = [Entry(SCHEDULES[2], np.ones(IMAGES, np.bool_)), Entry(SCHEDULES[0])]
        loser, winner = map(measured, timing.search(search_task(entries)))
        assert loser.stopped
        assert loser.latency_ms is None  # a loser's time is not worth measuring
        assert winner.latency_ms is not None and winner.latency_ms > 0
        assert winner.latency_ratio is not None and winner.latency_ratio > 0

    def test_one_that_cannot_be_timed_fails_alone(self, setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch) -> None:
        timing = CandidateRunner(replace(setup, latency=True))
        latency = timing.evaluator.latency

        def short(schedule: PruningSchedule) -> Any:
            if schedule == SCHEDULES[0]:
                raise OutOfMemoryError("one image does not fit")
            return latency(schedule)

        monkeypatch.setattr(timing.evaluator, "latency", short)
        failed, fine = timing.search(group(*SCHEDULES[:2]))
        assert isinstance(failed, Failure)
        assert (failed.kind, failed.error) == ("OOM", "OutOfMemoryError: one image does not fit")
        assert (measured(fine).latency_ratio or 0) > 0


class TestConfirming:
    def test_it_runs_over_the_images_that_are_held_back(
        self, runner: CandidateRunner, search_setup: SearchSetup
    ) -> None:
        model = search_setup.model
        batches = search_setup.data.batches(
            model.pretrained_cfg, model.img_size, images=60, batch_size=20, skip=IMAGES
        )
        expected = Evaluator(model, batches)
        for schedule in (PruningSchedule(), SCHEDULES[0]):
            found = measured(runner.confirm(confirm_task(schedule))[0])
            metrics = expected.evaluate(schedule)
            names = ("top1", "loss", "agreement", "images")
            assert [getattr(found, name) for name in names] == [getattr(metrics, name) for name in names]
            assert found.images == 60
            assert found.seconds > 0
            assert found.latency_ms is not None and found.latency_ms > 0
            assert found.latency_ratio is not None and found.latency_ratio > 0

    def test_both_lists_of_images_are_in_the_order_of_the_study(
        self, setup: WorkerSetup, search_setup: SearchSetup
    ) -> None:
        images, confirm = (replace(chosen, order=STRATIFIED) for chosen in (setup.images, setup.confirm))
        runner, model = CandidateRunner(replace(setup, images=images, confirm=confirm)), search_setup.model
        for found, chosen in (
            (runner.search(group(SCHEDULES[0])), images),
            (runner.confirm(confirm_task(SCHEDULES[0])), confirm),
        ):
            expected = search_setup.data.batches(
                model.pretrained_cfg, model.img_size, "val", chosen.images, 20, chosen.skip, STRATIFIED
            )
            assert measured(found[0]).loss == Evaluator(model, expected).evaluate(SCHEDULES[0]).loss

    def test_the_search_continues_as_before(self, setup: WorkerSetup) -> None:
        """One model serves both lists of images."""
        runner, task = CandidateRunner(setup), group(SCHEDULES[0])
        before = measured(runner.search(task)[0])
        runner.confirm(confirm_task(SCHEDULES[1]))
        after = measured(runner.search(task)[0])
        untimed = {"seconds": 0.0, "forward_seconds": 0.0}
        assert replace(before, **untimed) == replace(after, **untimed)


class TestTrainable:
    def step(self, setup: WorkerSetup, *tasks: dict[str, Any]) -> list[dict[str, Any]]:
        """Run tasks as Tune does in an actor that it reuses."""
        actor = EvaluationTrainable.__new__(EvaluationTrainable)
        actor.setup(tasks[0], setup)
        found = [actor.step()]
        for task in tasks[1:]:
            assert actor.reset_config(task)
            found.append(actor.step())
        return found

    def test_it_takes_one_task_after_the_other(self, setup: WorkerSetup) -> None:
        task = group(*SCHEDULES[:2])
        first, second, third = self.step(setup, task, confirm_task(SCHEDULES[0]), task)
        assert [len(found["results"]) for found in (first, second, third)] == [2, 1, 2]
        assert all(found["done"] is True for found in (first, second, third))
        assert [r.images for r in second["results"]] == [60]
        assert [r.top1 for r in first["results"]] == [r.top1 for r in third["results"]]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"data": "folder:nowhere"}, "nowhere: no such folder"),
            ({"checkpoint": "gone.safetensors"}, "checkpoint gone.safetensors: no such file"),
            ({"python": "2.7"}, "python is 3.* there and 2.7 at the driver"),
            ({"prunefront": "0.0"}, "prunefront is .* there and 0.0 at the driver"),
            ({"torch": "1.0"}, "torch is .* there and 1.0 at the driver"),
            ({"weights": "0" * 64}, "weights is .*… there and 000000000000… at the driver"),
            ({"data (val)": "0" * 64}, r"data \(val\) is .*… there and 000000000000… at the driver"),
        ],
    )
    def test_a_worker_that_differs_evaluates_nothing(
        self, setup: WorkerSetup, change: dict[str, Any], words: str
    ) -> None:
        own = {name: value for name, value in change.items() if name not in setup.fingerprint}
        other = replace(
            setup, **own, fingerprint={**setup.fingerprint, **{k: change[k] for k in change if k not in own}}
        )
        for found in self.step(other, group(*SCHEDULES[:2]), confirm_task(SCHEDULES[0])):
            assert found["done"] is True
            assert "results" not in found
            assert re.match(f"node {re.escape(socket.gethostname())}: {words}", found["refused"])
            assert "\n" not in found["refused"]

    def test_a_model_that_cannot_be_opened_is_no_error_before_the_first_task(self, setup: WorkerSetup) -> None:
        actor = EvaluationTrainable.__new__(EvaluationTrainable)
        actor.setup({}, replace(setup, model="no_such_model"))


def test_a_message_is_text_that_any_database_takes() -> None:
    assert first_line(ValueError("caf\udce9\0: no\nmore")) == "caf??: no"
