"""`export`: a point of a study as a schedule file, as a bundle, as a graph for other runtimes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from results.metrics import METRICS
from search.commands.options import Checkpoint, Database, MaxFlops, MinTop1, Study, check_top1, database, flops_limit
from search.commands.output import say
from search.commands.schedule_files import read_schedule
from spaces import PruningSchedule
from spaces.errors import PrunefrontError, UsageError

if TYPE_CHECKING:
    from results.records import Evaluation
    from results.records import Study as StudyRecord
    from results.store.store import Store


def export(
    study: Study,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Where to write the schedule.")] = None,
    db: Database = None,
    max_flops: MaxFlops = None,
    min_top1: MinTop1 = None,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="TEXT|FILE", help="This schedule of the study. Default: the most accurate one."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write weights, schedule, preprocessing and a model card to a folder."),
    ] = None,
    to: Annotated[
        list[str] | None, typer.Option("--to", metavar="pt2|onnx", help="Also export the model into the bundle.")
    ] = None,
    checkpoint: Checkpoint = None,
    images: Annotated[
        int,
        typer.Option("--images", metavar="N", min=1, max=4096, help="Images to compare exports on."),
    ] = 64,
) -> None:
    """Write the most accurate schedule within the bounds as JSON, or the whole model as a bundle."""
    from results.export.schedule_json import export_schedule
    from results.files import write_json
    from results.store.store import Store

    if out is None and bundle is None:
        raise UsageError("nothing to write: name --out FILE.json or --bundle DIR")
    if bundle is None and (to or checkpoint):
        raise UsageError(f"{'--to' if to else '--checkpoint'} goes into a bundle: name --bundle DIR")
    check_top1(min_top1)
    with Store.open(database(db)) as store:
        found = store.study(study)
        point = _point(store, found, schedule, max_flops, min_top1)
        dense = store.confirmation(found, PruningSchedule().hash)
        finetunes = store.finetunes(found)
    if bundle is not None:
        from ssm_models.bundle import check_replaceable

        check_replaceable(bundle)
    if out is not None:
        write_json(out, export_schedule(point, found, dense))
        label, confirmed = METRICS[point.metric].label, ", confirmed" if point.confirmed else ""
        score = f"{label} {point.reported.top1:.4f}{confirmed}"
        say(f"wrote {out}: {point.schedule.text or 'dense'}, {score}, {point.flops_ratio:.3f} of dense FLOPs")
    if bundle is None:
        return

    from search.bundle_export import choose_weights, export_bundle, parity_images, random_images
    from ssm_models.exporting import check_target

    targets = list(dict.fromkeys(to or []))
    for target in targets:
        check_target(target)
    weights = choose_weights(found, point, finetunes, checkpoint)
    shown, origin = None, ""
    if targets:
        try:
            shown = parity_images(found, weights.model, images)
            origin = f"the first {len(shown)} of the val split of {found.spec.shown_data}"
        except (PrunefrontError, OSError) as error:
            say(f"warning: exports are compared on random images: {error}")
            shown, origin = random_images(weights.model, images), f"{images} random"
    parities = export_bundle(
        bundle, found, point, weights, dense=dense, targets=targets, images=shown, images_from=origin
    )
    kind = "fine-tuned" if weights.finetune else "the study's" if weights.measured else "given"
    say(f"wrote {bundle}: {point.schedule.text or 'dense'}, {kind} weights, {point.flops_ratio:.3f} of dense FLOPs")
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
