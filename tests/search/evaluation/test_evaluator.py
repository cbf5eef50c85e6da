"""Evaluating schedules: together they give the numbers that each gives alone."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import ssm_models
from search.evaluation import latency as latency_module
from search.evaluation.evaluator import Evaluator
from search.evaluation.latency import LEAST_PAIRS, MOST_PAIRS
from search.evaluation.metrics import Metrics
from search.evaluation.race import Entry, Race
from spaces import PruningSchedule
from spaces.errors import EvaluationError, NonFiniteError, OutOfMemoryError, ScheduleError
from ssm_models.token_view import TokenView
from tests.search.stub import Batches, Stub, numbered

SCHEDULE = PruningSchedule.parse("2:0.4,5:0.5")
DENSE = PruningSchedule()


def some_batches(sizes: Sequence[int] = (8, 8, 5)) -> Batches:
    torch.manual_seed(0)
    return [(torch.randn(n, 3, 28, 28), torch.randint(10, (n,))) for n in sizes]


BATCHES = some_batches()
MODEL = ssm_models.build("vim_nano", "random", num_classes=10).eval()


@pytest.fixture
def batches() -> Batches:
    return BATCHES


@pytest.fixture
def model() -> ssm_models.PrunableModel:
    return MODEL


def evaluator(stub: Stub, batches: Batches | None = None, **options: Any) -> Evaluator:
    options = {"error": 0.05} | options
    return Evaluator(stub, BATCHES if batches is None else batches, **options)  # type: ignore[arg-type]


def figures(metrics: Metrics | Exception) -> tuple[Any, ...]:
    """All that does not depend on the clock."""
    assert isinstance(metrics, Metrics)
    m = metrics
    return m.top1, m.loss, m.agreement, m.images, m.outcomes.tolist(), m.stopped, m.estimate


class TestOne:
    def test_the_metrics_are_those_of_the_model(self, model: ssm_models.PrunableModel, batches: Batches) -> None:
        metrics = Evaluator(model, batches).evaluate(SCHEDULE)
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        with torch.inference_mode():
            model.set_schedule(None)
            dense = model(images).argmax(1)
            model.set_schedule(SCHEDULE)
            logits = model(images)
        right = logits.argmax(1) == labels
        assert (metrics.images, metrics.stopped, metrics.estimate) == (21, False, None)
        assert metrics.top1 == pytest.approx(right.double().mean().item())
        assert metrics.outcomes.tolist() == right.tolist()
        assert metrics.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert metrics.agreement == pytest.approx((logits.argmax(1) == dense).double().mean().item())
        assert 0 < metrics.forward_seconds <= metrics.seconds

    def test_the_dense_model_runs_once(self) -> None:
        stub = Stub()
        subject = evaluator(stub)
        assert subject.evaluate(DENSE) is subject.dense
        assert subject.dense.agreement == 1.0
        subject.evaluate(SCHEDULE)
        subject.evaluate_group([Entry(DENSE), Entry(SCHEDULE)])
        assert stub.ran == [(schedule, n) for schedule in (DENSE, SCHEDULE, SCHEDULE) for n in (8, 8, 5)]
        stub.ran.clear()
        known = evaluator(stub, dense=subject.dense_answers)
        assert figures(known.evaluate(SCHEDULE)) == figures(subject.evaluate(SCHEDULE))
        assert stub.ran == [(SCHEDULE, n) for n in (8, 8, 5)] * 2

    @pytest.mark.parametrize("broken", [float("nan"), float("inf")])
    def test_logits_that_are_not_finite_are_refused_by_name(self, broken: float) -> None:
        stub = Stub()
        stub.broken = (SCHEDULE, broken)
        subject = evaluator(stub)
        with pytest.raises(NonFiniteError, match=r"'2:0.4,5:0.5': 1 of 8 images .* first is image 7") as caught:
            subject.evaluate(SCHEDULE)
        assert caught.value.failure == "NONFINITE"
        assert subject.evaluate(DENSE).images == 21  # the next one passes

    def test_other_errors_pass_through(self, model: ssm_models.PrunableModel, batches: Batches) -> None:
        with pytest.raises(ScheduleError, match="after block 99"):
            Evaluator(model, batches).evaluate(PruningSchedule.parse("99:0.5"))

        class DriverError(RuntimeError):
            def __str__(self) -> str:
                return "driver"

        with pytest.raises(DriverError):
            evaluator(Stub(fits=0, error=DriverError)).evaluate(SCHEDULE)

    def test_no_images_are_an_error(self) -> None:
        class Nothing:
            def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
                return iter(())

        for ask in (Evaluator.evaluate, Evaluator.latency):
            with pytest.raises(EvaluationError, match="no images"):
                ask(Evaluator(Stub(), Nothing()), SCHEDULE)  # type: ignore[arg-type]


class TestGroup:
    TEXTS = (
        "",
        "2:0.4,5:0.5",
        "2:0.4,5:0.3",
        "2:0.4,8:0.5;context=freeze",
        "6:0.5;importance=random",
        "2:0.41,9:0.7",
    )

    FEW = some_batches((3, 3, 2))

    @staticmethod
    @cache
    def alone(schedule: PruningSchedule) -> tuple[Any, ...]:
        return figures(Evaluator(MODEL, TestGroup.FEW).evaluate(schedule))

    @given(
        texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6),
        room=st.sampled_from([0, 50_000, 200_000, 2**30]),
    )
    @settings(max_examples=8)
    def test_it_gives_the_numbers_of_each_alone_to_the_bit(self, texts: list[str], room: int) -> None:
        schedules = [PruningSchedule.parse(text) for text in texts]
        subject = Evaluator(MODEL, self.FEW, prefix_cache=room)
        for _ in range(2):  # the second time from what the first one left
            together = subject.evaluate_group([Entry(schedule) for schedule in schedules])
            for schedule, metrics in zip(schedules, together, strict=True):
                assert figures(metrics) == self.alone(schedule)
        assert subject.cache.bytes <= room

    @pytest.mark.parametrize("room", [0, 2**30])
    def test_what_fails_leaves_the_others(self, room: int) -> None:
        broken, fine, strange = (PruningSchedule.parse(text) for text in ("2:0.4", "2:0.5", "99:0.5"))
        stub = Stub()
        stub.broken = (broken, float("nan"))
        subject = evaluator(stub, prefix_cache=room)
        alone = subject.evaluate(fine)
        found = subject.evaluate_group([Entry(s) for s in (broken, fine, strange, DENSE, SCHEDULE)])
        assert [type(one) for one in found] == [NonFiniteError, Metrics, ScheduleError, Metrics, Metrics]
        assert figures(found[1]) == figures(alone)
        assert found[3] is subject.dense
        assert subject.evaluate_group([]) == []

    def test_what_fails_runs_no_further(self) -> None:
        stub = Stub()
        stub.broken = (SCHEDULE, float("nan"))
        evaluator(stub).evaluate_group([Entry(SCHEDULE)])
        assert stub.ran.count((SCHEDULE, 8)) == 1

    def test_images_that_cannot_be_read_fail_all_of_it(self) -> None:
        class Broken:
            def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
                yield BATCHES[0]
                raise EvaluationError("b.png is broken")

        subject = Evaluator(Stub(), Broken(), dense=evaluator(Stub()).dense_answers)  # type: ignore[arg-type]
        with pytest.raises(EvaluationError, match=r"b\.png"):
            subject.evaluate_group([Entry(SCHEDULE), Entry(DENSE)])


class TestMemory:
    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
    def test_a_batch_that_does_not_fit_is_halved(self, error: type[Exception]) -> None:
        stub = Stub(fits=3, error=error)
        metrics = evaluator(stub).evaluate(SCHEDULE)
        assert stub.sizes == [2, 2, 2, 2, 2, 2, 2, 2, 3, 2] * 2
        assert figures(metrics) == figures(evaluator(Stub()).evaluate(SCHEDULE))

    def test_the_cache_is_cleared_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And the numbers stay those of the model, though some batches run whole, some in parts."""
        subject = Evaluator(MODEL, BATCHES, prefix_cache=2**30)
        other = PruningSchedule.parse("2:0.4,9:0.5")
        expected = [figures(Evaluator(MODEL, BATCHES).evaluate(schedule)) for schedule in (SCHEDULE, other)]
        subject.evaluate(SCHEDULE)
        held = subject.cache.bytes
        assert held > 0
        step, full = MODEL.step, {"it": True}

        def short(index: int, *arguments: Any) -> Any:
            if full["it"] and index == 7:
                full["it"] = False
                raise torch.OutOfMemoryError("CUDA out of memory")
            if not full["it"] and "seen" not in full:
                full["seen"] = True
                assert subject.cache.bytes == 0
            return step(index, *arguments)

        monkeypatch.setattr(MODEL, "step", short)
        found = subject.evaluate_group([Entry(SCHEDULE), Entry(other)])
        assert "seen" in full
        assert [figures(one)[4:] for one in found] == [one[4:] for one in expected]
        assert [figures(one)[1] for one in found] == pytest.approx([one[1] for one in expected], rel=1e-5)

    def test_an_image_that_does_not_fit_is_out_of_memory(self) -> None:
        stub = Stub(fits=0)
        subject = evaluator(stub, prefix_cache=2**30)
        with pytest.raises(OutOfMemoryError, match="'dense': one image does not fit on cpu") as caught:
            subject.evaluate(DENSE)
        assert caught.value.failure == "OOM"
        stub.fits = 100
        assert subject.evaluate(SCHEDULE).images == 21  # the next candidate starts from the whole batch again
        assert stub.sizes[-1] == 5

    def test_it_is_the_failure_of_one_candidate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stub = Stub()
        subject = evaluator(stub)
        large = PruningSchedule.parse("3:0.5")
        classify = stub.classify

        def short(x: Tensor, view: TokenView) -> Tensor:
            if stub.schedule == large:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return classify(x, view)

        monkeypatch.setattr(stub, "classify", short)
        found = subject.evaluate_group([Entry(large), Entry(SCHEDULE)])
        assert [type(one) for one in found] == [OutOfMemoryError, Metrics]


