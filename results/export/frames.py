"""Evaluations as a pandas DataFrame and as Parquet. pandas and pyarrow are imported when they are used."""

import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from results.export.schedule_json import front_row
from results.records import Evaluation
from spaces import PruningSchedule
from spaces.errors import PrunefrontError

if TYPE_CHECKING:
    from pandas import DataFrame

# The type of each column, so that it does not depend on which values are missing.
TYPES: Mapping[str, str] = {
    **dict.fromkeys(("flops", "images", "search_images", "number", "finetuned_runs", "finetuned_images"), "Int64"),
    **dict.fromkeys(("confirmed",), "boolean"),
    **dict.fromkeys(("schedule", "hash", "state", "failure", "error", "origin", "metric", "finetuned_on"), "string"),
    **dict.fromkeys(("top1", "loss", "flops_ratio", "latency_ms", "finetuned_top1", "top1_low"), "Float64"),
    **dict.fromkeys(("top1_high", "search_top1", "latency_ratio", "agreement", "estimate", "seconds"), "Float64"),
    **dict.fromkeys(("finetuned_min", "finetuned_max"), "Float64"),
}


def full_row(evaluation: Evaluation) -> dict[str, Any]:
    """Return the row of an evaluation in any state: the keys of `front_row`, and how it was evaluated."""
    return {
        **front_row(evaluation),
        "number": evaluation.number,
        "state": evaluation.state,
        "failure": evaluation.failure,
        "error": evaluation.error,
        "agreement": evaluation.reported.agreement if evaluation.state == "done" else None,
        "estimate": evaluation.estimate,
        "seconds": evaluation.seconds,
        "origin": evaluation.origin,
        "finished_at": evaluation.finished_at.isoformat() if evaluation.finished_at else None,
    }


def to_frame(evaluations: Sequence[Evaluation]) -> "DataFrame":
    """Return a DataFrame with one row for each evaluation, in their order, and the columns of `full_row`.

    Missing values are NA. The type of a column does not depend on its values: integers stay integers.

    >>> evaluation = Evaluation(PruningSchedule.parse("5:0.8"), 3_000_000, 0.9, top1=0.75, loss=0.9, images=1000)
    >>> to_frame([evaluation])[["schedule", "top1", "flops"]]
      schedule  top1    flops
    0    5:0.8  0.75  3000000

    Raises:
        PrunefrontError: pandas is not installed.
    """
    pandas = _library("pandas")
    columns = list(full_row(Evaluation(PruningSchedule(), 0, 0.0, "failed")))
    frame = pandas.DataFrame([full_row(evaluation) for evaluation in evaluations], columns=columns, dtype=object)
    frame["finished_at"] = pandas.to_datetime(frame["finished_at"], utc=True, format="ISO8601")
    typed: DataFrame = frame.astype(dict(TYPES))
    return typed


def to_parquet(evaluations: Sequence[Evaluation]) -> bytes:
    """Return `to_frame(evaluations)` as the content of a Parquet file.

    Raises:
        PrunefrontError: pandas or pyarrow is not installed.
    """
    _library("pyarrow")
    buffer = io.BytesIO()
    to_frame(evaluations).to_parquet(buffer, index=False, engine="pyarrow")
    return buffer.getvalue()


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise PrunefrontError(f"tables need {name}: run `pip install {name}`") from None
