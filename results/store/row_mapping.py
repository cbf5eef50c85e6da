"""The values of `results.records` as rows of the database, and back."""

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, and_
from sqlalchemy.orm import InstrumentedAttribute

from results.process import Process
from results.records import STATES, Confirmation, Driver, Evaluation, FineTune, Study, StudySpec
from results.store.schema import ConfirmationRow, EvaluationRow, FineTuneRow
from spaces import PruningSchedule

_SPEC_FIELDS = [f.name for f in fields(StudySpec) if f.name not in ("img_size", "objectives")]
_RENAMED = {"limit": "flops_limit", "least": "flops_least", "order": "image_order"}  # fields that SQL has words for
_JOINED_FIELDS = ("finetuned", "metric", "confirmed")  # of an Evaluation, from other tables
EVALUATION_COLUMNS = [getattr(EvaluationRow, f.name) for f in fields(Evaluation) if f.name not in _JOINED_FIELDS]
CONFIRMATION_COLUMNS = [getattr(ConfirmationRow, f.name) for f in fields(Confirmation)]
FINETUNE_COLUMNS = [getattr(FineTuneRow, f.name) for f in fields(FineTune)]
SAME_SCHEDULE = and_(
    ConfirmationRow.study_id == EvaluationRow.study_id, ConfirmationRow.schedule_hash == EvaluationRow.schedule_hash
)
SEARCH_OBJECTIVES: dict[str, InstrumentedAttribute[Any]] = {
    "top1": EvaluationRow.top1,
    "flops": EvaluationRow.flops,
    "loss": EvaluationRow.loss,
    "agreement": EvaluationRow.agreement,
    "latency": EvaluationRow.latency_ratio,
}

# --- from rows ------------------------------------------------------------------------------------------


def read_evaluation(row: Sequence[Any]) -> Evaluation:
    """Return the evaluation in a row of `evaluations_query`, without its fine-tunings."""
    values: tuple[Any, ...] = tuple(row)
    own, (metric, *confirmed) = values[: len(EVALUATION_COLUMNS)], values[len(EVALUATION_COLUMNS) :]
    confirmation = None if confirmed[0] is None else Confirmation(*confirmed)
    return replace(Evaluation(PruningSchedule.parse(own[0]), *own[1:]), metric=metric, confirmed=confirmation)


def read_study(row: Row[Any]) -> Study:
    """Return the study in a row of `studies_query`."""
    values: dict[str, Any] = dict(row._mapping)
    values |= {name: values[column] for name, column in _RENAMED.items()}
    spec = StudySpec(
        **{name: values[name] for name in _SPEC_FIELDS},
        img_size=(values["img_height"], values["img_width"]),
        objectives=tuple(values["objectives"]),
    )
    counts = {name: int(values[name] or 0) for name in (*STATES, "confirmed")}
    return Study(values["id"], values["created_at"], spec, **counts)


def read_driver(row: Row[Any]) -> Driver:
    """Return the driver in a row of the table `drivers`."""
    return Driver(
        row.id,
        Process(row.host, row.pid, row.process_started),
        row.versions,
        row.others,
        row.started_at,
        row.beat_at,
        row.left_at,
    )


# --- to rows --------------------------------------------------------------------------------------------


def study_values(spec: StudySpec) -> dict[str, Any]:
    """Return the columns of a study that is created now."""
    values = {name: getattr(spec, name) for name in _SPEC_FIELDS}
    values |= {name: dict(values[name]) for name in ("layout", "versions", "config")}
    values |= {"img_height": spec.img_size[0], "img_width": spec.img_size[1]}
    return values | {"objectives": list(spec.objectives), "created_at": datetime.now(UTC)}


def planned_values(evaluation: Evaluation) -> dict[str, Any]:
    """Return the columns of an evaluation that are known before it runs."""
    return {
        "schedule_hash": evaluation.hash,
        "schedule": evaluation.schedule.text,
        "flops": evaluation.flops,
        "flops_ratio": evaluation.flops_ratio,
        "images": 0,
        "origin": evaluation.origin,
        "parameters": dict(evaluation.parameters),
        "sampler_state": dict(evaluation.sampler_state),
    }


def finished_values(evaluation: Evaluation) -> dict[str, Any]:
    """Return the columns of a finished evaluation, except its number, driver and attempts, which the store sets."""
    names = (
        "state", "failure", "error", "top1", "loss", "agreement", "images", "latency_ms", "latency_ratio",
        "outcomes", "estimate", "seconds",
    )  # fmt: skip
    return {
        **planned_values(evaluation),
        **{name: getattr(evaluation, name) for name in names},
        "finished_at": evaluation.finished_at or datetime.now(UTC),
    }


def confirmation_values(study: Study, confirmation: Confirmation) -> dict[str, Any]:
    """Return the columns of a confirmation."""
    values = {f.name: getattr(confirmation, f.name) for f in fields(Confirmation)}
    return values | {"study_id": study.id, "finished_at": confirmation.finished_at or datetime.now(UTC)}
