"""Training: that it learns, that it goes on exactly after a kill, and what stops it."""

import json
import math
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ssm_models
from search.data.dataset import ImageData, open_data
from search.training.checkpoint import CHECKPOINT, parameter_groups
from search.training.recipe import Recipe, epoch_seed, learning_rate
from search.training.train import command_line, train_model
from spaces import errors
from ssm_models.checkpoints import read_checkpoint
from tests.patience import PATIENCE
from tests.search.pictures import write_brightness


class Tiny(nn.Module):
    """What the loop needs of a model, and dropout, so that the random numbers of a step matter."""

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


class Stop:
    """A log that ends the training in the middle of an epoch."""

    def __init__(self, epoch: int, how: Any) -> None:
        self.at, self.how = epoch, how

    def reference(self, name: str, top1: float, loss: float) -> None:
        pass

    def start(self, epochs: int, batches: int, done: int) -> None:
        self.done = done

    def batch(self, epoch: int, loss: float) -> None:
        if epoch == self.at:
            self.how()

    def epoch(self, row: Any) -> None:
        pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    root = tmp_path_factory.mktemp("brightness")
    return open_data(f"folder:{write_brightness(root)}")


def fresh() -> Tiny:
    torch.manual_seed(5)
    return Tiny()


RECIPE = Recipe(epochs=4, lr=0.01, batch_size=8, ema=0.9, mixup=0.4)


