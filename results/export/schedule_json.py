"""An evaluation as a row of JSON, and its schedule in the JSON form that `export` writes."""

from collections.abc import Sequence
from typing import Any

from results.front_scores import FrontScores
from results.objectives import share_interval
from results.records import Confirmation, Evaluation, Study


def front_row(evaluation: Evaluation) -> dict[str, Any]:
    """Return the object that `front --format json` prints for one evaluation.

    `top1` is the metric that `metric` names, in 0..1. Top-1, its 95 % interval and the loss are the reported ones, on
    `images` images: the confirmation's if `confirmed` is true, else the search's. An evaluation that is not done has
    none of them, and `images` says how many it ran. `finetuned_top1` is the mean of the latest fine-tunings, which
    differ by their seed only, on the images `finetuned_on`: not those of `top1`, unless both name the same.

    >>> from spaces import PruningSchedule
    >>> row = front_row(Evaluation(PruningSchedule.parse("5:0.8"), 3_000_000, 0.9, top1=0.75, loss=0.9, images=1000))
    >>> row["schedule"], row["top1"], row["flops"], row["confirmed"]
    ('5:0.8', 0.75, 3000000, False)
    """
    tuned = evaluation.finetuned
    reported, done = evaluation.reported, evaluation.state == "done"
    low, high = share_interval(evaluation, "top1") or (None, None)
    return {
        "schedule": evaluation.schedule.text,
        "hash": evaluation.hash,
        "top1": reported.top1 if done else None,
        "loss": reported.loss if done else None,
        "flops": evaluation.flops,
        "flops_ratio": evaluation.flops_ratio,
        "images": reported.images,
        "latency_ms": reported.latency_ms,
        "finetuned_top1": evaluation.finetuned_top1,
        "top1_low": low,
        "top1_high": high,
        "confirmed": evaluation.confirmed is not None,
        "search_top1": evaluation.top1 if done else None,
        "search_images": evaluation.images,
        "latency_ratio": reported.latency_ratio,
        "metric": evaluation.metric,
        "finetuned_min": None if tuned is None else tuned.low,
        "finetuned_max": None if tuned is None else tuned.high,
        "finetuned_runs": 0 if tuned is None else tuned.runs,
        "finetuned_images": None if tuned is None else tuned.images,
        "finetuned_on": None if tuned is None else tuned.scored_on,
    }


def front_rows(front: Sequence[Evaluation], study: Study, dense: Confirmation | None = None) -> list[dict[str, Any]]:
    """Return `front_row` of each point of a front, with what the confirming images say of it.

    `confirmed_on` names these images, and `confirmed_on_searched` says whether those are among them that chose the
    front. `dense_difference` is the top-1 less the dense model's on the same images, paired; its interval (`…_low`,
    `…_high`) holds for all points at once with 95 %. `dominated`: another point is better by the confirmed scores.

    Args:
        front: all of it, since the intervals hold for all points at once.
        study: the study.
        dense: the dense model's confirmed score, if there is one.
    """
    scores = FrontScores.of(front, study.spec, dense)
    return [front_row(evaluation) | _confirmed_row(evaluation, scores) for evaluation in front]


def _confirmed_row(evaluation: Evaluation, scores: FrontScores) -> dict[str, Any]:
    confirmed, difference = evaluation.confirmed is not None, scores.differences.get(evaluation.hash)
    return {
        "confirmed_on": scores.images if confirmed else None,
        "confirmed_on_searched": scores.searched if confirmed else None,
        "dominated": evaluation.hash in scores.dominated,
        "dense_difference": None if difference is None else difference.value,
        "dense_difference_low": None if difference is None else difference.low,
        "dense_difference_high": None if difference is None else difference.high,
    }


def export_schedule(
    evaluation: Evaluation, study: Study, dense: Confirmation | None = None, *, chosen_by_score: bool = False
) -> dict[str, Any]:
    """Return the JSON form of an evaluation's schedule, with its metrics and its provenance.

    `img_size` is one number for square images, else [height, width], in pixels. The metrics are those of `front_row`,
    and the dense model's for comparison. `chosen_on_these_images` says whether the images of the score also chose the
    schedule: then it is too high on average.

    To write the best schedule under a budget to a file:

        dense = store.confirmation(study, PruningSchedule().hash)
        write_json("best.json", export_schedule(store.best(study, max_flops=study.spec.limit), study, dense))

    Args:
        evaluation: an evaluation that is done.
        study: the study that it belongs to.
        dense: the dense model's confirmed score, if there is one; it is compared with a confirmed evaluation.
        chosen_by_score: whether a bound on the reported score chose the evaluation.

    Returns:
        The format `prunefront.schedule`, version 1, which `PruningSchedule.from_dict` reads.
    """
    (row,) = front_rows([evaluation], study, dense)
    spec = study.spec
    height, width = spec.img_size
    form = evaluation.schedule.as_dict()
    return {
        "format": form["format"],
        "version": form["version"],
        "model": spec.model,
        "img_size": height if height == width else [height, width],
        "num_classes": spec.num_classes,
        "steps": form["steps"],
        "method": form["method"],
        "metrics": {
            **{name: value for name, value in row.items() if name not in ("schedule", "hash")},
            "agreement": evaluation.reported.agreement,
            "chosen_on_these_images": chosen_by_score or not evaluation.confirmed or row["confirmed_on_searched"],
            "dense_top1": dense.top1 if dense is not None and evaluation.confirmed else spec.dense_top1,
            "dense_flops": spec.dense_flops,
        },
        "provenance": {
            "study": spec.name,
            "schedule": evaluation.schedule.text,
            "hash": evaluation.hash,
            "number": evaluation.number,
            "origin": evaluation.origin,
            "weights_digest": spec.weights_digest,
            "checkpoint": spec.shown_checkpoint,
            "data": spec.shown_data,
            "data_digest": spec.data_digest,
            "images": spec.images,
            "order": spec.order,
            "confirm_split": spec.confirm_split,
            "confirm_images": spec.confirm_images,
            "confirm_digest": spec.confirm_digest,
            "budget": spec.budget,
            "space": spec.space,
            "sampler": spec.sampler,
            "objectives": list(spec.objectives),
            "seed": spec.seed,
            "versions": dict(spec.versions),
            "created": study.created_at.isoformat(),
            "evaluated": evaluation.finished_at.isoformat() if evaluation.finished_at else None,
        },
    }
