"""Workers on Ray Train: they train like one process, and their errors are one line."""

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from search.data.dataset import ImageData, open_data
from search.models import open_model
from search.training.distillation import Distillation
from search.training.finetune import FineTuneResult, finetune_model, finetune_recipe
from search.training.finetune_job import FineTuneJob
from search.training.observer import SilentObserver, TrainingObserver
from search.training.ray_launcher import Message, Messages
from search.training.ray_workers import RayWorkers
from search.training.training_run import Pace, TrainingRun
from spaces import PruningSchedule, errors
from ssm_models import PrunableModel
from tests.search.pictures import write_folder

RECIPE = finetune_recipe(2, lr=1e-3, batch_size=8, mixup=0.4, cutmix=0.4, ema=0.9)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return open_data(f"folder:{write_folder(tmp_path_factory.mktemp('images'), tuple('0123456789'), each=3)}")


@pytest.fixture(scope="module")
def two() -> Iterator[RayWorkers]:
    with RayWorkers(2) as workers:
        yield workers


class Recorder:
    """An observer that keeps what it is told, and the addresses that the workers meanwhile listen on."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.listening: set[str] = set()

    def on_reference(self, name: str, top1: float, loss: float) -> None:
        self.told.append(("reference", name))

    def on_start(self, epochs: int, batches: int, done: int) -> None:
        self.told.append(("start", epochs, batches, done))

    def on_batch(self, epoch: int, loss: float) -> None:
        self.told.append(("batch", epoch))
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                self.listening |= {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}

    def on_epoch(self, row: Any) -> None:
        self.told.append(("epoch", row["epoch"]))


JOB = FineTuneJob(PruningSchedule.parse("3:0.5"), RECIPE, Distillation(0.4, 2.0, 0.3))


def finetune(
    data: ImageData, run: TrainingRun, workers: RayWorkers | None = None
) -> tuple[PrunableModel, FineTuneResult]:
    model, teacher = (open_model("vim_nano", None, data) for _ in range(2))
    return model, finetune_model(model, teacher, data, JOB, run, workers=workers, command="c")


@pytest.mark.slow
def test_two_workers_train_like_one_process(two: RayWorkers, data: ImageData, tmp_path: Path) -> None:
    """Two workers run the first epoch, and one process the second."""
    whole, expected = finetune(data, TrainingRun(tmp_path / "one"))
    recorder = Recorder()
    _, half = finetune(data, TrainingRun(tmp_path / "two", pace=Pace(until=1, accumulate=2), observer=recorder), two)
    assert recorder.told == [
        ("reference", "dense"),
        ("reference", "before"),
        ("start", 2, 3, 0),
        *[("batch", 1)] * 3,
        ("epoch", 1),
    ]
    assert recorder.listening
    assert recorder.listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert half.checkpoint is None
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["last.pt"]
    resumed, found = finetune(data, TrainingRun(tmp_path / "two"))
    assert (found.before[0], found.dense[0]) == (expected.before[0], expected.dense[0])
    assert found.before[1] == pytest.approx(expected.before[1], rel=1e-5)
    for a, b in zip(expected.fit.curve, found.fit.curve, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


class LocalMessages:
    """A queue within this process."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def send(self, message: Message, *, wait: bool = False) -> None:
        self._queue.put(message)

    def receive(self, timeout: float) -> Message | None:
        with suppress(queue.Empty):
            return self._queue.get(timeout=timeout)
        return None

    def empty(self) -> bool:
        return self._queue.empty()

    def close(self) -> None:
        pass


class LocalLauncher:
    """Runs a single worker in this process, without Ray."""

    threads = 1

    def start(self) -> None:
        pass

    def messages(self) -> Messages:
        return LocalMessages()

    def run(self, function: Callable[[Any], None], argument: Any, storage: Path) -> None:
        function(argument)

    def close(self) -> None:
        pass


@pytest.fixture
def local() -> RayWorkers:
    return RayWorkers(1, launcher=LocalLauncher())


def silently(function: Callable[[], object]) -> Callable[[TrainingObserver], None]:
    """A worker's task that reports nothing."""

    def task(observer: TrainingObserver) -> None:
        function()

    return task


class TestErrors:
    def test_of_a_worker_whose_weights_differ(self, local: RayWorkers, data: ImageData, tmp_path: Path) -> None:
        model = open_model("vim_nano", None, data)
        task = replace(local.task(JOB, model, model, data, TrainingRun(tmp_path)), checkpoint="random")
        with pytest.raises(
            errors.TrainingError, match=r"node .*: weights is .* there and .* at the driver"
        ) as caught:
            local.run(task, tmp_path, SilentObserver())
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_of_a_folder_that_is_not_shared(self, local: RayWorkers, data: ImageData, tmp_path: Path) -> None:
        model = open_model("vim_nano", None, data)
        task = local.task(JOB, model, model, data, TrainingRun(tmp_path / "elsewhere"))
        with pytest.raises(errors.TrainingError, match="is not the driver's folder there; name one that all nodes"):
            local.run(task, tmp_path, SilentObserver())

    def test_of_ray_itself(self, local: RayWorkers, tmp_path: Path) -> None:
        def fail() -> None:
            raise RuntimeError("a node is gone\nand this is where")

        with pytest.raises(errors.TrainingError, match=r"^Ray Train: a node is gone$"):
            local.run(silently(fail), tmp_path, SilentObserver())

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
    def test_a_signal_ends_it(
        self, local: RayWorkers, tmp_path: Path, number: int, code: type[BaseException]
    ) -> None:
        done = threading.Event()

        def interrupt() -> None:
            os.kill(os.getpid(), number)
            done.wait()

        with pytest.raises(code):
            local.run(silently(interrupt), tmp_path, SilentObserver())
        done.set()
        assert list(tmp_path.iterdir()) == []


def test_bad_settings_are_refused() -> None:
    with pytest.raises(errors.UsageError, match="workers=0"):
        RayWorkers(0)
    with pytest.raises(errors.UsageError, match="expected HOST:PORT"):
        RayWorkers(2, "nowhere")


def test_a_teacher_of_other_weights_is_refused(data: ImageData, tmp_path: Path) -> None:
    model, teacher = open_model("vim_nano", None, data), open_model("vim_nano", "random", data)
    with pytest.raises(errors.UsageError, match="the teacher has other weights"):
        finetune_model(model, teacher, data, JOB, TrainingRun(tmp_path / "out"), workers=RayWorkers(2))
    assert not (tmp_path / "out").exists()
