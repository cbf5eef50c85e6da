"""Schedules in, metrics out: one model and its images, loaded once and kept."""

import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from search.data.tasks import task_named
from search.evaluation.candidate_run import CandidateRun
from search.evaluation.latency import measure_latency
from search.evaluation.metrics import DenseAnswers, Latency, Metrics
from search.evaluation.prefix_cache import PrefixCache, SharedRun, branches, cache_bytes
from search.evaluation.race import Entry, GroupRace
from search.runtime.failures import out_of_memory
from spaces import PruningSchedule
from spaces.errors import EvaluationError, OutOfMemoryError
from ssm_models import PrunableModel


class Evaluator:
    """Evaluates schedules on one model and one list of images; not thread-safe.

    >>> from search.data.dataset import open_data
    >>> from search.models import open_model
    >>> data = open_data("embedded")
    >>> model = open_model("vim_nano", None, data)
    >>> evaluator = Evaluator(model, data.batches(model.pretrained_cfg, model.img_size, images=20))
    >>> metrics = evaluator.evaluate(PruningSchedule.parse("6:0.5"))
    >>> metrics.images, 0.0 <= metrics.top1 <= 1.0
    (20, True)

    Args:
        model: taken over: moved to `device`, set to eval mode, and its schedule set at will.
        batches: re-iterable of (images (B, 3, H, W) float32, targets of the model's task), in the same order each
            time.
        device: where to run.
        dense: the dense model's results on these batches; computed when first needed if not given.
        prefix_cache: most bytes of features that are kept for candidates with the same beginning.
        agreement: whether an image's outcome is agreement with the dense model instead of a right answer.
        error: of a candidate's races together; see `GroupRace`. With 0 a race is lost once it cannot be won.
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
        self._task = task_named(model.task)
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
            run = self._run_group([Entry(PruningSchedule())], None)[0]
            if run.error is not None:
                raise run.error
            answers = torch.cat(run.answers).clone()
            self._dense = DenseAnswers(run.metrics(None), answers)
        return self._dense

    def evaluate(self, schedule: PruningSchedule) -> Metrics:
        """Run all images under `schedule`.

        Raises:
            ScheduleError: the schedule does not fit the model.
            NonFiniteError: a logit is NaN or infinite.
            OutOfMemoryError: a single image does not fit. A batch that does not fit is halved.
        """
        found = self.evaluate_group([Entry(schedule)])[0]
        if isinstance(found, Exception):
            raise found
        return found

    def evaluate_group(self, entries: Sequence[Entry]) -> list[Metrics | Exception]:
        """Evaluate candidates together, batch by batch: they share common beginnings, and race.

        Returns:
            For each candidate its metrics, or what `evaluate` would raise for it.

        Raises:
            DataError: the images cannot be read, which fails the whole group.
        """
        dense = self.dense_answers
        runs = self._run_group([entry for entry in entries if not entry.schedule.dense], dense)
        metrics = iter([run.error or run.metrics(dense.metrics) for run in runs])
        return [dense.metrics if entry.schedule.dense else next(metrics) for entry in entries]

    def latency(self, schedule: PruningSchedule) -> Latency:
        """Time forward passes of the first batch; see `measure_latency`.

        Raises:
            ScheduleError: the schedule does not fit the model.
            OutOfMemoryError: a single image does not fit. A batch that does not fit is halved.
        """
        images = self._first_images()
        while True:
            try:
                return measure_latency(self.model, schedule, images.to(self.device))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            self._free_memory(self.cache)
            if len(images) == 1:
                raise self._too_large(schedule)
            images = images[: -(-len(images) // 2)]

    def _first_images(self) -> Tensor:
        for images, _ in self._batches:
            return images
        raise EvaluationError("there are no images to evaluate on")

    @torch.inference_mode()
    def _run_group(self, entries: Sequence[Entry], dense: DenseAnswers | None) -> list[CandidateRun]:
        runs = [self._begin(entry) for entry in entries]
        for run in runs:
            self.cache.expect(run.path)
        race = GroupRace(0 if dense is None else dense.metrics.images, self._error, entries)
        live, images_run = [run for run in runs if run.live], 0
        for index, (images, targets) in enumerate(self._batches):
            if not live:
                break
            answers = None if dense is None else dense.answers[images_run : images_run + len(targets)]
            self._run_batch(live, index, images, targets, answers)
            images_run += len(targets)
            for beaten, winner in race.lost([run.raced_outcomes for run in runs]).items():
                runs[beaten].stopped = True
                runs[beaten].lost_to = None if winner is None else runs[winner]
            live = [run for run in live if run.live]
        if live and not images_run:
            raise EvaluationError("there are no images to evaluate on")
        for i, run in enumerate(runs):
            if run.lost_to is not None and run.lost_to.error is not None:  # to one whose outcomes do not count
                runs[i] = self._run_group([run.entry], dense)[0]
        return runs

    def _begin(self, entry: Entry) -> CandidateRun:
        tally = self._task.tally(self.model.num_classes)
        try:
            self.model.set_schedule(entry.schedule)
        except Exception as error:
            return CandidateRun(entry, [], tally, error=error)
        return CandidateRun(entry, branches(entry.schedule, self.model.layout), tally)

    def _run_batch(
        self, live: Sequence[CandidateRun], index: int, images: Tensor, targets: Tensor, answers: Tensor | None
    ) -> None:
        """Run one batch of each candidate: (B, 3, H, W) images, the task's targets, the dense model's answers."""
        paths = [run.path for run in live if run.path]
        shared = SharedRun(self.model, self.cache, index, images, paths, self.device)
        for run in live:
            started = time.perf_counter()
            try:
                logits = self._logits(run, shared, images)
                run.forward_seconds += time.perf_counter() - started
                run.add(self._task, logits, targets, answers, agreement=self._agreement)
            except Exception as error:  # of this candidate alone
                run.error = error
            run.seconds += time.perf_counter() - started

    def _logits(self, run: CandidateRun, shared: SharedRun, images: Tensor) -> Tensor:
        """Return the logits on the CPU; a batch that does not fit is halved, and nothing is shared then."""
        schedule = run.entry.schedule
        size = len(images)
        try:
            return shared.logits(schedule, run.path).float().cpu()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        while True:  # outside the handler, whose traceback would keep the activations alive
            self._free_memory(shared)
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

    def _free_memory(self, kept: PrefixCache | SharedRun) -> None:
        kept.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_large(self, schedule: PruningSchedule) -> OutOfMemoryError:
        return OutOfMemoryError(f"schedule {schedule.text or 'dense'!r}: one image does not fit on {self.device}")
