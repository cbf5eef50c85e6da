"""SELECT statements over studies and evaluations; `results.store.row_mapping` turns their rows into values."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    ColumnExpressionArgument,
    Connection,
    Row,
    ScalarSelect,
    Select,
    case,
    func,
    literal,
    select,
)

from results.objectives import objectives_front
from results.records import STATES, Study
from results.store.row_mapping import (
    CONFIRMATION_COLUMNS,
    CONFIRMED_OBJECTIVES,
    EVALUATION_COLUMNS,
    FINETUNE_COLUMNS,
    SAME_SCHEDULE,
    SEARCH_OBJECTIVES,
)
from results.store.schema import ConfirmationRow, EvaluationRow, FineTuneRow, StudyRow


def studies_query(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Select the studies that meet the conditions, oldest first, with their counts; for `read_study`."""
    # Count only in the studies that are asked for: the others may have many evaluations.
    selected = select(StudyRow.id).where(*conditions)
    states = (
        select(
            EvaluationRow.study_id,
            *(func.sum(case((EvaluationRow.state == state, 1), else_=0)).label(state) for state in STATES),
        )
        .where(EvaluationRow.study_id.in_(selected))
        .group_by(EvaluationRow.study_id)
        .subquery()
    )
    confirmed = (
        select(ConfirmationRow.study_id, func.count().label("confirmed"))
        .group_by(ConfirmationRow.study_id)
        .subquery()
    )
    return (
        select(StudyRow.__table__, *(states.c[state] for state in STATES), confirmed.c.confirmed)
        .outerjoin(states, states.c.study_id == StudyRow.id)
        .outerjoin(confirmed, confirmed.c.study_id == StudyRow.id)
        .where(*conditions)
        .order_by(StudyRow.id)
    )


def evaluations_query(study: Study) -> Select[Any]:
    """Select a study's evaluations, each with its confirmation; for `read_evaluation`."""
    return (
        select(*EVALUATION_COLUMNS, literal(study.spec.metric), *CONFIRMATION_COLUMNS)
        .outerjoin(ConfirmationRow, SAME_SCHEDULE)
        .where(EvaluationRow.study_id == study.id)
    )


def finetunes_query(study: Study) -> Select[Any]:
    """Select the fine-tunings of a study, oldest first; for `FineTune`."""
    return select(*FINETUNE_COLUMNS).where(FineTuneRow.study_id == study.id).order_by(FineTuneRow.id)


def finetunes_count(study: Study) -> ScalarSelect[int]:
    """The number of fine-tunings of a study, as a column of another query."""
    return select(func.count()).where(FineTuneRow.study_id == study.id).scalar_subquery()


def reported_rows(
    connection: Connection, study: Study, objectives: Sequence[str], *conditions: ColumnExpressionArgument[bool]
) -> list[Row[Any]]:
    """Return (id, the reported value of each objective) of the evaluations that are done, in their order."""
    done = (EvaluationRow.study_id == study.id, EvaluationRow.state == "done", *conditions)
    searched = select(EvaluationRow.id, *(SEARCH_OBJECTIVES[name] for name in objectives)).where(*done)
    confirmed = (
        select(EvaluationRow.id, *((SEARCH_OBJECTIVES | CONFIRMED_OBJECTIVES)[name] for name in objectives))
        .join_from(ConfirmationRow, EvaluationRow, SAME_SCHEDULE)
        .where(ConfirmationRow.study_id == study.id, *conditions)
    )
    rows = connection.execute(searched.order_by(EvaluationRow.number)).all()
    # There are few confirmations: one query for them is cheaper than an outer join over all evaluations.
    replaced = {row.id: row for row in connection.execute(confirmed)}
    return [replaced.get(row.id, row) for row in rows]


def bounded_front(connection: Connection, study: Study, max_flops: int | None, min_top1: float | None) -> list[int]:
    """Return the ids of the evaluations on the front of those within the bounds, computed from all of them."""
    objectives = study.spec.objectives
    names = list(dict.fromkeys([*objectives, "flops", "top1"]))
    flops, top1 = (1 + names.index(name) for name in ("flops", "top1"))  # the id comes first
    rows = [
        row
        for row in reported_rows(connection, study, names)
        if (max_flops is None or row[flops] <= max_flops) and (min_top1 is None or row[top1] >= min_top1)
    ]
    return [rows[i].id for i in objectives_front([row[1 : 1 + len(objectives)] for row in rows], objectives)]
