"""Two workers on Ray Train: what one process would get, and errors in one line."""

import os
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from search.data.dataset import ImageData, open_data
from search.models import open_model
from search.training import ray_workers as crews
from search.training.distillation import Distillation
from search.training.finetune import FineTuneResult, finetune_model, finetune_recipe
from search.training.finetune_job import FineTuning
from search.training.ray_workers import Crew
from search.training.recipe import Pace
from spaces import PruningSchedule, errors
from ssm_models import PrunableModel
from tests.search.pictures import write_folder

RECIPE = finetune_recipe(2, lr=1e-3, batch_size=8, mixup=0.4, cutmix=0.4, ema=0.9)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return open_data(f"folder:{write_folder(tmp_path_factory.mktemp('images'), tuple('0123456789'), each=3)}")


@pytest.fixture(scope="module")
def two() -> Iterator[Crew]:
    with Crew(2) as crew:
        yield crew


class Said:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.listening: set[str] = set()

    def reference(self, name: str, top1: float, loss: float) -> None:
        self.said.append(("reference", name))

    def start(self, epochs: int, batches: int, done: int) -> None:
        self.said.append(("start", epochs, batches, done))

    def batch(self, epoch: int, loss: float) -> None:
        self.said.append(("batch", epoch))
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                self.listening |= {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}

    def epoch(self, row: Any) -> None:
        self.said.append(("epoch", row["epoch"]))


def run(data: ImageData, out: Path, crew: Crew | None = None, **more: Any) -> tuple[PrunableModel, FineTuneResult]:
    model, teacher = (open_model("vim_nano", None, data) for _ in range(2))
    schedule, teaching = PruningSchedule.parse("3:0.5"), Distillation(0.4, 2.0, 0.3)
    return model, finetune_model(
        model, teacher, data, schedule, RECIPE, out=out, distillation=teaching, crew=crew, command="c", **more
    )


@pytest.mark.slow
def test_two_begin_and_one_ends_with_what_one_would_get(two: Crew, data: ImageData, tmp_path: Path) -> None:
    whole, expected = run(data, tmp_path / "one")
    log = Said()
    _, half = run(data, tmp_path / "two", two, pace=Pace(until=1, accumulate=2), log=log)
    assert log.said == [
        ("reference", "dense"),
        ("reference", "before"),
        ("start", 2, 3, 0),
        *[("batch", 1)] * 3,
        ("epoch", 1),
    ]
    assert log.listening
    assert log.listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert half.checkpoint is None
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["last.pt"]
    resumed, found = run(data, tmp_path / "two")
    assert (found.before[0], found.dense[0]) == (expected.before[0], expected.dense[0])
    assert found.before[1] == pytest.approx(expected.before[1], rel=1e-5)
    for a, b in zip(expected.fit.curve, found.fit.curve, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


class Here:
    """Stands in for Ray Train: one worker, in this process."""

    def __init__(self, work: Any, train_loop_config: dict[str, Any], **rest: Any) -> None:
        self.fit = lambda: work(train_loop_config)


class Messages(queue.SimpleQueue[Any]):
    def __init__(self, actor_options: Any) -> None:
        super().__init__()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return super().get(timeout=timeout)
        except queue.Empty:
            raise crews.Empty from None

    def shutdown(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Crew:
    """A crew without Ray."""
    monkeypatch.setattr(crews, "TorchTrainer", Here)
    monkeypatch.setattr(crews, "Queue", Messages)
    monkeypatch.setattr(crews.ray, "cluster_resources", lambda: {"CPU": 64.0})
    monkeypatch.setattr(Crew, "_start", lambda self: None)
    return Crew(1)


class TestErrors:
    def test_of_a_worker_that_differs(self, here: Crew, data: ImageData, tmp_path: Path) -> None:
        model = open_model("vim_nano", None, data)
        job = FineTuning("3:0.5", RECIPE, Distillation(), str(tmp_path), None, Pace(), None)
        work = replace(here.work(job, model, model, data), checkpoint="random")
        with pytest.raises(
            errors.TrainingError, match=r"node .*: weights is .* there and .* at the driver"
        ) as caught:
            here.run(work, tmp_path, None)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_of_a_folder_that_is_not_shared(self, here: Crew, data: ImageData, tmp_path: Path) -> None:
        model = open_model("vim_nano", None, data)
        job = FineTuning("3:0.5", RECIPE, Distillation(), str(tmp_path / "elsewhere"), None, Pace(), None)
        with pytest.raises(errors.TrainingError, match="is not the driver's folder there; name one that all nodes"):
            here.run(here.work(job, model, model, data), tmp_path, None)

    def test_of_ray_itself(self, here: Crew, tmp_path: Path) -> None:
        def work(log: Any) -> None:
            raise RuntimeError("a node is gone\nand this is where")

        with pytest.raises(errors.TrainingError, match=r"^Ray Train: a node is gone$"):
            here.run(work, tmp_path, None)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
    def test_a_signal_ends_it(self, here: Crew, tmp_path: Path, number: int, code: type[BaseException]) -> None:
        done = threading.Event()

        def work(log: Any) -> None:
            os.kill(os.getpid(), number)
            done.wait()

        with pytest.raises(code):
            here.run(work, tmp_path, None)
        done.set()
        assert list(tmp_path.iterdir()) == []


def test_a_crew_that_makes_no_sense(data: ImageData) -> None:
    with pytest.raises(errors.UsageError, match="workers=0"):
        Crew(0)
    with pytest.raises(errors.UsageError, match="expected HOST:PORT"):
        Crew(2, "nowhere")


def test_a_teacher_of_other_weights_is_refused(data: ImageData, tmp_path: Path) -> None:
    model, teacher = open_model("vim_nano", None, data), open_model("vim_nano", "random", data)
    with pytest.raises(errors.UsageError, match="the teacher has other weights"):
        finetune_model(
            model, teacher, data, PruningSchedule.parse("3:0.5"), RECIPE, out=tmp_path / "out", crew=Crew(2)
        )
    assert not (tmp_path / "out").exists()
