"""One schedule in, metrics out, on a model that stays loaded."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ssm_models
from search.evaluator import Evaluator
from spaces import PruningSchedule
from spaces.errors import EvaluationError, NonFiniteError, OutOfMemoryError, ScheduleError

SCHEDULE = PruningSchedule.parse("2:0.4,5:0.5")


@pytest.fixture(scope="module")
def model() -> ssm_models.PrunableModel:
    return ssm_models.build("vim_nano", "random", num_classes=10)


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(n, 3, 28, 28), torch.randint(10, (n,))) for n in (8, 8, 5)]


class Stub(nn.Module):
    """Answers with the mean of the first pixel's row; fails as told."""

    def __init__(self, fits: int = 100, broken: float | None = None, error: type[Exception] = torch.OutOfMemoryError):
        super().__init__()
        self.fits, self.broken, self.error = fits, broken, error
        self.schedule = PruningSchedule()
        self.sizes: list[int] = []

    def set_schedule(self, schedule: PruningSchedule) -> None:
        self.schedule = schedule

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.fits:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        logits = images[:, 0, 0, :10].clone()
        if self.broken is not None and not self.schedule.dense:
            logits[-1, 3] = self.broken
        return logits


def test_the_metrics_are_those_of_the_model(
    model: ssm_models.PrunableModel, batches: list[tuple[Tensor, Tensor]]
) -> None:
    metrics = Evaluator(model, batches).evaluate(SCHEDULE)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.inference_mode():
        model.set_schedule(None)
        dense = model(images).argmax(1)
        model.set_schedule(SCHEDULE)
        logits = model(images)
    assert metrics.images == 21
    assert metrics.top1 == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert metrics.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert metrics.agreement == pytest.approx((logits.argmax(1) == dense).double().mean().item())
    assert 0 < metrics.forward_seconds <= metrics.seconds
    assert metrics.latency_ms > 0


def test_the_dense_model_runs_once(batches: list[tuple[Tensor, Tensor]]) -> None:
    stub = Stub()
    evaluator = Evaluator(stub, batches)  # type: ignore[arg-type]
    assert evaluator.evaluate(PruningSchedule()) is evaluator.dense
    assert evaluator.dense.agreement == 1.0
    evaluator.evaluate(SCHEDULE)
    assert stub.sizes == [1, *[8, 8, 5] * 2]  # one image to warm up
    known = Evaluator(stub, batches, dense=evaluator.dense_answers)  # type: ignore[arg-type]
    known.evaluate(SCHEDULE)
    assert stub.sizes == [1, *[8, 8, 5] * 2, 1, 8, 8, 5]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused_by_name(broken: float, batches: list[tuple[Tensor, Tensor]]) -> None:
    evaluator = Evaluator(Stub(broken=broken), batches)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match=r"'2:0.4,5:0.5': 1 of 8 images .* first is image 7") as caught:
        evaluator.evaluate(SCHEDULE)
    assert caught.value.failure == "NONFINITE"
    assert evaluator.evaluate(PruningSchedule()).images == 21  # the next one passes


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_batch_that_does_not_fit_is_halved(error: type[Exception], batches: list[tuple[Tensor, Tensor]]) -> None:
    stub, roomy = Stub(fits=3, error=error), Stub()
    metrics = Evaluator(stub, batches).evaluate(PruningSchedule())  # type: ignore[arg-type]
    assert stub.sizes[:6] == [1, 8, 4, 2, 2, 2]
    whole = Evaluator(roomy, batches).evaluate(PruningSchedule())  # type: ignore[arg-type]
    assert (metrics.top1, metrics.loss) == pytest.approx((whole.top1, whole.loss))


def test_an_image_that_does_not_fit_is_out_of_memory(batches: list[tuple[Tensor, Tensor]]) -> None:
    stub = Stub(fits=0)
    evaluator = Evaluator(stub, batches)  # type: ignore[arg-type]
    with pytest.raises(OutOfMemoryError, match="one image does not fit on cpu") as caught:
        evaluator.evaluate(PruningSchedule())
    assert caught.value.failure == "OOM"
    stub.fits = 100
    assert evaluator.evaluate(SCHEDULE).images == 21  # the next candidate starts from the whole batch again
    assert stub.sizes[-1] == 5


def test_other_errors_pass_through(model: ssm_models.PrunableModel, batches: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(ScheduleError, match="after block 99"):
        Evaluator(model, batches).evaluate(PruningSchedule.parse("99:0.5"))

    class DriverError(RuntimeError):
        def __str__(self) -> str:
            return "driver"

    with pytest.raises(DriverError):
        Evaluator(Stub(fits=0, error=DriverError), batches).evaluate(SCHEDULE)  # type: ignore[arg-type]


def test_no_images_are_an_error() -> None:
    class Nothing:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(())

    with pytest.raises(EvaluationError, match="no images"):
        Evaluator(Stub(), Nothing()).evaluate(SCHEDULE)  # type: ignore[arg-type]
