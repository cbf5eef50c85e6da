"""A finished evaluation as a schedule file, and files that are written whole or not at all."""

from typing import Any

from results.objectives import share_interval
from results.records import Confirmation, Evaluation, Study


def front_row(evaluation: Evaluation) -> dict[str, Any]:
    """Return the object that `front --format json` prints for one evaluation.

    `top1` is what `metric` names. Top-1, its 95 % interval and loss are the standing ones, on `images` images:
    confirmed where `confirmed` says so, else the search's own. What was not done has none; `images` then says how
    far it got.
    """
    standing, done = evaluation.reported, evaluation.state == "done"
    low, high = share_interval(evaluation, "top1") or (None, None)
    return {
        "schedule": evaluation.schedule.text,
        "hash": evaluation.hash,
        "top1": standing.top1 if done else None,
        "loss": standing.loss if done else None,
        "flops": evaluation.flops,
        "flops_ratio": evaluation.flops_ratio,
        "images": standing.images,
        "latency_ms": standing.latency_ms,
        "finetuned_top1": evaluation.finetuned_top1,
        "top1_low": low,
        "top1_high": high,
        "confirmed": evaluation.confirmed is not None,
        "search_top1": evaluation.top1 if done else None,
        "search_images": evaluation.images,
        "latency_ratio": standing.latency_ratio,
        "metric": evaluation.metric,
    }


def export_schedule(evaluation: Evaluation, study: Study, dense: Confirmation | None = None) -> dict[str, Any]:
    """Return the JSON form of an evaluation's schedule, with what was measured and where it comes from.

    `img_size` is one number for square images, else [height, width]. The metrics are those of `front_row`.

    Args:
        evaluation: one that is done.
        study: that it belongs to.
        dense: the dense model's confirmed score, if there is one; a confirmed evaluation is set beside it.
    """
    spec, row = study.spec, front_row(evaluation)
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
            "confirm_split": spec.confirm_split,
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
