"""Commands that show what a search found: `front`, `report` and `studies`."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.commands.options import (
    FRONT_COLUMNS,
    Database,
    FormatOption,
    MaxFlops,
    MinTop1,
    Study,
    about_front,
    check_top1,
    database,
    file_path,
    flops_limit,
    print_front,
)
from search.commands.output import Column, Format, compact_flops, print_rows, rows_text, say
from search.config import SearchConfig
from search.settings import reproducing_settings
from spaces import PruningSchedule
from spaces.errors import CheckpointError, DataError, PrunefrontError, UsageError

if TYPE_CHECKING:
    from results.records import Confirmation, Evaluation
    from results.records import Study as StudyRecord
    from results.report.token_pictures import TokenPicture
    from results.store.store import Store

ALL_COLUMNS = {
    "number": Column("no.", right=True),
    "state": Column("state"),
    **FRONT_COLUMNS,
    "origin": Column("origin"),
    "error": Column("error"),
}
STUDY_COLUMNS = {
    "study": Column("study"),
    "model": Column("model"),
    "data": Column("data"),
    "budget": Column("budget"),
    "done": Column("done", right=True),
    "failed": Column("failed", right=True),
    "stopped": Column("stopped", right=True),
    "running": Column("running", right=True),
    "dense_top1": Column("dense top-1", lambda x: f"{x:.4f}", right=True),
    "dense_flops": Column("dense FLOPs", compact_flops, right=True),
    "space": Column("space"),
    "sampler": Column("sampler"),
    "created": Column("created", lambda text: text[:16].replace("T", " ")),
}
BEARABLE_LOSS = 0.01  # of top-1, for the schedule whose tokens the report shows


class FrontFormat(StrEnum):
    """How to print or write a front."""

    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


def front(
    study: Study,
    db: Database = None,
    max_flops: MaxFlops = None,
    min_top1: MinTop1 = None,
    all: Annotated[
        bool, typer.Option("--all", help="Every evaluation in order, including failed and stopped ones.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=file_path, help="Also write a plot: .html or .png."),
    ] = None,
    format: Annotated[
        FrontFormat, typer.Option("--format", help="How to print or write results.", case_sensitive=False)
    ] = FrontFormat.table,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=file_path, help="Write csv, json or parquet to a file instead of printing."
        ),
    ] = None,
) -> None:
    """Print the Pareto front of a study, cheapest first."""
    from results.export.frames import full_row, to_parquet
    from results.export.schedule_json import front_rows
    from results.files import write_whole
    from results.front_scores import FrontScores
    from results.report.plot import check_plot_path, plot_front
    from results.store.store import Store

    check_top1(min_top1)
    if plot is not None:
        check_plot_path(plot)
    _check_out(format, out)
    with Store.open(database(db)) as store:
        found = store.study(study)
        limit = flops_limit(max_flops, found.spec.dense_flops)
        if all:
            listed = [
                e for e in store.evaluations(found, done_only=False, unfinished=True) if _within(e, limit, min_top1)
            ]
        else:
            listed = store.front(found, limit, min_top1)
        dense = _dense(store, found)
        if plot is not None:
            plot_front(plot, found, store.evaluations(found, done_only=False), dense)
            say(f"wrote {plot}")
    rows = [full_row(e) for e in listed] if all else front_rows(listed, found, dense)
    columns = ALL_COLUMNS if all else FRONT_COLUMNS
    if out is not None:
        parquet = format is FrontFormat.parquet
        write_whole(out, to_parquet(listed) if parquet else rows_text(rows, columns, Format(format)).encode())
        say(f"wrote {out}: {len(rows)} rows")
        return
    marked, empty = found.confirmed > 0, f"{study}: no evaluation within the bounds"
    print_front(rows, Format(format), marked=marked, columns=columns, empty=empty)
    if not all and format is FrontFormat.table:
        for line in about_front(FrontScores.of(listed, found.spec, dense), len(listed)):
            say(line)


def _check_out(form: FrontFormat, out: Path | None) -> None:
    if form is FrontFormat.parquet and out is None:
        raise UsageError("--format parquet is binary: name a file with --out FILE")
    if form is FrontFormat.table and out is not None:
        raise UsageError("--out takes --format csv, json or parquet")


def report(
    study: Study,
    out: Annotated[Path, typer.Option(metavar="FILE.html", parser=file_path, help="Where to write the page.")],
    db: Database = None,
    pictures: Annotated[
        int, typer.Option(metavar="N", min=0, max=64, help="Number of images on which to show dropped tokens.")
    ] = 4,
) -> None:
    """Write a self-contained HTML page about a study."""
    from results.portable import portable
    from results.report.report import write_report
    from results.store.store import Store

    with Store.open(database(db)) as store:
        found = store.study(study)
        evaluations = store.evaluations(found, done_only=False)
        best, dense, finetunes = store.front(found), _dense(store, found), store.finetunes(found)
    shown: Sequence[TokenPicture] = []
    if best and pictures:
        try:
            shown = token_pictures(found, cheapest_good_point(best), pictures)
        except (PrunefrontError, OSError) as error:
            say(f"warning: the report has no pictures of tokens: {error}")
    settings = reproducing_settings(found.spec.config, SearchConfig)
    if settings.get("class_order"):
        settings["class_order"] = portable(settings["class_order"])
    write_report(
        out,
        found,
        evaluations,
        shown,
        dense_confirmed=dense,
        finetunes=finetunes,
        settings=settings,
    )
    say(f"wrote {out}")


def studies(db: Database = None, format: FormatOption = Format.table) -> None:
    """List the studies of a database."""
    from results.store.store import Store

    with Store.open(database(db)) as store:
        rows = [_study_row(found) for found in store.studies()]
    print_rows(rows, STUDY_COLUMNS, format, empty="no studies yet")


def cheapest_good_point(front: "Sequence[Evaluation]") -> "Evaluation":
    """Return the cheapest point of the front whose top-1 is within `BEARABLE_LOSS` of the best."""
    best = max(e.reported.top1 or 0.0 for e in front)
    return min((e for e in front if (e.reported.top1 or 0.0) >= best - BEARABLE_LOSS), key=lambda e: e.flops)


def token_pictures(study: "StudyRecord", evaluation: "Evaluation", count: int) -> "list[TokenPicture]":
    """Run the study's model over its first images and return which patches of each the schedule keeps.

    Raises:
        UsageError, CheckpointError, DataError: model, weights or images are no longer those of the study.
    """
    import torch

    import ssm_models
    from results.report.token_pictures import TokenPicture
    from search.models import open_model
    from search.study_data import open_study_data

    spec = study.spec
    data = open_study_data(spec)
    model = open_model(spec.model, spec.checkpoint, data, spec.img_size)
    if ssm_models.weights_digest(model) != spec.weights_digest:
        raise CheckpointError(f"the weights of {spec.model} are not those of study {spec.name!r}")
    if data.digest() != spec.data_digest:
        raise DataError(f"the images of {spec.data} are not those of study {spec.name!r}")
    batches = data.batches(model.pretrained_cfg, model.img_size, images=count, batch_size=count, order=spec.order)
    images, labels = next(iter(batches))
    with torch.inference_mode():
        dense = data.task.answers(model(images))
        model.set_schedule(evaluation.schedule)
        pruned = data.task.answers(model(images))
        kept = model.kept_patches(images)
    layout = model.layout
    stages = [layout.stages[layout.stage_of(step.after)] for step in evaluation.schedule.steps]
    pixels = batches.pixels(count).permute(0, 2, 3, 1).contiguous().numpy()
    return [
        TokenPicture(
            image=pixels[i],
            label=data.task.subject(labels[i], data.classes),
            schedule=evaluation.schedule,
            kept=[step[i].tolist() for step in kept],
            grids=[(stage.height, stage.width) for stage in stages],
            dense_answer=data.task.describe(dense[i], labels[i], data.classes),
            pruned_answer=data.task.describe(pruned[i], labels[i], data.classes),
            panels=data.task.panels(labels[i], dense[i], pruned[i], data.colours),
        )
        for i in range(len(images))
    ]


def _within(evaluation: "Evaluation", max_flops: int | None, min_top1: float | None) -> bool:
    if max_flops is not None and evaluation.flops > max_flops:
        return False
    from results.objectives import objective_value

    top1 = objective_value(evaluation, "top1")
    return min_top1 is None or (top1 is not None and top1 >= min_top1)


def _dense(store: "Store", study: "StudyRecord") -> "Confirmation | None":
    """Return the dense model's confirmed score."""
    return store.confirmation(study, PruningSchedule().hash)


def _study_row(study: "StudyRecord") -> dict[str, Any]:
    spec = study.spec
    return {
        "study": spec.name,
        "model": spec.model,
        "data": spec.data,
        "budget": spec.budget,
        "least": spec.least,
        "limit": spec.limit,
        "done": study.done,
        "failed": study.failed,
        "stopped": study.stopped,
        "running": study.running,
        "queued": study.queued,
        "confirmed": study.confirmed,
        "images": spec.images,
        "confirm_split": spec.confirm_split,
        "confirm_images": spec.confirm_images,
        "dense_top1": spec.dense_top1,
        "dense_flops": spec.dense_flops,
        "space": spec.space,
        "sampler": spec.sampler,
        "objectives": list(spec.objectives),
        "seed": spec.seed,
        "created": study.created_at.isoformat(),
    }
