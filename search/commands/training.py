"""`train`, and the options that it shares with `finetune`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.commands.option_groups import grouped_options
from search.commands.options import ClassOrder, Data, FormatOption, ImgSize, Model, scored
from search.commands.output import Column, Format, print_object, share_text
from search.config import given_size

if TYPE_CHECKING:
    from torch import Tensor

    from search.training.trainer import FitResult
    from search.training.training_run import Pace
    from ssm_models import PrunableModel

TRAINED_COLUMNS = {
    "checkpoint": Column("weights"),
    "top1": Column("top-1", share_text),
    "loss": Column("loss", share_text),
    "images": Column("val images"),
    "epochs": Column("epochs"),
    "seconds": Column("seconds", lambda s: f"{s:.0f}"),
}


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. Options without a value leave the default to the recipe."""

    epochs: Annotated[int, typer.Option(metavar="E", help="Passes over the train split.")]
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for weights and record; a run in it is resumed.")]
    seed: Annotated[int, typer.Option(metavar="I", help="Seed of everything random.")] = 0
    lr: Annotated[float | None, typer.Option(metavar="X", help="Peak learning rate.")] = None
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images in a step. Default: 64.")] = None
    weight_decay: Annotated[
        float | None, typer.Option(metavar="X", help="Weight decay, except of norms and biases.")
    ] = None
    mixup: Annotated[float | None, typer.Option(metavar="X", help="Strength of mixup. Default: 0.")] = None
    cutmix: Annotated[float | None, typer.Option(metavar="X", help="Strength of cutmix. Default: 0.")] = None
    label_smoothing: Annotated[
        float | None, typer.Option(metavar="X", help="Share of a label that is spread over all classes.")
    ] = None
    ema: Annotated[
        float | None,
        typer.Option(metavar="X", help="Decay of the moving average of the weights, which is kept; 0: none."),
    ] = None
    amp: Annotated[
        str | None,
        typer.Option(metavar="P", help="Precision of the forward pass: fp32, bf16 or fp16. Default: fp32."),
    ] = None
    accumulate: Annotated[
        int, typer.Option(metavar="N", help="Run the images of a step in N parts, to save memory.")
    ] = 1
    eval_every: Annotated[int, typer.Option(metavar="N", help="Evaluate on val after every N epochs.")] = 1

    @property
    def given(self) -> dict[str, Any]:
        """The recipe's values that the user gave."""
        names = ("lr", "batch_size", "weight_decay", "mixup", "cutmix", "label_smoothing", "ema", "amp")
        return given({name: getattr(self, name) for name in names})

    @property
    def pace(self) -> "Pace":
        """How the training proceeds."""
        from search.training.training_run import Pace

        return Pace(accumulate=self.accumulate, eval_every=self.eval_every)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


@grouped_options
def train(
    model: Model,
    data: Data,
    options: TrainingOptions,
    img_size: ImgSize = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="F",
            help="Begin from these weights, also of another image size or other classes. Default: at random.",
        ),
    ] = None,
    class_order: ClassOrder = None,
    format: FormatOption = Format.table,
) -> None:
    """Train a dense model, from scratch or from other weights."""
    import torch

    import ssm_models
    from search.data.dataset import open_data
    from search.training.epoch_log import EpochLog
    from search.training.recipe import Recipe
    from search.training.train import train_model
    from search.training.training_run import TrainingRun
    from ssm_models.checkpoints import located, read_metadata, trained_classes

    info = ssm_models.model_info(model)
    recipe = Recipe(epochs=options.epochs, seed=options.seed, **options.given)
    pace = options.pace
    source = open_data(data, class_order=class_order)
    torch.manual_seed(options.seed)
    network = ssm_models.create_model(model, source.num_classes, given_size(img_size))
    if checkpoint is not None:
        before, weights = head_weights(network), located(info, checkpoint)
        ssm_models.load_checkpoint(network, weights, new_head=True)
        if all(map(torch.equal, before, head_weights(network))):
            source.settle_order(None, None)  # a new head learns whatever order the classes have
        else:
            source.settle_order(trained_classes(read_metadata(weights)), checkpoint)
    metric = source.task.metric
    with EpochLog("train", score=metric.label) as log:
        result = train_model(network, source, recipe, TrainingRun(options.out, pace=pace, observer=log))
    row = {"model": model, "checkpoint": str(result.checkpoint), "metric": metric.name}
    row |= fit_row(result.fit, options.epochs) | {"weights_digest": result.weights_digest}
    print_object(row, scored(TRAINED_COLUMNS, metric.name), format)


def head_weights(model: "PrunableModel") -> "list[Tensor]":
    """Return a copy of the weights of a model's head."""
    heads = tuple(f"{layer}." for layer in model.class_layers)
    return [value.clone() for key, value in model.state_dict().items() if key.startswith(heads)]


def fit_row(fit: "FitResult", epochs: int) -> dict[str, Any]:
    """Return what a training's outcome prints: its scores, and what they took."""
    return {
        "top1": fit.top1,
        "loss": fit.loss,
        "images": fit.images,
        "epochs": epochs,
        "seconds": fit.seconds,
    }
