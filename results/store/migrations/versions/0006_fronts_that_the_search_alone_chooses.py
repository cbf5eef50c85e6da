"""The front is chosen by the search's scores alone; confirmations keep the outcome of each image."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from results.objectives import objectives_front

revision = "0006"
down_revision = "0005"

COLUMNS = {"top1": "top1", "flops": "flops", "loss": "loss", "agreement": "agreement", "latency": "latency_ratio"}


def upgrade() -> None:
    """Add the column, and flag the fronts of studies whose confirmed scores had changed them."""
    op.add_column("confirmations", sa.Column("outcomes", sa.LargeBinary(), nullable=True))
    connection = op.get_bind()
    studies = connection.execute(
        sa.text("SELECT id, objectives FROM studies WHERE id IN (SELECT study_id FROM confirmations)")
    ).all()
    for study, stored in studies:
        objectives = json.loads(stored) if isinstance(stored, str) else stored
        columns: list[sa.ColumnElement[Any]] = [sa.column(COLUMNS[name]) for name in objectives]
        done = (sa.column("study_id") == study, sa.column("state") == "done")
        query = sa.select(sa.column("id"), *columns).select_from(sa.table("evaluations")).where(*done)
        rows = connection.execute(query.order_by(sa.column("number"))).all()
        connection.execute(
            sa.text("UPDATE evaluations SET on_front = FALSE WHERE study_id = :study"), {"study": study}
        )
        best = [{"id": rows[i][0]} for i in objectives_front([row[1:] for row in rows], objectives)]
        if best:
            connection.execute(sa.text("UPDATE evaluations SET on_front = TRUE WHERE id = :id"), best)


def downgrade() -> None:
    """Drop the column; the flags stay."""
    op.drop_column("confirmations", "outcomes")
