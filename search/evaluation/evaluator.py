"""Candidates → metrics, on one worker: a model and the images, loaded once and kept."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.data.task import Tally
from search.data.tasks import task_named
from search.evaluation.prefix_cache import Branch, PrefixCache, SharedRun, branches, cache_bytes
from search.evaluation.race import BroodRace
from search.runtime.failures import out_of_memory
from spaces import PruningSchedule
from spaces.errors import EvaluationError, NonFiniteError, OutOfMemoryError
from ssm_models import PrunableModel

LATENCY_PAIRS = (5, 25)  # of timed runs, dense and pruned in turn: at least, and at most
LATENCY_SECONDS = 2.0  # after which the least number of pairs is enough


@dataclass(frozen=True)
class Metrics:
    """What an evaluation measured.

    Attributes:
        top1: the task's score in 0..1, such as accuracy.
        loss: mean cross-entropy.
        agreement: share of answers that are the dense model's, of images or of their pixels.
        images: how many were run; all of them unless `stopped`.
        outcomes: (images,) bool: which were right, or for a race of agreement, answered as the dense model does; None
            where an image is more than right or wrong.
        stopped: whether the race against the front was given up; the figures are then those of `images` images.
        estimate: of a stopped one: the share of `outcomes` over all images, by its difference to the dense model.
        seconds: what it took; what candidates share is on the account of the first one.
        forward_seconds: what its forward passes took.
        tally: all that was counted, for further figures; a worker's results are without it.
    """

    top1: float
    loss: float
    agreement: float
    images: int
    outcomes: NDArray[np.bool_] | None
    stopped: bool = False
    estimate: float | None = None
    seconds: float = 0.0
    forward_seconds: float = 0.0
    tally: Tally | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Latency:
    """How long a forward pass takes: milliseconds an image, and the ratio to the dense model's, both medians."""

    ms: float
    ratio: float


@dataclass(frozen=True)
class DenseAnswers:
    """How the dense model does on the same images; its `Task.answers` to all of them, (images, …), on the CPU."""

    metrics: Metrics
    answers: Tensor


@dataclass(frozen=True)
class Entry:
    """A candidate to evaluate.

    Attributes:
        schedule: of the candidate.
        bar: (N,) bool, the outcomes of the best point that costs no more, to race against; see `Race`.
        flops: what it costs, to race against the cheaper ones of its brood; None leaves it out of that.
    """

    schedule: PruningSchedule
    bar: NDArray[np.bool_] | None = None
    flops: int | None = None


@dataclass
class _Run:
    """How far one candidate is; `lost_to` is the cheaper one of its brood that stopped it, if one did."""

    entry: Entry
    path: list[Branch]
    tally: Tally
    images: int = 0
    agreeing: float = 0.0
    seconds: float = 0.0
    forward: float = 0.0
    answers: list[Tensor] = field(default_factory=list)
    outcomes: list[NDArray[np.bool_]] = field(default_factory=list)
    stopped: bool = False
    lost_to: "_Run | None" = None
    error: Exception | None = None