class TestTrainModel:
    def test_it_learns_and_writes_what_it_did(self, data: ImageData, tmp_path: Path) -> None:
        model = fresh()
        result = train_model(
            model, data, Recipe(epochs=12, lr=0.01, batch_size=8, ema=0.9), out=tmp_path, command="c"
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

    def test_the_seed_decides(self, data: ImageData, tmp_path: Path) -> None:
        def digest(name: str, seed: int) -> str:
            torch.rand(seed + 1)  # what was drawn before does not matter
            recipe = Recipe(epochs=1, batch_size=8, seed=seed)
            return train_model(fresh(), data, recipe, out=tmp_path / name).weights_digest

        assert digest("one", 3) == digest("two", 3) != digest("three", 4)

    def test_interrupted_in_an_epoch_it_goes_on_exactly(self, data: ImageData, tmp_path: Path) -> None:
        whole = train_model(fresh(), data, RECIPE, out=tmp_path / "whole")

        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_model(fresh(), data, RECIPE, out=tmp_path / "cut", log=Stop(3, interrupt))
        assert not (tmp_path / "cut" / "train.json").exists()
        log = Stop(-1, interrupt)
        resumed = train_model(fresh(), data, RECIPE, out=tmp_path / "cut", log=log)
        assert log.done == 2
        assert resumed.weights_digest == whole.weights_digest
        losses = [[line["train_loss"] for line in result.fit.curve] for result in (whole, resumed)]
        assert losses[0] == losses[1]

    @pytest.mark.slow
    def test_killed_it_goes_on_exactly(self, data: ImageData, tmp_path: Path) -> None:
        script = (
            "import os, signal, sys; import tests.search.training.test_train as t;"
            "t.train_model(t.fresh(), t.open_data(sys.argv[1]), t.RECIPE, out=sys.argv[2],"
            " log=t.Stop(3, lambda: os.kill(os.getpid(), signal.SIGKILL)))"
        )
        command = [sys.executable, "-c", script, data.spec, str(tmp_path / "cut")]
        killed = subprocess.run(command, cwd=Path(__file__).parents[3], timeout=PATIENCE)
        assert killed.returncode == -signal.SIGKILL
        resumed = train_model(fresh(), data, RECIPE, out=tmp_path / "cut")
        assert len(resumed.fit.curve) == 4
        assert resumed.weights_digest == train_model(fresh(), data, RECIPE, out=tmp_path / "whole").weights_digest

    def test_a_finished_one_is_not_trained_again(self, data: ImageData, tmp_path: Path) -> None:
        first = train_model(fresh(), data, RECIPE, out=tmp_path)

        def never() -> None:
            raise AssertionError("a batch was trained")

        log = Stop(4, never)
        assert train_model(fresh(), data, RECIPE, out=tmp_path, log=log) == first

    def test_other_settings_are_refused(self, data: ImageData, tmp_path: Path) -> None:
        train_model(fresh(), data, Recipe(epochs=1, batch_size=8), out=tmp_path)
        before = (tmp_path / "train.json").read_bytes()
        with pytest.raises(
            errors.UsageError, match=r"epochs 1 there, 2 now; lr 0.002 there, 0.1 now; choose another"
        ):
            train_model(fresh(), data, Recipe(epochs=2, batch_size=8, lr=0.1), out=tmp_path)
        assert (tmp_path / "train.json").read_bytes() == before

    def test_a_loss_that_is_not_finite_ends_it(self, data: ImageData, tmp_path: Path) -> None:
        with pytest.raises(errors.TrainingError, match=r"epoch 1, batch 1: the loss .* not finite") as caught:
            train_model(Tiny(scale=math.inf), data, RECIPE, out=tmp_path)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "model.safetensors").exists()

    def test_a_model_of_other_classes_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(errors.DataError, match="10 classes but tiny answers with 2"):
            train_model(fresh(), open_data("embedded"), RECIPE, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_broken_image_is_found_before_anything_is_written(self, tmp_path: Path, split: str) -> None:
        root = write_brightness(tmp_path / "images")
        (root / split / "light" / "7.png").write_bytes(b"broken")
        with pytest.raises(errors.DataError, match=rf"{split}/light/7\.png"):
            train_model(fresh(), open_data(f"folder:{root}"), RECIPE, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_cannot_be_made(self, data: ImageData, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(errors.TrainingError, match="no folder can be made"):
            train_model(fresh(), data, RECIPE, out=tmp_path / "file" / "out")

    def test_an_odd_batch_cannot_be_mixed(self, data: ImageData, tmp_path: Path) -> None:
        with pytest.raises(errors.UsageError, match="must be even"):
            train_model(fresh(), data, Recipe(epochs=1, batch_size=7, cutmix=1.0), out=tmp_path)


class Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


class TestCheckpoint:
    @pytest.mark.parametrize("kind", ["empty", "text", "code", "truncated", "other"])
    def test_a_broken_one_is_refused_and_kept(self, data: ImageData, tmp_path: Path, kind: str) -> None:
        path = tmp_path / CHECKPOINT
        if kind == "truncated":
            train_model(fresh(), data, Recipe(epochs=1, batch_size=8), out=tmp_path)
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
        with pytest.raises(errors.CheckpointError, match="remove it to begin anew"):
            train_model(fresh(), data, Recipe(epochs=1, batch_size=8), out=tmp_path)
        assert path.read_bytes() == before
        assert not (tmp_path / "executed").exists()

    def test_without_resume_it_is_written_over(self, data: ImageData, tmp_path: Path) -> None:
        (tmp_path / CHECKPOINT).write_bytes(b"")
        result = train_model(fresh(), data, Recipe(epochs=1, batch_size=8), out=tmp_path, resume=False)
        assert len(result.fit.curve) == 1


class TestRecipe:
    @pytest.mark.parametrize(
        "change",
        [
            {"epochs": 0},
            {"lr": -1.0},
            {"lr": math.nan},
            {"batch_size": 0},
            {"ema": 1.0},
            {"warmup": 2.0},
            {"seed": -1},
        ],
    )
    def test_values_that_make_no_sense(self, change: dict[str, Any]) -> None:
        with pytest.raises(errors.UsageError, match=next(iter(change))):
            Recipe(**{"epochs": 1, **change})

    def test_the_rate_rises_then_falls_as_a_cosine(self) -> None:
        recipe = Recipe(epochs=1, lr=1.0, warmup=0.1)
        rates = [learning_rate(step, 1000, recipe) for step in range(1000)]
        assert rates[:100] == sorted(rates[:100])
        assert rates[100:] == sorted(rates[100:], reverse=True)
        assert (max(rates), rates[100]) == (1.0, 1.0)
        assert rates[550] == pytest.approx(0.505)
        assert rates[-1] == pytest.approx(0.01, abs=1e-4)

    @pytest.mark.parametrize("warmup", [0.0, 1.0])
    def test_the_rate_without_a_rise_or_a_fall(self, warmup: float) -> None:
        rates = [learning_rate(step, 3, Recipe(epochs=1, lr=1.0, warmup=warmup)) for step in range(3)]
        assert all(0 < rate <= 1 for rate in rates)

    def test_seeds_of_epochs_differ(self) -> None:
        assert len({epoch_seed(seed, epoch) for seed in range(50) for epoch in range(50)}) == 2500

    def test_weight_decay_spares_dynamics_norms_and_places(self) -> None:
        model = ssm_models.create_model("vim_nano")
        spared, decayed = parameter_groups(model, 0.05)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        kinds = {names[id(p)].removeprefix("layers.").partition(".")[2] for p in decayed["params"]}
        assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
        assert {"mixer.in_proj.weight", "mixer.conv1d.weight", "mixer.dt_proj_b.weight"} <= kinds
        left = {names[id(p)] for p in spared["params"]}
        assert {
            "layers.0.mixer.A_log",
            "layers.0.mixer.A_b_log",
            "layers.0.mixer.D",
            "pos_embed",
            "cls_token",
        } <= left
        assert all("weight" not in name or "norm" in name for name in left)

    @pytest.mark.parametrize("name", ["vmamba_nano", "group_mamba_nano", "vim2_nano", "cvmh_unet_nano"])
    def test_weight_decay_spares_biases_of_any_shape(self, name: str) -> None:
        model = ssm_models.create_model(name)
        decayed = {id(p) for p in parameter_groups(model, 0.05)[1]["params"]}
        assert [name for name, p in model.named_parameters() if "bias" in name and id(p) in decayed] == []


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
