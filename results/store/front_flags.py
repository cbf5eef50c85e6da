"""The front of a study kept in the database: a mark on the evaluations that are on it.

A mark is set in the transaction that changes what it says, so no reader ever sees a front that is not the one of
`objectives_front` over all that is done. One new point can only be on the front of the old front and itself, so a
record looks at the front alone; a confirmation may lower a point and uncover others, so it looks at all.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnExpressionArgument, Connection, Row, select, update

from results.objectives import objectives_front
from results.records import Study
from results.store.row_mapping import CONFIRMED_COLUMNS, OBJECTIVE_COLUMNS, SAME_SCHEDULE
from results.store.schema import ConfirmationRow, EvaluationRow


def mark_new(connection: Connection, study: Study, schedule_hash: str) -> None:
    """Put an evaluation that has just been written on the front if it belongs there, and take off what it beats."""
    mine = EvaluationRow.schedule_hash == schedule_hash
    front = standing_rows(connection, study, study.spec.objectives, EvaluationRow.on_front)
    new = standing_rows(connection, study, study.spec.objectives, mine)
    _mark(connection, study, [*front, *new], {row.id for row in front})


def mark_all(connection: Connection, study: Study) -> None:
    """Find the front of a study anew."""
    marked = select(EvaluationRow.id).where(EvaluationRow.study_id == study.id, EvaluationRow.on_front)
    before = set(connection.execute(marked).scalars())
    _mark(connection, study, standing_rows(connection, study, study.spec.objectives), before)


def standing_rows(
    connection: Connection, study: Study, names: Sequence[str], *conditions: ColumnExpressionArgument[bool]
) -> list[Row[Any]]:
    """Return (id, a standing value for each of `names`) of the evaluations that are done, in their order."""
    done = (EvaluationRow.study_id == study.id, EvaluationRow.state == "done", *conditions)
    own = select(EvaluationRow.id, *(OBJECTIVE_COLUMNS[name] for name in names)).where(*done)
    confirmed = (
        select(EvaluationRow.id, *((OBJECTIVE_COLUMNS | CONFIRMED_COLUMNS)[name] for name in names))
        .join_from(ConfirmationRow, EvaluationRow, SAME_SCHEDULE)
        .where(ConfirmationRow.study_id == study.id, *conditions)
    )
    rows = connection.execute(own.order_by(EvaluationRow.number)).all()
    # An outer join would look for a confirmation of each; there are few, so they are put in.
    standing = {row.id: row for row in connection.execute(confirmed)}
    return [standing.get(row.id, row) for row in rows]


def _mark(connection: Connection, study: Study, rows: Sequence[Row[Any]], before: set[int]) -> None:
    after = {rows[i].id for i in objectives_front([row[1:] for row in rows], study.spec.objectives)}
    for ids, value in ((before - after, False), (after - before, True)):
        if ids:
            connection.execute(update(EvaluationRow).where(EvaluationRow.id.in_(ids)).values(on_front=value))
