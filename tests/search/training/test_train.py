"""Training from scratch: it learns, resumes exactly after a kill, and refuses what cannot work."""

import json
import math
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ssm_models
from search.data.dataset import ImageData, open_data
from search.training.checkpoint import CHECKPOINT
from search.training.observer import SilentObserver
from search.training.recipe import Recipe
from search.training.train import command_line, train_model
from search.training.training_run import TrainingRun
from spaces import errors
from ssm_models.checkpoints import read_checkpoint
from tests.patience import PATIENCE
from tests.search.pictures import write_brightness


class Tiny(nn.Module):
    """What a trainer needs of a model. Its dropout makes the random numbers of each step matter."""

    model_name = "tiny"
    img_size = (8, 8)
    num_classes = 2
    task = "classification"
    pretrained_cfg: dict[str, Any] = {  # noqa: RUF012
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) * self.scale


class StopAt(SilentObserver):
    """Calls `action` after each batch of an epoch, for example to end the training there."""

    def __init__(self, epoch: int, action: Callable[[], object]) -> None:
        self.epoch, self.action = epoch, action

    def on_start(self, epochs: int, batches: int, done: int) -> None:
        self.done = done

    def on_batch(self, epoch: int, loss: float) -> None:
        if epoch == self.epoch:
            self.action()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    root = tmp_path_factory.mktemp("brightness")
    return open_data(f"folder:{write_brightness(root)}")


def fresh() -> Tiny:
    torch.manual_seed(5)
    return Tiny()


RECIPE = Recipe(epochs=4, lr=0.01, batch_size=8, ema=0.9, mixup=0.4)


