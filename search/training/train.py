"""Training a dense model from scratch, and what every training writes beside its weights."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from results.files import write_json
from results.portable import portable
from search.data.dataset import ImageData
from search.runtime.versions import versions
from search.training.checkpoint import WEIGHTS
from search.training.epoch_log import TrainingLog
from search.training.fit import WHOLE, FitResult, fit
from search.training.recipe import Pace, Recipe
from search.training.run_folder import held_folder
from ssm_models import PrunableModel, save_checkpoint, weights_digest

_ADDRESSES = ("--db", "--ray-address")  # options that mean something on this machine alone, or hold a password


@dataclass(frozen=True)
class TrainResult:
    """A trained model: what `fit` says, where the weights are, and their digest."""

    fit: FitResult
    checkpoint: Path
    weights_digest: str


def train_model(
    model: PrunableModel,
    data: ImageData,
    recipe: Recipe,
    *,
    out: str | Path,
    resume: bool = True,
    device: str | torch.device | None = None,
    log: TrainingLog | None = None,
    command: str | None = None,
    pace: Pace = WHOLE,
) -> TrainResult:
    """Train a dense model from scratch and write OUT/model.safetensors and OUT/train.json.

    The weights of the last epoch are kept (their moving average, if the recipe has one), not those of
    the best one: choosing by val would make the accuracy on val look better than it is.

    Args:
        model: from `ssm_models.create_model`, freshly initialised after `torch.manual_seed`.
        data: with the splits train and val.
        recipe: the settings.
        out: a folder; made if missing.
        resume: go on from OUT/last.pt where there is one; otherwise begin anew.
        device: cuda where there is one if None.
        log: told how far it is.
        command: what the user typed; by default this process's arguments.
        pace: how it is run; its `until` is not for here.

    Raises:
        UsageError: OUT holds a training of other settings, or another one is at work there.
        DataError: a split is missing or broken, or its classes are not the model's.
        TrainingError: the loss is not finite, or OUT cannot be written.
    """
    data.check_model(model)

    def loss(network: PrunableModel, images: Tensor, targets: Tensor) -> Tensor:
        return data.task.loss(network(images).float(), targets, recipe.label_smoothing)

    out = Path(out)
    with held_folder(out):
        fitted = fit(
            model, loss, data, recipe, out=out, identity={}, resume=resume, device=device, log=log, pace=pace
        )
        path, digest = save_weights(model, data, out)
        record = training_record(model, data, recipe, fitted, digest, command)
        write_json(out / "train.json", record)
    return TrainResult(fitted, path, digest)


def save_weights(model: PrunableModel, data: ImageData, out: Path) -> tuple[Path, str]:
    """Write OUT/model.safetensors with what it takes to build the model again; return its path and digest."""
    path = out / WEIGHTS
    metadata = {
        "model": model.model_name,
        "img_size": json.dumps(list(model.img_size)),
        "num_classes": str(data.num_classes),
        "classes": json.dumps(data.classes, ensure_ascii=False),
        "data": portable(data.spec),
    }
    save_checkpoint(model, path, metadata)
    return path, weights_digest(model)


def training_record(
    model: PrunableModel, data: ImageData, recipe: Recipe, fitted: FitResult, digest: str, command: str | None
) -> dict[str, Any]:
    """Return what is written beside trained weights: how they came about, and how good they are."""
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
        "weights_digest": digest,
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
