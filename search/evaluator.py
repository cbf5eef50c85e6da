"""One candidate → metrics, on one worker: a model and the images, loaded once and kept."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from spaces import PruningSchedule
from spaces.errors import EvaluationError, NonFiniteError, OutOfMemoryError
from ssm_models import PrunableModel


@dataclass(frozen=True)
class Metrics:
    """What an evaluation measured.

    Attributes:
        top1: accuracy in 0..1.
        loss: mean cross-entropy.
        agreement: share of images on which the answer is the dense model's.
        images: how many were run.
        latency_ms: median over the batches of a forward pass's milliseconds per image, on the
            evaluator's device, at its batch size and number of threads, with whatever else runs there.
        seconds: what the whole evaluation took.
        forward_seconds: what its forward passes took.
    """

    top1: float
    loss: float
    agreement: float
    images: int
    latency_ms: float
    seconds: float
    forward_seconds: float


@dataclass(frozen=True)
class DenseAnswers:
    """How the dense model does on the same images, and what it answers: (images,) int64 on the CPU."""

    metrics: Metrics
    answers: Tensor


class Evaluator:
    """Evaluates schedules on one model and one list of images; not for several threads at a time.

    Args:
        model: taken over: moved to `device`, set to eval mode, and its schedule set at will.
        batches: re-iterable of (images (B, 3, H, W) float32, labels (B,)), in the same order each time.
        device: where to run.
        dense: answers of the dense model on these batches if they are known already; otherwise they
            are computed when they are first needed.
    """

    def __init__(
        self,
        model: PrunableModel,
        batches: Iterable[tuple[Tensor, Tensor]],
        device: str | torch.device = "cpu",
        dense: DenseAnswers | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self._batches = batches
        self._dense = dense
        self._warm = False

    @property
    def dense(self) -> Metrics:
        """Metrics of the dense model."""
        return self.dense_answers.metrics

    @property
    def dense_answers(self) -> DenseAnswers:
        """Metrics and answers of the dense model, computed once; raises as `evaluate` does."""
        if self._dense is None:
            metrics, answers = self._run(PruningSchedule(), None)
            self._dense = DenseAnswers(metrics, answers)
        return self._dense

    def evaluate(self, schedule: PruningSchedule) -> Metrics:
        """Run all images under `schedule`.

        Raises:
            ScheduleError: the schedule does not fit the model.
            NonFiniteError: a logit is NaN or infinite.
            OutOfMemoryError: a single image does not fit. A batch that does not is halved.
        """
        dense = self.dense_answers
        return dense.metrics if schedule.dense else self._run(schedule, dense.answers)[0]

    @torch.inference_mode()
    def _run(self, schedule: PruningSchedule, dense: Tensor | None) -> tuple[Metrics, Tensor]:
        started = time.perf_counter()
        self.model.set_schedule(schedule)
        loss, right, images, forward = 0.0, 0, 0, 0.0
        answers: list[Tensor] = []
        per_image: list[float] = []
        most: int | None = None  # images that fit at a time, once a batch did not; each evaluation tries anew
        for batch, labels in self._batches:
            if not self._warm:  # kernels are compiled and memory is found at the first pass, which is not timed
                self._forward(batch[:1], most)
                self._warm = True
            logits, seconds, most = self._forward(batch, most)
            finite = torch.isfinite(logits).all(1)
            if not finite.all():
                first = images + int((~finite).nonzero()[0])
                raise NonFiniteError(
                    f"schedule {schedule.text or 'dense'!r}: {int((~finite).sum())} of {len(labels)} images in a "
                    f"batch have logits that are NaN or infinite; the first is image {first} of the val split"
                )
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            answers.append(logits.argmax(1))
            right += int((answers[-1] == labels).sum())
            images += len(labels)
            forward += seconds
            per_image.append(1e3 * seconds / len(labels))
        if not images:
            raise EvaluationError("there are no images to evaluate on")
        answered = torch.cat(answers).clone()
        metrics = Metrics(
            top1=right / images,
            loss=loss / images,
            agreement=1.0 if dense is None else float((answered == dense).double().mean()),
            images=images,
            latency_ms=median(per_image),
            seconds=time.perf_counter() - started,
            forward_seconds=forward,
        )
        return metrics, answered

    def _forward(self, batch: Tensor, most: int | None) -> tuple[Tensor, float, int | None]:
        """Return the logits on the CPU, the seconds they took, and the images that fit at a time."""
        while True:
            try:
                started = time.perf_counter()
                # .cpu() waits for the device, so the clock covers the computation
                parts = [
                    self.model(part.to(self.device)).float().cpu() for part in torch.split(batch, most or len(batch))
                ]
                return torch.cat(parts), time.perf_counter() - started, most
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            # Outside the handler, whose traceback would keep the activations alive.
            size = min(most or len(batch), len(batch))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if size == 1:
                raise OutOfMemoryError(
                    f"schedule {self.model.schedule.text or 'dense'!r}: one image does not fit on {self.device}"
                )
            most = size // 2


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that memory ran out; for the CPU it has no class of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
