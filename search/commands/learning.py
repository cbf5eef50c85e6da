"""`train` and `finetune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.commands.options import Checkpoint, Data, Database, FormatOption, Model, database
from search.output import Column, Format, print_object, say, share_text
from search.schedule_files import check_belongs, read_schedule
from spaces import PruningSchedule
from spaces.errors import ScheduleError, UsageError

if TYPE_CHECKING:
    from search.data import ImageData
    from ssm_models import PrunableModel

Epochs = Annotated[int, typer.Option(metavar="E", help="Passes over the train images.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder for weights and record; a run in it is resumed.")]
Seed = Annotated[int, typer.Option(metavar="I", help="Of everything random.")]
Rate = Annotated[float | None, typer.Option("--lr", metavar="X", help="Highest learning rate.")]
Batch = Annotated[int | None, typer.Option("--batch-size", metavar="N", help="Images in a step. Default: 64.")]

TRAINED_COLUMNS = {
    "checkpoint": Column("weights"),
    "top1": Column("top-1", share_text),
    "loss": Column("loss", share_text),
    "images": Column("val images"),
    "epochs": Column("epochs"),
    "seconds": Column("seconds", lambda s: f"{s:.0f}"),
}
FINETUNED_COLUMNS = {
    "schedule": Column("schedule", lambda text: text or "(dense)"),
    "dense_top1": Column("dense top-1", share_text),
    "before_top1": Column("top-1 before", share_text),
    **TRAINED_COLUMNS,
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
    weight_decay: Annotated[float | None, typer.Option(metavar="X", help="Of all weights but norms.")] = None,
    mixup: Annotated[float | None, typer.Option(metavar="X", help="Strength of mixing images. Default: 0.")] = None,
    cutmix: Annotated[float | None, typer.Option(metavar="X", help="Strength of pasting images. Default: 0.")] = None,
    format: FormatOption = Format.table,
) -> None:
    """Train a dense model, from scratch or from other weights."""
    if img_size is not None and not 1 <= img_size <= 100_000:
        raise UsageError(f"--img-size {img_size}: expected pixels, such as 224")

    import torch

    import ssm_models
    from search.data import open_data
    from search.epoch_log import EpochLog
    from search.recipe import Recipe
    from search.training import train_model

    ssm_models.model_info(model)
    given = {
        "lr": lr,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "mixup": mixup,
        "cutmix": cutmix,
    }
    recipe = Recipe(epochs=epochs, seed=seed, **_given(given))
    source = open_data(data)
    torch.manual_seed(seed)
    network = ssm_models.create_model(model, source.num_classes, img_size)
    if checkpoint is not None:
        ssm_models.load_checkpoint(network, checkpoint)
    with EpochLog("train") as log:
        result = train_model(network, source, recipe, out=out, log=log)
    print_object(
        {
            "model": model,
            "checkpoint": str(result.checkpoint),
            "top1": result.fit.top1,
            "loss": result.fit.loss,
            "images": result.fit.images,
            "epochs": epochs,
            "seconds": result.fit.seconds,
            "weights_digest": result.weights_digest,
        },
        TRAINED_COLUMNS,
        format,
    )


def finetune(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="A schedule that `export` wrote.")],
    data: Data,
    epochs: Epochs,
    out: Out,
    checkpoint: Checkpoint = None,
    study: Annotated[str | None, typer.Option(metavar="S", help="Record the outcome in this study.")] = None,
    db: Database = None,
    seed: Seed = 0,
    lr: Rate = None,
    batch_size: Batch = None,
    format: FormatOption = Format.table,
) -> None:
    """Fine-tune under a schedule, with the dense model as teacher."""
    where = str(file) if "/" in str(file) or file.suffix == ".json" else f"./{file}"
    schedule, content = read_schedule(where)
    assert content is not None
    name = content.get("model")
    if not isinstance(name, str):
        raise ScheduleError(f"{file}: model is {name!r}, expected the name of a model, as `export` writes it")

    import ssm_models
    from results.store import Store
    from search.data import open_data
    from search.epoch_log import EpochLog
    from search.finetuning import finetune_model, finetune_recipe
    from search.subject import open_model

    ssm_models.model_info(name)
    recipe = finetune_recipe(epochs, seed=seed, **_given({"lr": lr, "batch_size": batch_size}))
    source = open_data(data)
    student = open_model(name, checkpoint, source)
    check_belongs(content, str(file), img_size=student.img_size)
    student.layout.check(schedule)
    images = None if study is None else _images_of_study(study, database(db), schedule, student, source)
    teacher = open_model(name, checkpoint, source)
    with EpochLog("fine-tune") as log:
        result = finetune_model(student, teacher, source, schedule, recipe, out=out, log=log, images=images)
    if study is not None:
        with Store.open(database(db)) as store:
            store.record_finetune(store.study(study), result.record)
        say(f"recorded in study {study!r}")
    print_object(
        {
            "model": name,
            "schedule": schedule.text,
            "hash": schedule.hash,
            "dense_top1": result.dense[0],
            "before_top1": result.before[0],
            "checkpoint": str(result.checkpoint),
            "top1": result.fit.top1,
            "loss": result.fit.loss,
            "images": result.fit.images,
            "epochs": epochs,
            "seconds": result.fit.seconds,
            "weights_digest": result.weights_digest,
        },
        FINETUNED_COLUMNS,
        format,
    )


def _images_of_study(
    name: str, url: str, schedule: PruningSchedule, model: "PrunableModel", data: "ImageData"
) -> int:
    """Find out before the training whether its outcome can be recorded, and on how many images to measure it.

    A fine-tuned accuracy stands beside those of the search, so it is measured on the same images.

    Raises:
        UsageError: the study has no such evaluation, or is about other weights or images.
    """
    import ssm_models
    from results.store import Store

    with Store.open(url) as store:
        found = store.study(name)
        if store.evaluation(found, schedule.hash) is None:
            raise UsageError(
                f"study {name!r} has no evaluation of {schedule.text!r}: name the study it was exported from"
            )
    if found.spec.model != model.model_name or found.spec.weights_digest != ssm_models.weights_digest(model):
        raise UsageError(f"study {name!r} is about other weights than these: give its --checkpoint, or no --study")
    if found.spec.data_digest != data.digest():
        raise UsageError(f"study {name!r} is about other images than {data.spec}: give its --data, or no --study")
    return found.spec.images


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
