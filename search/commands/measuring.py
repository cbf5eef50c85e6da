"""Commands about models, without a study: `evaluate`, `flops` and `models`."""

from typing import Annotated, Any

import typer

from search.commands.options import (
    FRONT_COLUMNS,
    BatchSize,
    Checkpoint,
    ClassOrder,
    Data,
    FormatOption,
    Images,
    ImgSize,
    Model,
    Schedule,
    Skip,
    Split,
    scored,
)
from search.commands.output import Column, Format, compact_flops, print_object, print_rows, say, share_text
from search.commands.schedule_files import (
    check_belongs,
    images_of_file,
    order_of_images,
    read_schedule,
    size_of_images,
    size_to_open,
)
from search.config import SearchConfig, parse_img_size
from spaces import PruningSchedule

FLOPS_COLUMNS = {
    "model": Column("model"),
    "schedule": Column("schedule", lambda text: text or "(dense)"),
    "convention": Column("convention (1 MAC = 1 FLOP)"),
    "dense_flops": Column("dense FLOPs", lambda n: f"{n:,} ({compact_flops(n)})"),
    "flops": Column("FLOPs", lambda n: f"{n:,} ({compact_flops(n)})"),
    "ratio": Column("of dense", share_text),
    "tokens": Column("tokens after each block", lambda counts: " ".join(map(str, counts))),
}
PART_COLUMNS = {
    "part": Column("part"),
    "tokens": Column("tokens in", right=True),
    "flops": Column("FLOPs", lambda n: f"{n:,}", right=True),
    "share": Column("share", share_text, right=True),
}
MODEL_COLUMNS = {
    "name": Column("model"),
    "img_size": Column("pixels", right=True),
    "num_classes": Column("classes", right=True),
    "task": Column("task"),
    "weights": Column("weights", lambda shipped: "shipped" if shipped else "-"),
    "description": Column("description"),
}


def evaluate(
    model: Model,
    data: Data,
    schedule: Schedule,
    checkpoint: Checkpoint = None,
    class_order: ClassOrder = None,
    img_size: ImgSize = None,
    split: Split = None,
    skip: Skip = None,
    images: Images = None,
    batch_size: BatchSize = SearchConfig.batch_size,
    format: FormatOption = Format.table,
) -> None:
    """Print top-1, loss, FLOPs and latency of one schedule.

    The images are all of val, unless --split, --skip and --images name others. The latency is the median over forward
    passes of the first batch, in milliseconds per image, on the GPU if there is one, else on all cores of the CPU.
    Dense and pruned passes alternate.
    """
    from search.data.image_set import ImageChoice

    chosen, file = read_schedule(schedule)
    if file is not None:
        check_belongs(file, schedule, model=model)
    order, study_images = order_of_images(file or {}, schedule), images_of_file(file, schedule)
    choice = ImageChoice(split, skip, images)

    import torch

    import ssm_models
    from results.export.schedule_json import front_row
    from results.records import Evaluation
    from search.data.dataset import open_data
    from search.data.image_order import DEFAULT_ORDER
    from search.evaluation.evaluator import Evaluator
    from search.models import open_model

    source = open_data(data, class_order=class_order)
    network = open_model(model, checkpoint, source, size_to_open(img_size, checkpoint, file))
    if file is not None:
        check_belongs(file, schedule, img_size=network.img_size, num_classes=network.num_classes)
    network.set_schedule(
        chosen
    )  # before the images are read, so that a schedule that does not fit is refused at once
    table = ssm_models.cost_table(network)
    flops = table.flops(chosen)
    scored_on = choice.image_set_of(source, study_images, order)
    batches = scored_on.batches(source, network, batch_size)
    if scored_on.images < source.size(scored_on.split) and order != DEFAULT_ORDER:
        say(f"the images are {scored_on.text} in the order of the schedule's study, {order}")
    evaluator = Evaluator(network, batches, "cuda" if torch.cuda.is_available() else "cpu")
    metrics, latency = evaluator.evaluate(chosen), evaluator.latency(chosen)
    found = Evaluation(
        schedule=chosen,
        flops=flops,
        flops_ratio=flops / table.dense,
        top1=metrics.top1,
        loss=metrics.loss,
        images=metrics.images,
        latency_ms=latency.ms,
        latency_ratio=latency.ratio,
        metric=source.task.metric.name,
    )
    details = metrics.tally.details(source.classes) if metrics.tally else {}
    columns = {name: column for name, column in FRONT_COLUMNS.items() if name != "finetuned_top1"}
    columns |= {"images_of": Column("which images"), "agreement": Column("agreement with dense", share_text)}
    columns |= {name: Column(name, share_text) for name in details}
    row = {**front_row(found), "images_of": scored_on.text, "agreement": metrics.agreement, **details}
    print_object(row, scored(columns, found.metric), format)


def flops(
    model: Model,
    schedule: Schedule = "",
    img_size: ImgSize = None,
    convention: Annotated[
        str, typer.Option(metavar="full|published", help="What to count: everything that runs, or what papers quote.")
    ] = "full",
    by_block: Annotated[bool, typer.Option("--by-block", help="Also count each part.")] = False,
    format: FormatOption = Format.table,
) -> None:
    """Count the FLOPs of one forward pass.

    One image; a multiply-accumulate is one FLOP.
    """
    chosen, file = read_schedule(schedule)
    if file is not None:
        check_belongs(file, schedule, model=model)
    import ssm_models

    size = size_of_images(file) if img_size is None else parse_img_size(img_size)
    network = ssm_models.create_model(model, (file or {}).get("num_classes"), size).eval()
    if file is not None:
        check_belongs(file, schedule, img_size=network.img_size)
    network.set_schedule(chosen)
    table = ssm_models.cost_table(network, convention)
    counted = table.flops(chosen)
    found: dict[str, Any] = {
        "model": model,
        "schedule": chosen.text,
        "convention": convention,
        "dense_flops": table.dense,
        "flops": counted,
        "ratio": counted / table.dense,
        "tokens": network.layout.tokens(chosen),
    }
    if not by_block:
        print_object(found, FLOPS_COLUMNS, format)
        return
    parts = _parts(table, chosen, network.layout.worked_on(chosen))
    if format is Format.json:
        print_object({**found, "parts": parts}, {}, format)
    else:
        print_rows(parts, PART_COLUMNS, format)


def models(format: FormatOption = Format.table) -> None:
    """List the models."""
    import ssm_models

    infos = [ssm_models.model_info(name) for name in ssm_models.list_models()]
    rows = [
        {
            "name": info.name,
            "family": info.family.__name__,
            "img_size": info.img_size,
            "num_classes": info.num_classes,
            "task": info.family.task,
            "weights": info.weights is not None,
            "description": info.description,
        }
        for info in infos
    ]
    print_rows(rows, MODEL_COLUMNS, format)


def _parts(table: Any, schedule: PruningSchedule, tokens: list[int]) -> list[dict[str, Any]]:
    """Return the FLOPs of each part; they add up to the total."""
    seeding = table.seeding if schedule.method.importance == "random" else 0
    parts: list[tuple[str, int | None, int]] = [("embedding", None, table.embedding + seeding)]
    parts += [(f"block {i + 1}", tokens[i], count) for i, count in enumerate(table.by_block(schedule))]
    parts.append(("head", None, table.head))
    total = sum(count for _, _, count in parts)
    return [{"part": p, "tokens": t, "flops": count, "share": count / total} for p, t, count in parts]
