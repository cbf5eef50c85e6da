"""Rows of the database and the values of `results.records` that they stand for."""

from dataclasses import fields
from typing import Any

from sqlalchemy import Row, Select, and_, func, literal, select
from sqlalchemy.orm import InstrumentedAttribute

from results.process import Process
from results.records import STATES, Confirmation, Driver, Evaluation, Study, StudySpec
from results.store.schema import ConfirmationRow, EvaluationRow, FineTuneRow
from spaces import PruningSchedule

SPEC_COLUMNS = [f.name for f in fields(StudySpec) if f.name not in ("img_size", "objectives")]
_READ_ONLY = ("finetuned_top1", "metric", "confirmed")  # of an Evaluation, and kept in tables of their own
_COLUMNS = [getattr(EvaluationRow, f.name) for f in fields(Evaluation) if f.name not in _READ_ONLY]
CONFIRMATION = [getattr(ConfirmationRow, f.name) for f in fields(Confirmation)]
SAME_SCHEDULE = and_(
    ConfirmationRow.study_id == EvaluationRow.study_id, ConfirmationRow.schedule_hash == EvaluationRow.schedule_hash
)
OBJECTIVE_COLUMNS: dict[str, InstrumentedAttribute[Any]] = {
    "top1": EvaluationRow.top1,
    "flops": EvaluationRow.flops,
    "loss": EvaluationRow.loss,
    "agreement": EvaluationRow.agreement,
    "latency": EvaluationRow.latency_ratio,
}
CONFIRMED_COLUMNS: dict[str, InstrumentedAttribute[Any]] = {
    "top1": ConfirmationRow.top1,
    "loss": ConfirmationRow.loss,
    "agreement": ConfirmationRow.agreement,
    "latency": ConfirmationRow.latency_ratio,
}


def evaluations_query(study: Study) -> Select[Any]:
    """Select a study's evaluations, for `read_evaluation`."""
    best = (
        select(FineTuneRow.schedule_hash, func.max(FineTuneRow.top1).label("top1"))
        .where(FineTuneRow.study_id == study.id)
        .group_by(FineTuneRow.schedule_hash)
        .subquery()
    )
    return (
        select(*_COLUMNS, best.c.top1, literal(study.spec.metric), *CONFIRMATION)
        .outerjoin(best, best.c.schedule_hash == EvaluationRow.schedule_hash)
        .outerjoin(ConfirmationRow, SAME_SCHEDULE)
        .where(EvaluationRow.study_id == study.id)
    )


def read_evaluation(row: Row[Any]) -> Evaluation:
    """Return the value that a row of `evaluations_query` stands for."""
    values: tuple[Any, ...] = tuple(row)
    own, confirmed = values[: -len(CONFIRMATION)], values[-len(CONFIRMATION) :]
    values = (*own, None if confirmed[0] is None else Confirmation(*confirmed))
    return Evaluation(PruningSchedule.parse(values[0]), *values[1:])


def read_study(row: Row[Any]) -> Study:
    """Return the value that a row of the table of studies, with the counts, stands for."""
    values: dict[str, Any] = dict(row._mapping)
    values |= {"limit": values["flops_limit"], "least": values["flops_least"]}
    spec = StudySpec(
        **{name: values[name] for name in SPEC_COLUMNS},
        img_size=(values["img_height"], values["img_width"]),
        objectives=tuple(values["objectives"]),
    )
    counts = {name: int(values[name] or 0) for name in (*STATES, "confirmed")}
    return Study(values["id"], values["created_at"], spec, **counts)


def read_driver(row: Row[Any]) -> Driver:
    """Return the value that a row of the table of drivers stands for."""
    return Driver(
        row.id,
        Process(row.host, row.pid, row.process_started),
        row.versions,
        row.others,
        row.started_at,
        row.beat_at,
        row.left_at,
    )
