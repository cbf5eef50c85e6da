"""A finished evaluation as a schedule file, and files that are written whole or not at all."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from results.metrics import METRICS
from results.objectives import objective_value, share_interval
from results.records import Confirmation, Evaluation, Study
from spaces.errors import PrunefrontError, UsageError

SQLITE_MAGIC = b"SQLite format 3\0"  # how its files begin


def front_row(evaluation: Evaluation) -> dict[str, Any]:
    """Return the object that `front --format json` prints for one evaluation.

    `top1` is what `metric` names. Top-1, its 95 % interval and loss are the standing ones, on `images` images:
    confirmed where `confirmed` says so, else the search's own. What was not done has none; `images` then says how
    far it got.
    """
    standing, done = evaluation.standing, evaluation.state == "done"
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
            "agreement": evaluation.standing.agreement,
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


def best_evaluation(
    evaluations: Sequence[Evaluation], *, max_flops: int | None = None, min_top1: float | None = None
) -> Evaluation:
    """Return the evaluation of the highest standing top-1 within the bounds; of equal ones the cheapest.

    Args:
        evaluations: in any order; those that are not done do not count.
        max_flops: the most FLOPs it may cost.
        min_top1: the least standing top-1 in 0..1 that it must have.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    done = [(top1, e) for e in evaluations if (top1 := objective_value(e, "top1")) is not None]
    if not done:
        raise UsageError("no finished evaluation to choose from: run `prunefront search` for this study first")
    affordable = [(top1, e) for top1, e in done if max_flops is None or e.flops <= max_flops]
    if not affordable:
        top1, cheapest = min(done, key=lambda one: (one[1].flops, -one[0]))
        raise UsageError(
            f"no schedule costs at most {max_flops} FLOPs: the cheapest is {_describe(cheapest, top1)}; "
            "raise --max-flops"
        )
    top1, best = min(affordable, key=lambda one: (-one[0], one[1].flops))
    if min_top1 is not None and top1 < min_top1:
        bound = "" if max_flops is None else f" at no more than {max_flops} FLOPs"
        label = METRICS[best.metric].label
        raise UsageError(
            f"no schedule has a {label} of at least {min_top1:g}{bound}: the best is {_describe(best, top1)}; "
            "lower --min-top1"
        )
    return best


def _describe(evaluation: Evaluation, top1: float) -> str:
    label = METRICS[evaluation.metric].label
    return (
        f"{evaluation.schedule.text or 'the dense model'} "
        f"({evaluation.flops} FLOPs, {evaluation.flops_ratio:.3f} of dense, {label} {top1:.4f})"
    )


def write_json(path: str | Path, data: object) -> None:
    """Write `data` as indented JSON, whole or not at all.

    Raises:
        PrunefrontError: it cannot be written; whatever stood there stands as before.
    """
    write_whole(path, (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file through a temporary one beside it, so that no reader ever sees half of it.

    Raises:
        PrunefrontError: it cannot be written; whatever stood there stands as before.
        UsageError: a data base stands there.
    """
    target = Path(path)
    try:
        if target.is_file():
            with target.open("rb") as file:
                if file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC:
                    raise UsageError(f"{path}: is a data base; name another file")
        if target.is_dir():
            raise IsADirectoryError(0, "is a folder; name a file")
        if target.exists() and not target.is_file():  # a pipe or device: there is nothing to replace
            target.write_bytes(content)
            return
        target = target.resolve()  # replace what a link points to, not the link
        temporary = target.with_name(f".{target.name[:40]}.{uuid4().hex[:8]}.part")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o777)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)  # it is gone if all went well
    except OSError as error:
        raise PrunefrontError(f"{path}: cannot be written: {error.strerror or error}") from None
