"""Training a dense model from scratch, and the files that every training writes."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from results.files import write_json
from results.portable import portable
from search.data.dataset import ImageData
from search.runtime.versions import versions
from search.training.checkpoint import WEIGHTS
from search.training.recipe import Recipe
from search.training.run_folder import held_folder
from search.training.trainer import FitResult, Trainer, TrainingJob
from search.training.training_run import TrainingRun
from ssm_models import PrunableModel, save_checkpoint, weights_digest

_ADDRESSES = ("--db", "--ray-address")  # options that mean something on this machine alone, or hold a password


@dataclass(frozen=True)
class TrainResult:
    """A trained model: how the training went, the file with its weights, and their digest."""

    fit: FitResult
    checkpoint: Path
    weights_digest: str


def train_model(
    model: PrunableModel,
    data: ImageData,
    recipe: Recipe,
    run: TrainingRun,
    *,
    command: str | None = None,
) -> TrainResult:
    """Train a dense model and write OUT/model.safetensors and OUT/train.json.

    To train from Python::

        data = open_data("embedded")
        model = ssm_models.create_model("vim_nano", data.num_classes)
        result = train_model(model, data, Recipe(epochs=30), TrainingRun(Path("runs/digits")))

    The weights of the last epoch are kept (their moving average, if the recipe has one), not those of the best epoch:
    choosing by val would make the accuracy on val look better than it is.

    Args:
        model: for example from `ssm_models.create_model`, initialised after `torch.manual_seed`; changed in place.
        data: with the splits train and val.
        recipe: the hyperparameters.
        run: the folder OUT, and how to train; `pace.until` must be None.
        command: what the user typed; by default this process's arguments.

    Raises:
        UsageError: OUT belongs to another training, or is in use.
        DataError: a split is missing or broken, or its classes are not the model's.
        TrainingError: a loss is not finite, or OUT cannot be written.
    """
    data.check_model(model)

    def loss(network: PrunableModel, images: Tensor, targets: Tensor) -> Tensor:
        return data.task.loss(network(images).float(), targets, recipe.label_smoothing)

    with held_folder(run.out):
        fitted = Trainer(model, TrainingJob(loss, data, recipe), run).fit()
        path = save_weights(model, data, run.out)
        write_json(run.out / "train.json", training_record(model, data, recipe, fitted, command))
    return TrainResult(fitted, path, weights_digest(model))


def save_weights(model: PrunableModel, data: ImageData, out: Path) -> Path:
    """Write OUT/model.safetensors with the metadata to build the model again, and return its path."""
    path = out / WEIGHTS
    metadata = {
        "model": model.model_name,
        "img_size": json.dumps(list(model.img_size)),
        "num_classes": str(data.num_classes),
        "classes": json.dumps(data.classes, ensure_ascii=False),
        "data": portable(data.spec),
    }
    save_checkpoint(model, path, metadata)
    return path


def training_record(
    model: PrunableModel, data: ImageData, recipe: Recipe, fitted: FitResult, command: str | None
) -> dict[str, Any]:
    """Return the JSON object that is written beside trained weights: how they were made, and how good they are."""
    return {
        "command": command or command_line(sys.argv[1:]),
        "model": model.model_name,
        "img_size": list(model.img_size),
        "classes": data.classes,
        "data": portable(data.spec),
        "data_digest": {"train": data.digest("train"), "val": data.digest("val")},
        "recipe": asdict(recipe),
        "metric": data.task.metric.name,
        "top1": fitted.top1,
        "loss": fitted.loss,
        "images": fitted.images,
        "best_top1": fitted.best_top1,
        "best_epoch": fitted.best_epoch,
        "seconds": round(fitted.seconds, 1),
        "weights_digest": weights_digest(model),
        "versions": versions(),
        "curve": fitted.curve,
    }


def command_line(arguments: Sequence[str]) -> str:
    """Return a command line of this program for files that are handed on: without addresses and absolute folders.

    >>> command_line(["train", "--data", "folder:/home/ada/signs", "--db", "postgresql://ada:secret@host/db"])
    'prunefront train --data folder:signs'
    """
    words = ["prunefront"]
    following = iter(arguments)
    for word in following:
        option, given, _ = word.partition("=")
        if option not in _ADDRESSES:
            words.append(portable(word))
        elif not given:
            next(following, None)  # its value
    return shlex.join(words)
