"""Two workers on Ray Train: what one process would get, and errors in one line."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from search.crew import Crew
from search.data import ImageData, open_data
from search.distillation import Distillation
from search.finetuning import FineTuneResult, finetune_model, finetune_recipe
from search.recipe import Pace
from search.subject import open_model
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


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_one_line(two: Crew, data: ImageData, tmp_path: Path) -> None:
    crew = Crew(2, checkpoint="random")  # other weights than the driver's
    crew._open, crew._started = two._open, two._started
    with pytest.raises(errors.TrainingError, match=r"weights is .* there and .* at the driver") as caught:
        run(data, tmp_path, crew)
    assert "\n" not in str(caught.value)
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