class TestRaces:
    IMAGES = 400

    def stub(self, **rates: float) -> tuple[Stub, dict[str, PruningSchedule]]:
        """Schedules by name that are right at these rates; the dense model at 0.9."""
        stub, random = Stub(), np.random.default_rng(0)
        named = {name: PruningSchedule.parse(f"{i + 1}:0.5") for i, name in enumerate(rates)}
        stub.answers = {named[name]: random.random(self.IMAGES) < rate for name, rate in rates.items()}
        stub.answers[DENSE] = random.random(self.IMAGES) < 0.9
        return stub, named

    def test_losers_are_stopped_with_what_they_ran(self) -> None:
        stub, named = self.stub(bar=0.8, twin=0.8, loser=0.4)
        subject = evaluator(stub, numbered(self.IMAGES, 40))
        bar = stub.answers[named["bar"]]
        twin, loser, free = subject.evaluate_group(
            [Entry(named["twin"], bar), Entry(named["loser"], bar), Entry(named["loser"])]
        )
        assert isinstance(twin, Metrics) and isinstance(loser, Metrics) and isinstance(free, Metrics)
        assert (twin.stopped, twin.images, twin.estimate) == (False, self.IMAGES, None)
        assert (free.stopped, free.images, free.estimate) == (False, self.IMAGES, None)
        assert loser.stopped
        assert loser.images % 40 == 0
        assert loser.images < self.IMAGES
        run = loser.images
        mine, dense = stub.answers[named["loser"]][:run], stub.answers[DENSE]
        assert loser.outcomes.tolist() == mine.tolist()
        assert loser.top1 == mine.mean()
        assert loser.agreement == (mine == dense[:run]).mean()  # there are two answers
        assert loser.estimate == pytest.approx(dense.mean() + mine.mean() - dense[:run].mean())
        assert sum(n for schedule, n in stub.ran if schedule == named["loser"]) == run + self.IMAGES

    def test_it_stops_when_the_race_says_so(self) -> None:
        stub, named = self.stub(bar=0.8, **{f"rate_{r}": r / 100 for r in range(50, 90, 10)})
        bar = stub.answers.pop(named.pop("bar"))
        subject = evaluator(stub, numbered(self.IMAGES, 40), error=0.2)
        found = subject.evaluate_group([Entry(schedule, bar) for schedule in named.values()])
        for schedule, metrics in zip(named.values(), found, strict=True):
            assert isinstance(metrics, Metrics)
            race, mine = Race(self.IMAGES, 0.2), stub.answers[schedule]
            ends = [end for end in range(40, self.IMAGES + 40, 40) if race.lost(mine[:end], bar)]
            assert metrics.images == (ends[0] if ends else self.IMAGES)
            assert metrics.stopped is bool(ends)

    def test_no_image_is_read_when_all_are_stopped(self) -> None:
        stub, named = self.stub(bar=1.0, loser=0.0, other=0.05)
        bar = stub.answers[named["bar"]]
        subject = evaluator(stub, numbered(self.IMAGES, 40))
        subject.evaluate_group([Entry(named["loser"], bar), Entry(named["other"], bar)])
        assert [schedule for schedule, _ in stub.ran if not schedule.dense] == [named["loser"], named["other"]]

    def test_the_candidates_of_a_group_race_each_other(self) -> None:
        stub, named = self.stub(cheap=0.8, loser=0.4, worst=0.1, dear=0.9, outside=0.1)
        subject = evaluator(stub, numbered(self.IMAGES, 40))
        costs = {"cheap": 5, "loser": 6, "worst": 4, "dear": 6, "outside": None}
        found = dict(
            zip(
                costs, subject.evaluate_group([Entry(named[n], None, cost) for n, cost in costs.items()]), strict=True
            )
        )
        assert all(isinstance(metrics, Metrics) for metrics in found.values())
        # The worst is the cheapest, so nothing beats it; what has no cost races against nobody.
        assert [n for n, metrics in found.items() if isinstance(metrics, Metrics) and metrics.stopped] == ["loser"]

    def test_only_one_of_two_that_cost_the_same_can_lose_to_the_other(self) -> None:
        stub, named = self.stub(one=0.8, other=0.8)
        subject = evaluator(stub, numbered(self.IMAGES, 40))
        stub.answers[named["other"]] = stub.answers[named["one"]].copy()
        found = subject.evaluate_group([Entry(named["one"], None, 5), Entry(named["other"], None, 5)])
        assert [isinstance(m, Metrics) and m.stopped for m in found] == [False, False]

    def test_a_race_lost_to_a_candidate_that_fails_later_does_not_count(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stub, named = self.stub(cheap=0.9, loser=0.3)
        subject, classify = evaluator(stub, numbered(self.IMAGES, 40)), stub.classify
        assert subject.dense.images == self.IMAGES

        def breaks_late(x: Tensor, view: TokenView) -> Tensor:
            logits = classify(x, view)
            late = stub.schedule == named["cheap"] and float(x[-1, 0, 0]) > 300
            return logits * torch.nan if late else logits

        monkeypatch.setattr(stub, "classify", breaks_late)
        cheap, loser = subject.evaluate_group([Entry(named["cheap"], None, 1), Entry(named["loser"], None, 2)])
        assert isinstance(cheap, NonFiniteError)
        assert isinstance(loser, Metrics)
        assert (loser.stopped, loser.images) == (False, self.IMAGES)

    def test_of_equal_candidates_hardly_any_that_would_join_is_stopped(self) -> None:
        """The error of all of a candidate's races together is the stated one: each beats the cheaper by an image."""
        random, false, joiners = np.random.default_rng(3), 0, 0
        for _ in range(40):
            stub, named = self.stub(**{f"c{i}": 0.0 for i in range(6)})
            for i, name in enumerate(named):
                right = np.arange(self.IMAGES) < 200 + i
                stub.answers[named[name]] = random.permutation(right)
            subject = evaluator(stub, numbered(self.IMAGES, 40), error=0.2)
            found = subject.evaluate_group([Entry(s, None, i) for i, s in enumerate(named.values())])
            false += sum(isinstance(metrics, Metrics) and metrics.stopped for metrics in found)
            joiners += len(found)
        assert false / joiners <= 0.2

    def test_an_estimate_is_a_share(self) -> None:
        stub, named = self.stub(bar=1.0, loser=0.0)
        stub.answers[DENSE][:40] = True
        loser = evaluator(stub, numbered(self.IMAGES, 40)).evaluate_group(
            [Entry(named["loser"], stub.answers[named["bar"]])]
        )[0]
        assert isinstance(loser, Metrics)
        assert loser.estimate == 0.0

    def test_a_race_of_agreement_counts_the_answers_of_the_dense_model(self) -> None:
        stub, named = self.stub(close=0.9, loser=0.5)
        subject = evaluator(stub, numbered(self.IMAGES, 40), agreement=True)
        dense = stub.answers[DENSE]
        assert subject.dense.outcomes.tolist() == [True] * self.IMAGES
        assert subject.dense.top1 == dense.mean()
        close = subject.evaluate(named["close"])
        assert close.outcomes.tolist() == (stub.answers[named["close"]] == dense).tolist()
        assert close.outcomes.mean() == close.agreement != close.top1
        loser = subject.evaluate_group([Entry(named["loser"], close.outcomes)])[0]
        assert isinstance(loser, Metrics)
        assert loser.stopped
        assert loser.outcomes.mean() == loser.agreement == pytest.approx(loser.estimate)


class TestLatency:
    def test_dense_and_pruned_run_in_turn_after_a_warm_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a clock of our own: a pruned run takes 2 s and a dense one 4, but slow ones come in between."""
        stub, clock = Stub(), Clock(monkeypatch)
        seconds = iter([9.0, 9.0, *[4.0, 2.0] * 3, 8.0, 3.0, 4.0, 2.0])
        classify = stub.classify
        monkeypatch.setattr(stub, "classify", lambda *given: (clock.add(next(seconds)), classify(*given))[1])
        latency = evaluator(stub).latency(SCHEDULE)
        assert [schedule for schedule, _ in stub.ran] == [DENSE, SCHEDULE] * (1 + LEAST_PAIRS)
        assert set(stub.sizes) == {8}  # the first batch
        assert latency.ms == 1e3 * 2.0 / 8
        assert latency.ratio == 0.5

    def test_quick_runs_are_repeated_up_to_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stub, clock = Stub(), Clock(monkeypatch)
        classify = stub.classify
        monkeypatch.setattr(stub, "classify", lambda *given: (clock.add(1e-4), classify(*given))[1])
        evaluator(stub).latency(SCHEDULE)
        assert len(stub.ran) == 2 * (1 + MOST_PAIRS)

    def test_both_medians_are_of_the_same_pairs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the machine slows down with time, the ratio of each pair still holds."""
        stub, clock = Stub(), Clock(monkeypatch)
        classify = stub.classify
        seconds = iter([x * (1 + i) for i in range(6) for x in (10.0, 4.0)])
        monkeypatch.setattr(stub, "classify", lambda *given: (clock.add(next(seconds)), classify(*given))[1])
        latency = evaluator(stub).latency(SCHEDULE)
        assert latency.ratio == pytest.approx(0.4)
        assert latency.ms == pytest.approx(1e3 * 4.0 * 4 / 8)  # the third of the five behind the warm-up

    def test_a_batch_that_does_not_fit_is_halved(self) -> None:
        stub = Stub(fits=3)
        subject = evaluator(stub, prefix_cache=2**30)
        assert subject.latency(SCHEDULE).ms > 0
        assert set(stub.sizes) == {2}
        stub.fits = 0
        with pytest.raises(OutOfMemoryError, match=r"'2:0\.4,5:0\.5': one image does not fit"):
            subject.latency(SCHEDULE)

    def test_a_schedule_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises(ScheduleError, match="after block 99"):
            evaluator(Stub()).latency(PruningSchedule.parse("99:0.5"))

    def test_on_a_real_model(self, model: ssm_models.PrunableModel, batches: Batches) -> None:
        latency = Evaluator(model, batches[2:]).latency(SCHEDULE)
        assert latency.ms > 0
        assert latency.ratio > 0


class Clock:
    """Stands in for the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(latency_module.time, "perf_counter", lambda: self.now)

    def add(self, seconds: float) -> None:
        self.now += seconds
