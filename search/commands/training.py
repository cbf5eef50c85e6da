"""`train`, and the options that it shares with `finetune`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from search.commands.options import Data, FormatOption, Model, scored
from search.commands.output import Column, Format, print_object, share_text
from spaces.errors import UsageError

Epochs = Annotated[int, typer.Option(metavar="E", help="Passes over the train images.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder for weights and record; a run in it is resumed.")]
Seed = Annotated[int, typer.Option(metavar="I", help="Of everything random.")]
Rate = Annotated[float | None, typer.Option("--lr", metavar="X", help="Highest learning rate.")]
Batch = Annotated[int | None, typer.Option("--batch-size", metavar="N", help="Images in a step. Default: 64.")]
Decay = Annotated[float | None, typer.Option("--weight-decay", metavar="X", help="Of all weights but norms.")]
MixUp = Annotated[float | None, typer.Option("--mixup", metavar="X", help="Strength of mixing images. Default: 0.")]
CutMix = Annotated[float | None, typer.Option("--cutmix", metavar="X", help="Strength of pasting parts. Default: 0.")]
Smoothing = Annotated[
    float | None, typer.Option("--label-smoothing", metavar="X", help="Share of a label that all classes get.")
]
Average = Annotated[
    float | None,
    typer.Option("--ema", metavar="X", help="Decay of the weights' average that is kept; 0: none."),
]
Amp = Annotated[
    str | None,
    typer.Option("--amp", metavar="P", help="Precision of the forward pass: fp32, bf16 or fp16. Default: fp32."),
]
Accumulate = Annotated[
    int, typer.Option("--accumulate", metavar="N", help="Run a step's images in N parts, where memory is short.")
]
EvalEvery = Annotated[int, typer.Option("--eval-every", metavar="N", help="Look at val after every N epochs.")]

TRAINED_COLUMNS = {
    "checkpoint": Column("weights"),
    "top1": Column("top-1", share_text),
    "loss": Column("loss", share_text),
    "images": Column("val images"),
    "epochs": Column("epochs"),
    "seconds": Column("seconds", lambda s: f"{s:.0f}"),
}


def train(
    model: Model,
    data: Data,
    epochs: Epochs,
    out: Out,
    seed: Seed = 0,
    img_size: Annotated[
        int | None, typer.Option("--img-size", metavar="N", help="Pixels of a side. Default: the model's.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="F", help="Begin from these weights, also of another image size. Default: at random."),
    ] = None,
    lr: Rate = None,
    batch_size: Batch = None,
    weight_decay: Decay = None,
    mixup: MixUp = None,
    cutmix: CutMix = None,
    label_smoothing: Smoothing = None,
    ema: Average = None,
    amp: Amp = None,
    accumulate: Accumulate = 1,
    eval_every: EvalEvery = 1,
    format: FormatOption = Format.table,
) -> None:
    """Train a dense model, from scratch or from other weights."""
    if img_size is not None and img_size < 1:
        raise UsageError(f"--img-size {img_size}: expected pixels, such as 224")

    import torch

    import ssm_models
    from search.data.dataset import open_data
    from search.training.epoch_log import EpochLog
    from search.training.recipe import Pace, Recipe
    from search.training.train import train_model

    ssm_models.model_info(model)
    given = {
        "lr": lr,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "mixup": mixup,
        "cutmix": cutmix,
        "label_smoothing": label_smoothing,
        "ema": ema,
        "amp": amp,
    }
    recipe = Recipe(epochs=epochs, seed=seed, **chosen(given))
    pace = Pace(accumulate=accumulate, eval_every=eval_every)
    source = open_data(data)
    torch.manual_seed(seed)
    network = ssm_models.create_model(model, source.num_classes, img_size)
    if checkpoint is not None:
        ssm_models.load_checkpoint(network, checkpoint)
    with EpochLog("train", score=source.task.metric.label) as log:
        result = train_model(network, source, recipe, out=out, log=log, pace=pace)
    print_object(
        {
            "model": model,
            "checkpoint": str(result.checkpoint),
            "metric": source.task.metric.name,
            "top1": result.fit.top1,
            "loss": result.fit.loss,
            "images": result.fit.images,
            "epochs": epochs,
            "seconds": result.fit.seconds,
            "weights_digest": result.weights_digest,
        },
        scored(TRAINED_COLUMNS, source.task.metric.name),
        format,
    )


def chosen(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given; the recipe knows the others."""
    return {name: value for name, value in options.items() if value is not None}
