"""One candidate's metrics, on one worker that keeps its model and images."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from search.data import Batches
from spaces import PruningSchedule
from spaces.errors import NonFiniteError, OutOfMemoryError
from ssm_models import PrunableModel


@dataclass(frozen=True)
class Metrics:
    """What an evaluation measured.

    Attributes:
        top1: share of images, 0..1, whose highest logit is the label's.
        loss: mean cross-entropy.
        agreement: share of images whose answer is the dense model's.
        images: how many were run.
        latency_ms: median over batches of the forward pass's time per image, in milliseconds.
        seconds: the whole evaluation's time.
        forward_seconds: the part of it that was spent in forward passes.
    """

    top1: float
    loss: float
    agreement: float
    images: int
    latency_ms: float
    seconds: float
    forward_seconds: float


class Evaluator:
    """Holds a model and its images, and evaluates one schedule after another on them.

    Used by one thread of one process, a worker's or the driver's. `answers` are the dense model's
    classes (N,), in the order of the images; without them the dense model is run first.

    Attributes:
        dense: the dense model's metrics; None when its answers were given.
        answers: the dense model's classes.
    """

    def __init__(
        self, model: PrunableModel, batches: Batches, device: torch.device, answers: Tensor | None = None
    ) -> None:
        self._model, self._batches, self._device = model.to(device).eval(), batches, device
        self._batch_size = batches.batch_size
        self.dense: Metrics | None = None
        if answers is None:
            self.answers = torch.empty(0, dtype=torch.int64)
            logits, times, began = self._forward(PruningSchedule())
            self.answers = logits.argmax(1)
            self.dense = self._metrics(logits, times, began)
        else:
            self.answers = answers

    def evaluate(self, schedule: PruningSchedule) -> Metrics:
        """Run all images under a schedule.

        Raises:
            ScheduleError: the schedule does not fit the model.
            NonFiniteError: a logit is NaN or infinite.
            OutOfMemoryError: memory does not suffice for a single image.
        """
        return self._metrics(*self._forward(schedule))

    def _metrics(self, logits: Tensor, times: list[tuple[float, int]], began: float) -> Metrics:
        labels, found = self._batches.labels, logits.argmax(1)
        per_image = sorted(seconds / count for seconds, count in times)
        return Metrics(
            top1=(found == labels).double().mean().item(),
            loss=F.cross_entropy(logits.double(), labels).item(),
            agreement=(found == self.answers).double().mean().item(),
            images=len(labels),
            latency_ms=1000 * per_image[len(per_image) // 2],
            seconds=time.perf_counter() - began,
            forward_seconds=sum(seconds for seconds, _ in times),
        )

    @torch.inference_mode()
    def _forward(self, schedule: PruningSchedule) -> tuple[Tensor, list[tuple[float, int]], float]:
        """Return all logits on the CPU, (seconds, images) of each pass, and when it began."""
        began = time.perf_counter()
        self._model.set_schedule(schedule)
        rows: list[Tensor] = []
        times: list[tuple[float, int]] = []
        for images, _ in self._batches:
            done = 0
            while done < len(images):
                start = time.perf_counter()
                part = self._fitting(images[done:])
                times.append((time.perf_counter() - start, len(part)))
                rows.append(part)
                done += len(part)
        logits = torch.cat(rows)
        bad = int((~logits.isfinite()).any(1).sum())
        if bad:
            raise NonFiniteError(f"schedule {schedule}: logits of {bad} of {len(logits)} images are not finite")
        return logits, times, began

    def _fitting(self, images: Tensor) -> Tensor:
        """Return the logits of as many of the images as fit into memory; the size that fits is kept."""
        while True:
            try:
                logits: Tensor = self._model(images[: self._batch_size].to(self._device))
                return logits.float().cpu()  # which waits for the device
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if self._batch_size == 1:
                    raise OutOfMemoryError("memory does not suffice for a single image") from None
                self._batch_size = max(1, min(self._batch_size, len(images)) // 2)