class TestTrainModel:
    def test_it_learns_and_writes_a_record(self, data: ImageData, tmp_path: Path) -> None:
        model = fresh()
        result = train_model(
            model, data, Recipe(epochs=12, lr=0.01, batch_size=8, ema=0.9), TrainingRun(tmp_path), command="c"
        )
        assert result.fit.top1 == 1.0
        assert result.fit.curve[-1]["train_loss"] < result.fit.curve[0]["train_loss"]
        weights, metadata = read_checkpoint(result.checkpoint)
        assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
        assert (metadata["model"], json.loads(metadata["classes"])) == ("tiny", ["dark", "light"])
        record = json.loads((tmp_path / "train.json").read_text())
        assert metadata["data"] == record["data"] == f"folder:{Path(data.spec).name}", "no folders of this machine"
        assert record["command"] == "c"
        assert record["weights_digest"] == result.weights_digest == ssm_models.weights_digest(model)
        assert record["data_digest"] == {"train": data.digest("train"), "val": data.digest("val")}
        assert (record["recipe"]["seed"], record["top1"], record["images"]) == (0, 1.0, 16)
        assert [line["epoch"] for line in record["curve"]] == list(range(1, 13))
        assert record["versions"]["torch"] == torch.__version__.partition("+")[0]

    def test_the_seed_determines_the_weights(self, data: ImageData, tmp_path: Path) -> None:
        def digest(name: str, seed: int) -> str:
            torch.rand(seed + 1)  # must not matter
            recipe = Recipe(epochs=1, batch_size=8, seed=seed)
            return train_model(fresh(), data, recipe, TrainingRun(tmp_path / name)).weights_digest

        assert digest("one", 3) == digest("two", 3) != digest("three", 4)

    def test_an_interrupted_training_resumes_exactly(self, data: ImageData, tmp_path: Path) -> None:
        whole = train_model(fresh(), data, RECIPE, TrainingRun(tmp_path / "whole"))

        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_model(fresh(), data, RECIPE, TrainingRun(tmp_path / "cut", observer=StopAt(3, interrupt)))
        assert not (tmp_path / "cut" / "train.json").exists()
        observer = StopAt(-1, interrupt)
        resumed = train_model(fresh(), data, RECIPE, TrainingRun(tmp_path / "cut", observer=observer))
        assert observer.done == 2
        assert resumed.weights_digest == whole.weights_digest
        losses = [[line["train_loss"] for line in result.fit.curve] for result in (whole, resumed)]
        assert losses[0] == losses[1]

    @pytest.mark.slow
    def test_a_killed_training_resumes_exactly(self, data: ImageData, tmp_path: Path) -> None:
        script = (
            "import os, signal, sys; import tests.search.training.test_train as t;"
            "stop = t.StopAt(3, lambda: os.kill(os.getpid(), signal.SIGKILL));"
            "run = t.TrainingRun(t.Path(sys.argv[2]), observer=stop);"
            "t.train_model(t.fresh(), t.open_data(sys.argv[1]), t.RECIPE, run)"
        )
        command = [sys.executable, "-c", script, data.spec, str(tmp_path / "cut")]
        killed = subprocess.run(command, cwd=Path(__file__).parents[3], timeout=PATIENCE)
        assert killed.returncode == -signal.SIGKILL
        resumed = train_model(fresh(), data, RECIPE, TrainingRun(tmp_path / "cut"))
        assert len(resumed.fit.curve) == 4
        assert (
            resumed.weights_digest
            == train_model(fresh(), data, RECIPE, TrainingRun(tmp_path / "whole")).weights_digest
        )

    def test_a_finished_training_is_not_repeated(self, data: ImageData, tmp_path: Path) -> None:
        first = train_model(fresh(), data, RECIPE, TrainingRun(tmp_path))

        def never() -> None:
            raise AssertionError("a batch was trained")

        assert train_model(fresh(), data, RECIPE, TrainingRun(tmp_path, observer=StopAt(4, never))) == first

    def test_a_folder_of_other_settings_is_refused(self, data: ImageData, tmp_path: Path) -> None:
        train_model(fresh(), data, Recipe(epochs=1, batch_size=8), TrainingRun(tmp_path))
        before = (tmp_path / "train.json").read_bytes()
        with pytest.raises(
            errors.UsageError, match=r"epochs 1 there, 2 now; lr 0.002 there, 0.1 now; choose another"
        ):
            train_model(fresh(), data, Recipe(epochs=2, batch_size=8, lr=0.1), TrainingRun(tmp_path))
        assert (tmp_path / "train.json").read_bytes() == before

    def test_a_loss_that_is_not_finite_is_an_error(self, data: ImageData, tmp_path: Path) -> None:
        with pytest.raises(errors.TrainingError, match=r"epoch 1, batch 1: the loss .* not finite") as caught:
            train_model(Tiny(scale=math.inf), data, RECIPE, TrainingRun(tmp_path))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "model.safetensors").exists()

    def test_a_model_of_other_classes_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(errors.DataError, match="10 classes but tiny answers with 2"):
            train_model(fresh(), open_data("embedded"), RECIPE, TrainingRun(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_broken_image_is_found_before_anything_is_written(self, tmp_path: Path, split: str) -> None:
        root = write_brightness(tmp_path / "images")
        (root / split / "light" / "7.png").write_bytes(b"broken")
        with pytest.raises(errors.DataError, match=rf"{split}/light/7\.png"):
            train_model(fresh(), open_data(f"folder:{root}"), RECIPE, TrainingRun(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_cannot_be_made_is_an_error(self, data: ImageData, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(errors.TrainingError, match="the folder cannot be made"):
            train_model(fresh(), data, RECIPE, TrainingRun(tmp_path / "file" / "out"))

    def test_mixing_an_odd_batch_is_refused(self, data: ImageData, tmp_path: Path) -> None:
        with pytest.raises(errors.UsageError, match="must be even"):
            train_model(fresh(), data, Recipe(epochs=1, batch_size=7, cutmix=1.0), TrainingRun(tmp_path))


class Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


class TestCheckpoint:
    @pytest.mark.parametrize("kind", ["empty", "text", "code", "truncated", "other"])
    def test_a_broken_checkpoint_is_refused_and_kept(self, data: ImageData, tmp_path: Path, kind: str) -> None:
        path = tmp_path / CHECKPOINT
        if kind == "truncated":
            train_model(fresh(), data, Recipe(epochs=1, batch_size=8), TrainingRun(tmp_path))
        content = {
            "empty": b"",
            "text": b"not a checkpoint",
            "code": pickle.dumps(Touch(str(tmp_path / "executed"))),
            "truncated": path.read_bytes()[:2000] if path.exists() else b"",
        }
        if kind == "other":
            torch.save([1, 2], path)
        else:
            path.write_bytes(content[kind])
        before = path.read_bytes()
        with pytest.raises(errors.CheckpointError, match="remove it to start again"):
            train_model(fresh(), data, Recipe(epochs=1, batch_size=8), TrainingRun(tmp_path))
        assert path.read_bytes() == before
        assert not (tmp_path / "executed").exists()

    def test_without_resume_it_is_overwritten(self, data: ImageData, tmp_path: Path) -> None:
        (tmp_path / CHECKPOINT).write_bytes(b"")
        result = train_model(fresh(), data, Recipe(epochs=1, batch_size=8), TrainingRun(tmp_path, resume=False))
        assert len(result.fit.curve) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["train", "--data", "folder:/home/ada/a b", "--out", "/x/y"],
            "prunefront train --data 'folder:a b' --out y",
        ),
        (
            ["finetune", "/x/s.json", "--db", "postgresql://ada:secret@h/d", "--study", "s"],
            "finetune s.json --study s",
        ),
        (["finetune", "s.json", "--db=sqlite:////x/s.db", "--ray-address=10.0.0.1:6379"], "finetune s.json"),
    ],
)
def test_a_command_line_in_a_file_has_no_folders_and_no_addresses(arguments: list[str], expected: str) -> None:
    assert command_line(arguments) == f"prunefront {expected.removeprefix('prunefront ')}"
