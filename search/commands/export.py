"""`prunefront export`: a point of a study as a schedule file, or as a bundle with graphs for other runtimes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from results.metrics import METRICS
from search.commands.options import (
    Checkpoint,
    Database,
    MaxFlops,
    MinTop1,
    Skip,
    Split,
    Study,
    check_top1,
    database,
    file_path,
    flops_limit,
    folder_path,
)
from search.commands.output import say
from search.commands.schedule_files import read_schedule
from spaces import PruningSchedule
from spaces.errors import PrunefrontError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from results.records import Confirmation, Evaluation
    from results.records import Study as StudyRecord
    from results.store.store import Store
    from search.bundle_export import Weights
    from search.data.image_set import ImageChoice


def export(
    study: Study,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", parser=file_path, help="Where to write the schedule."),
    ] = None,
    db: Database = None,
    max_flops: MaxFlops = None,
    min_top1: MinTop1 = None,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="TEXT|FILE", help="This schedule of the study. Default: the most accurate one."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=folder_path,
            help="Write weights, schedule, preprocessing and a model card to a folder.",
        ),
    ] = None,
    to: Annotated[
        list[str] | None, typer.Option("--to", metavar="pt2|onnx", help="Also export the model into the bundle.")
    ] = None,
    checkpoint: Checkpoint = None,
    images: Annotated[
        int,
        typer.Option("--images", metavar="N", min=1, max=4096, help="Images to compare exports on."),
    ] = 64,
    split: Split = None,
    skip: Skip = None,
) -> None:
    """Export the most accurate schedule within the bounds as JSON, or the whole model as a bundle."""
    from results.export.schedule_json import export_schedule
    from results.files import write_json
    from results.store.store import Store
    from search.data.image_set import ImageChoice

    if out is None and bundle is None:
        raise UsageError("nothing to write: name --out FILE.json or --bundle DIR")
    if bundle is None and (to or checkpoint):
        raise UsageError(f"{'--to' if to else '--checkpoint'} goes into a bundle: name --bundle DIR")
    if not to and (split is not None or skip is not None):
        option = "--skip" if split is None else "--split"
        raise UsageError(f"{option} names images to compare exports on: name a target with --to")
    choice = ImageChoice(split, skip, images)
    check_top1(min_top1)
    targets = _known_targets(to) if to else []
    with Store.open(database(db)) as store:
        found = store.study(study)
        point = _point(store, found, schedule, max_flops, min_top1)
        dense = store.confirmation(found, PruningSchedule().hash)
        finetunes = store.finetunes(found)
    if bundle is not None:
        from ssm_models.bundle import check_replaceable

        check_replaceable(bundle)
    if out is not None:
        content = export_schedule(point, found, dense, chosen_by_score=min_top1 is not None)
        write_json(out, content)
        score = f"{METRICS[point.metric].label} {point.reported.top1:.4f}{_about(content['metrics'])}"
        say(f"wrote {out}: {point.schedule.text or 'dense'}, {score}, {point.flops_ratio:.3f} of dense FLOPs")
    if bundle is not None:
        from search.bundle_export import choose_weights

        weights = choose_weights(found, point, finetunes, checkpoint)
        _export_bundle(bundle, found, point, weights, dense, targets, choice)


def _about(metrics: "Mapping[str, Any]") -> str:
    """Return what is to be known of an exported score: its images, and whether they chose the schedule."""
    if not metrics["confirmed"]:
        return " on the images that chose it"
    if metrics["chosen_on_these_images"]:
        return f" on {metrics['confirmed_on']}, which also chose it"
    return f", confirmed on {metrics['confirmed_on']}"


def _known_targets(names: "Sequence[str]") -> list[str]:
    """Return each target once; UsageError for one that is unknown or not installed."""
    from ssm_models.exporting import check_target

    targets = list(dict.fromkeys(names))
    for target in targets:
        check_target(target)
    return targets


def _export_bundle(
    directory: Path,
    study: "StudyRecord",
    point: "Evaluation",
    weights: "Weights",
    dense: "Confirmation | None",
    targets: list[str],
    choice: "ImageChoice",
) -> None:
    """Write the bundle, compare its exports with the model on some images, and say how close they are."""
    from search.bundle_export import export_bundle, parity_images, random_images

    images, origin = None, ""
    if targets:
        try:
            chosen, images = parity_images(study, weights.model, choice)
            origin = f"{chosen.text} of {study.spec.shown_data}"
        except (PrunefrontError, OSError) as error:
            if choice.split is not None or choice.skip is not None:  # random ones are not what was asked for
                raise
            say(f"warning: exports are compared on random images: {error}")
            count = choice.images or 1
            images, origin = random_images(weights.model, count), f"{count} random"
    parities = export_bundle(
        directory, study, point, weights, dense=dense, targets=targets, images=images, images_from=origin
    )
    kind = "fine-tuned" if weights.finetune else "the study's" if weights.measured else "given"
    say(
        f"wrote {directory}: {point.schedule.text or 'dense'}, {kind} weights, {point.flops_ratio:.3f} of dense FLOPs"
    )
    for one in parities:
        say(
            f"{one.target}: logits differ by up to {one.max_difference:.2g} of {one.largest_logit:.3g}, "
            f"same answer on {100 * one.same_answers:.1f} % of {one.images} images ({one.runtime})"
        )


def _point(
    store: "Store", study: "StudyRecord", schedule: str | None, max_flops: str | None, min_top1: float | None
) -> "Evaluation":
    """Return the evaluation to export.

    Raises:
        UsageError: none within the bounds, or none of that schedule.
    """
    if schedule is None:
        limit = flops_limit(max_flops, study.spec.dense_flops)
        return store.best(study, max_flops=limit, min_top1=min_top1)
    if max_flops is not None or min_top1 is not None:
        raise UsageError("--schedule names one point: leave --max-flops and --min-top1 out")
    asked, _ = read_schedule(schedule)
    point = store.evaluation(study, asked.hash)
    if point is None or point.state != "done":
        raise UsageError(f"study {study.name!r} has no finished evaluation of {asked.text or 'the dense model'!r}")
    return point
