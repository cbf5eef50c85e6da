"""What runs in a worker: tasks in, plain results out, with the model and images that the driver has."""

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

from search.data.image_set import ImageSet
from search.driver.search_setup import SearchSetup
from search.evaluation.evaluator import DenseAnswers, Entry, Evaluator
from search.evaluation.protocol import (
    CONFIRM,
    SEARCH,
    DenseResult,
    WorkerSetup,
    confirm_task,
    pack,
    search_task,
    unpack,
)
from search.evaluation.worker import Bench, EvaluationTrainable
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
def dense(subject: SearchSetup) -> DenseAnswers:
    return subject.dense_answers()[0]


@pytest.fixture(scope="module")
def setup(subject: SearchSetup, dense: DenseAnswers) -> WorkerSetup:
    """A worker on 40 images of val, which confirms on the 60 after them."""
    return WorkerSetup(
        model="vim_nano",
        checkpoint=None,
        data="embedded",
        images=ImageSet("val", IMAGES),
        confirm=ImageSet("val", 60, skip=IMAGES),
        batch_size=20,
        fingerprint=evaluation_fingerprint(subject.model, subject.data, ImageSet("val", 60, skip=IMAGES)),
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
def bench(setup: WorkerSetup) -> Bench:
    return Bench(setup)


@pytest.fixture
def evaluator(subject: SearchSetup, dense: DenseAnswers) -> Evaluator:
    """The driver's own."""
    model = subject.model
    batches = subject.data.batches(model.pretrained_cfg, model.img_size, images=IMAGES, batch_size=20)
    return Evaluator(model, batches, dense=dense, error=0.05)


@given(st.lists(st.booleans(), max_size=40))
def test_outcomes_are_packed_and_unpacked(outcomes: list[bool]) -> None:
    packed = pack(np.array(outcomes, np.bool_))
    assert len(packed) == (len(outcomes) + 7) // 8
    found = unpack(packed, len(outcomes))
    assert (found.dtype, found.tolist()) == (np.bool_, outcomes)


def test_a_task_is_plain_values() -> None:
    bar = np.arange(9) % 2 == 0
    task = search_task([(SCHEDULES[0], 7, bar), (SCHEDULES[1], None, None)])
    assert task == {
        "task": SEARCH,
        "schedules": [s.text for s in SCHEDULES[:2]],
        "flops": [7, None],
        "bars": [pack(bar), None],
    }
    assert confirm_task(PruningSchedule()) == {"task": CONFIRM, "schedules": [""]}


class TestSearching:
    def test_a_brood_is_what_the_evaluator_finds(self, bench: Bench, evaluator: Evaluator) -> None:
        found = bench.search(search_task([(schedule, None, None) for schedule in SCHEDULES]))
        for schedule, result in zip(SCHEDULES, found, strict=True):
            metrics = evaluator.evaluate(schedule)
            names = ("top1", "loss", "agreement", "images", "stopped", "estimate")
            assert {name: result[name] for name in names} == {name: getattr(metrics, name) for name in names}
            assert result["outcomes"] == pack(metrics.outcomes)
            assert 0 < result["forward_seconds"] <= result["seconds"]
            assert result["latency_ms"] is result["latency_ratio"] is None
        assert pickle.loads(pickle.dumps(found)) == found

    def test_candidates_race(self, bench: Bench, evaluator: Evaluator) -> None:
        entries = [Entry(SCHEDULES[2], np.ones(IMAGES, np.bool_)), Entry(SCHEDULES[0])]
        expected, _ = evaluator.evaluate_brood(entries)
        stopped, whole = bench.search(search_task([(entry.schedule, None, entry.bar) for entry in entries]))
        assert not isinstance(expected, Exception)
        assert (stopped["stopped"], stopped["images"]) == (True, 20)
        assert (stopped["top1"], stopped["estimate"]) == (expected.top1, expected.estimate)
        assert stopped["outcomes"] == pack(expected.outcomes)
        assert (whole["stopped"], whole["images"]) == (False, IMAGES)

    def test_a_schedule_that_does_not_fit_fails_alone(self, bench: Bench) -> None:
        found = bench.search(search_task([(PruningSchedule.parse("99:0.5"), None, None), (SCHEDULES[0], None, None)]))
        assert found[0] == {
            "failure": "ERROR",
            "error": "ScheduleError: step after block 99: vim_nano has 12 blocks, numbered from 1",
            "seconds": 0.0,
        }
        assert found[1]["images"] == IMAGES


class TestLatency:
    def test_it_is_measured_where_it_is_an_objective(self, setup: WorkerSetup) -> None:
        bar = np.ones(IMAGES, np.bool_)
        found = Bench(replace(setup, latency=True)).search(
            search_task([(SCHEDULES[2], None, bar), (SCHEDULES[0], None, None)])
        )
        assert found[0]["stopped"]
        assert found[0]["latency_ms"] is None  # a loser's time is not worth measuring
        assert found[1]["latency_ms"] > 0
        assert found[1]["latency_ratio"] > 0

    def test_one_that_cannot_be_timed_fails_alone(self, setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch) -> None:
        subject = Bench(replace(setup, latency=True))
        latency = subject._evaluator.latency

        def short(schedule: PruningSchedule) -> Any:
            if schedule == SCHEDULES[0]:
                raise OutOfMemoryError("one image does not fit")
            return latency(schedule)

        monkeypatch.setattr(subject._evaluator, "latency", short)
        found = subject.search(search_task([(schedule, None, None) for schedule in SCHEDULES[:2]]))
        assert (found[0]["failure"], found[0]["error"]) == ("OOM", "OutOfMemoryError: one image does not fit")
        assert found[1]["latency_ratio"] > 0


class TestConfirming:
    def test_it_runs_over_the_images_that_are_held_back(self, bench: Bench, subject: SearchSetup) -> None:
        model = subject.model
        batches = subject.data.batches(model.pretrained_cfg, model.img_size, images=60, batch_size=20, skip=IMAGES)
        expected = Evaluator(model, batches)
        for schedule in (PruningSchedule(), SCHEDULES[0]):
            (found,) = bench.confirm(confirm_task(schedule))
            metrics = expected.evaluate(schedule)
            names = ("top1", "loss", "agreement", "images")
            assert {name: found[name] for name in names} == {name: getattr(metrics, name) for name in names}
            assert found["images"] == 60
            assert found["seconds"] > 0
            assert found["latency_ms"] > 0
            assert found["latency_ratio"] > 0

    def test_the_search_goes_on_as_before(self, setup: WorkerSetup) -> None:
        """One model serves both lists of images."""
        bench, task = Bench(setup), search_task([(SCHEDULES[0], None, None)])
        before = bench.search(task)[0]
        bench.confirm(confirm_task(SCHEDULES[1]))
        after = bench.search(task)[0]
        assert all(before[name] == after[name] for name in before if not name.endswith("seconds"))


class TestTrainable:
    def step(self, setup: WorkerSetup, *tasks: dict[str, Any]) -> list[dict[str, Any]]:
        """Run tasks as Tune does in an actor that is used again."""
        actor = EvaluationTrainable.__new__(EvaluationTrainable)
        actor.setup(tasks[0], setup)
        found = [actor.step()]
        for task in tasks[1:]:
            assert actor.reset_config(task)
            found.append(actor.step())
        return found

    def test_it_takes_one_task_after_the_other(self, setup: WorkerSetup) -> None:
        brood = search_task([(schedule, None, None) for schedule in SCHEDULES[:2]])
        first, second, third = self.step(setup, brood, confirm_task(SCHEDULES[0]), brood)
        assert [len(found["results"]) for found in (first, second, third)] == [2, 1, 2]
        assert all(found["done"] is True for found in (first, second, third))
        assert [r["images"] for r in second["results"]] == [60]
        assert [r["top1"] for r in first["results"]] == [r["top1"] for r in third["results"]]

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
        brood = search_task([(schedule, None, None) for schedule in SCHEDULES[:2]])
        for found in self.step(other, brood, confirm_task(SCHEDULES[0])):
            assert found["done"] is True
            assert "results" not in found
            assert re.match(f"node {re.escape(socket.gethostname())}: {words}", found["refused"])
            assert "\n" not in found["refused"]

    def test_it_does_not_load_the_model_before_it_has_a_task(self, setup: WorkerSetup) -> None:
        actor = EvaluationTrainable.__new__(EvaluationTrainable)
        actor.setup({}, replace(setup, model="no_such_model"))


def test_a_message_is_text_that_any_data_base_takes() -> None:
    assert first_line(ValueError("caf\udce9\0: no\nmore")) == "caf??: no"
