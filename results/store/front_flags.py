"""The front of a study, kept in the database as a flag on its evaluations.

The flags change in the transaction that writes an evaluation, so a reader always sees the front that `search_front`
gives for all finished evaluations. A new evaluation is compared with the current front alone: no point off the front
can get onto it because a point is added. Confirmed scores change nothing.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, update

from results.objectives import objectives_front
from results.records import Study
from results.store.queries import searched_rows
from results.store.schema import EvaluationRow


def flag_new(connection: Connection, study: Study, schedule_hash: str) -> None:
    """Update the front with an evaluation that was just written: add it if it belongs, drop what it dominates."""
    front = searched_rows(connection, study, study.spec.objectives, EvaluationRow.on_front)
    new = searched_rows(connection, study, study.spec.objectives, EvaluationRow.schedule_hash == schedule_hash)
    _set_flags(connection, study, [*front, *new], {row.id for row in front})


def flag_all(connection: Connection, study: Study) -> None:
    """Compute the front of a study from all its evaluations, after many were written at once."""
    flagged = select(EvaluationRow.id).where(EvaluationRow.study_id == study.id, EvaluationRow.on_front)
    before = set(connection.execute(flagged).scalars())
    _set_flags(connection, study, searched_rows(connection, study, study.spec.objectives), before)


def _set_flags(connection: Connection, study: Study, rows: Sequence[Row[Any]], before: set[int]) -> None:
    """Flag the front of `rows`, given the ids that are flagged now."""
    after = {rows[i].id for i in objectives_front([row[1:] for row in rows], study.spec.objectives)}
    for ids, value in ((before - after, False), (after - before, True)):
        if ids:
            connection.execute(update(EvaluationRow).where(EvaluationRow.id.in_(ids)).values(on_front=value))