class Evaluator:
    """Evaluates schedules on one model and one list of images; not for several threads at a time.

    Args:
        model: taken over: moved to `device`, set to eval mode, and its schedule set at will.
        batches: re-iterable of (images (B, 3, H, W) float32, targets of the model's task), in the same order each
            time.
        device: where to run.
        dense: answers of the dense model on these batches if they are known already; otherwise they
            are computed when they are first needed.
        prefix_cache: bytes of features that are kept for candidates which begin alike.
        agreement: whether an image counts as an outcome if it is answered as by the dense model, not if right.
        error: of a candidate's races together; see `Race`. With 0 a race is lost when it cannot be won any more.
    """

    def __init__(
        self,
        model: PrunableModel,
        batches: Iterable[tuple[Tensor, Tensor]],
        device: str | torch.device = "cpu",
        dense: DenseAnswers | None = None,
        *,
        prefix_cache: int = 0,
        agreement: bool = False,
        error: float = 0.0,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.cache = PrefixCache(cache_bytes(self.device, prefix_cache))
        self._task, self._classes = task_named(model.task), model.num_classes
        self._batches = batches
        self._dense = dense
        self._agreement, self._error = agreement, error

    @property
    def dense(self) -> Metrics:
        """Metrics of the dense model."""
        return self.dense_answers.metrics

    @property
    def dense_answers(self) -> DenseAnswers:
        """Metrics and answers of the dense model, computed once; raises as `evaluate` does."""
        if self._dense is None:
            run = self._run([Entry(PruningSchedule())], None)[0]
            if run.error is not None:
                raise run.error
            answers = torch.cat(run.answers).clone()
            self._dense = DenseAnswers(self._metrics(run), answers)
        return self._dense

    def evaluate(self, schedule: PruningSchedule) -> Metrics:
        """Run all images under `schedule`.

        Raises:
            ScheduleError: the schedule does not fit the model.
            NonFiniteError: a logit is NaN or infinite.
            OutOfMemoryError: a single image does not fit. A batch that does not is halved.
        """
        found = self.evaluate_brood([Entry(schedule)])[0]
        if isinstance(found, Exception):
            raise found
        return found

    def evaluate_brood(self, brood: Sequence[Entry]) -> list[Metrics | Exception]:
        """Evaluate candidates together, batch by batch: they share what they have in common, and race.

        Returns:
            For each candidate its metrics, or what `evaluate` would raise of it. Only the images can fail as a whole:
            a DataError is raised.
        """
        dense = self.dense_answers
        runs = self._run([entry for entry in brood if not entry.schedule.dense], dense)
        metrics = iter([run.error or self._metrics(run) for run in runs])
        return [dense.metrics if entry.schedule.dense else next(metrics) for entry in brood]

    @torch.inference_mode()
    def latency(self, schedule: PruningSchedule) -> Latency:
        """Time forward passes of the first batch: warmed up, dense and pruned in turn, with whatever else runs here.

        Raises:
            ScheduleError: the schedule does not fit the model.
            OutOfMemoryError: a single image does not fit. A batch that does not is halved.
        """
        images = self._first_images()
        while True:
            try:
                return self._latency(schedule, images.to(self.device))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            self._make_room(self.cache)
            if len(images) == 1:
                raise self._too_large(schedule)
            images = images[: -(-len(images) // 2)]

    def _latency(self, schedule: PruningSchedule, images: Tensor) -> Latency:
        pairs: list[tuple[float, float]] = []
        began = time.perf_counter()
        least, most = LATENCY_PAIRS
        while len(pairs) < least + 1 or (len(pairs) <= most and time.perf_counter() - began < LATENCY_SECONDS):
            pairs.append((self._time(PruningSchedule(), images), self._time(schedule, images)))
        pairs.pop(0)  # kernels are compiled and memory is found there
        ms = 1e3 * median(pruned for _, pruned in pairs) / len(images)
        return Latency(ms, median(pruned / dense for dense, pruned in pairs))

    def _time(self, schedule: PruningSchedule, images: Tensor) -> float:
        self.model.set_schedule(schedule)
        started = time.perf_counter()
        self.model(images).cpu()  # waits for the device, so the clock covers the computation
        return time.perf_counter() - started

    def _first_images(self) -> Tensor:
        for images, _ in self._batches:
            return images
        raise EvaluationError("there are no images to evaluate on")

    @torch.inference_mode()
    def _run(self, brood: Sequence[Entry], dense: DenseAnswers | None) -> list[_Run]:
        runs = [self._begin(entry) for entry in brood]
        for run in runs:
            self.cache.expect(run.path)
        total = 0 if dense is None else dense.metrics.images
        race = BroodRace(total, self._error, [e.bar for e in brood], [e.flops for e in brood])
        live, images_run = [run for run in runs if run.error is None], 0
        for index, (images, labels) in enumerate(self._batches):
            if not live:
                break
            paths = [run.path for run in live if run.path]
            shared = SharedRun(self.model, self.cache, index, images, paths, self.device)
            answers = None if dense is None else dense.answers[images_run : images_run + len(labels)]
            for run in live:
                started = time.perf_counter()
                try:
                    self._advance(run, shared, images, labels, answers)
                except Exception as error:  # of this candidate alone
                    run.error = error
                run.seconds += time.perf_counter() - started
            images_run += len(labels)
            outcomes = [None if run.error or not run.outcomes else np.concatenate(run.outcomes) for run in runs]
            for beaten, winner in race.lost(outcomes).items():
                runs[beaten].stopped = True
                runs[beaten].lost_to = None if winner is None else runs[winner]
            live = [run for run in live if run.error is None and not run.stopped]
        if brood and not images_run and live:
            raise EvaluationError("there are no images to evaluate on")
        for i, run in enumerate(runs):
            if run.lost_to is not None and run.lost_to.error is not None:  # whose outcomes count for nothing
                runs[i] = self._run([run.entry], dense)[0]
        return runs

    def _begin(self, entry: Entry) -> _Run:
        try:
            self.model.set_schedule(entry.schedule)
        except Exception as error:
            return _Run(entry, [], self._task.tally(self._classes), error=error)
        return _Run(entry, branches(entry.schedule, self.model.layout), self._task.tally(self._classes))

    def _advance(self, run: _Run, shared: SharedRun, images: Tensor, labels: Tensor, dense: Tensor | None) -> None:
        """Run one batch of a candidate: (B, 3, H, W) images, the task's targets, answers of the dense model."""
        started = time.perf_counter()
        logits = self._logits(run, shared, images)
        run.forward += time.perf_counter() - started
        finite = torch.isfinite(logits).flatten(1).all(1)
        if not finite.all():
            first = run.images + int((~finite).nonzero()[0])
            raise NonFiniteError(
                f"schedule {run.entry.schedule.text or 'dense'!r}: {int((~finite).sum())} of {len(labels)} images in "
                f"a batch have logits that are NaN or infinite; the first is image {first}"
            )
        answers = self._task.answers(logits)
        run.tally.add(logits, labels)
        run.images += len(labels)
        if dense is None:
            run.answers.append(answers)
        expected = answers if dense is None else dense
        run.agreeing += float(self._task.agreement(answers, expected).sum())
        right = self._task.right(answers, expected if self._agreement else labels)
        if right is not None:
            run.outcomes.append(right.numpy())

    def _metrics(self, run: _Run) -> Metrics:
        outcomes = np.concatenate(run.outcomes) if run.outcomes else None
        estimate = None
        if run.stopped:
            whole = self.dense.outcomes
            assert outcomes is not None and whole is not None  # a race goes by them
            estimate = float(np.clip(whole.mean() + outcomes.mean() - whole[: run.images].mean(), 0.0, 1.0))
        return Metrics(
            top1=run.tally.score,
            loss=run.tally.loss,
            agreement=run.agreeing / run.images,
            images=run.images,
            outcomes=outcomes,
            stopped=run.stopped,
            estimate=estimate,
            seconds=run.seconds,
            forward_seconds=run.forward,
            tally=run.tally,
        )

    def _logits(self, run: _Run, shared: SharedRun, images: Tensor) -> Tensor:
        """Return the logits on the CPU; a batch that does not fit is halved, and nothing is shared then."""
        schedule = run.entry.schedule
        size = len(images)
        try:
            return shared.logits(schedule, run.path).float().cpu()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        while True:  # outside the handler, whose traceback would keep the activations alive
            self._make_room(shared)
            if size == 1:
                raise self._too_large(schedule)
            size = -(-size // 2)
            try:
                self.model.set_schedule(schedule)
                parts = torch.split(images, size)
                return torch.cat([self.model(part.to(self.device)).float().cpu() for part in parts])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise

    def _make_room(self, kept: PrefixCache | SharedRun) -> None:
        kept.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_large(self, schedule: PruningSchedule) -> OutOfMemoryError:
        return OutOfMemoryError(f"schedule {schedule.text or 'dense'!r}: one image does not fit on {self.device}")
