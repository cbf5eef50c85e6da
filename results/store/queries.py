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


def searched_rows(
    connection: Connection, study: Study, objectives: Sequence[str], *conditions: ColumnExpressionArgument[bool]
) -> list[Row[Any]]:
    """Return (id, the search's value of each objective) of the evaluations that are done, in their order."""
    columns = (SEARCH_OBJECTIVES[name] for name in objectives)
    done = (EvaluationRow.study_id == study.id, EvaluationRow.state == "done", *conditions)
    found = select(EvaluationRow.id, *columns).where(*done).order_by(EvaluationRow.number)
    return list(connection.execute(found).all())


def bounded_front(connection: Connection, study: Study, max_flops: int) -> list[int]:
    """Return the ids of the front of those evaluations that cost at most so much, computed from all of them."""
    objectives = study.spec.objectives
    rows = searched_rows(connection, study, objectives, EvaluationRow.flops <= max_flops)
    return [rows[i].id for i in objectives_front([row[1:] for row in rows], objectives)]
