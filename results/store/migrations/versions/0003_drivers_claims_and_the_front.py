"""Drivers, their claims, and a flag on the evaluations of the front.

Columns are added in place, as in 0002. The foreign key column is added with SQL that both databases accept: alembic
would add the constraint in a second statement, which SQLite does not support.
"""

import json

import sqlalchemy as sa
from alembic import op

from results.objectives import objectives_front

revision = "0003"
down_revision = "0002"

_COLUMNS = {"top1": "top1", "flops": "flops", "loss": "loss", "agreement": "agreement", "latency": "latency_ratio"}


def upgrade() -> None:
    """Add the table and the columns, and flag the front of each study."""
    op.create_table(
        "drivers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("process_started", sa.String(length=64), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("others", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("beat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("left_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_drivers_studies"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drivers")),
    )
    op.create_index(op.f("ix_drivers_study_id"), "drivers", ["study_id"])
    op.execute(
        "ALTER TABLE evaluations ADD COLUMN driver_id INTEGER"
        " CONSTRAINT fk_evaluations_drivers REFERENCES drivers (id)"
    )
    op.add_column("evaluations", sa.Column("attempts", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("evaluations", sa.Column("on_front", sa.Boolean(), nullable=False, server_default=sa.false()))
    _flag_fronts()
    op.create_index(
        "ix_evaluations_front",
        "evaluations",
        ["study_id"],
        postgresql_where=sa.text("on_front"),
        sqlite_where=sa.text("on_front = 1"),
    )


def _flag_fronts() -> None:
    """Set the flag on the front that the pure function finds among the reported scores."""
    connection = op.get_bind()
    e = sa.table(
        "evaluations", *map(sa.column, ("id", "number", "study_id", "schedule_hash", "state", *_COLUMNS.values()))
    )
    c = sa.table("confirmations", *map(sa.column, ("study_id", "schedule_hash", *_COLUMNS.values())))
    studies = connection.execute(sa.text("SELECT id, CAST(objectives AS TEXT) FROM studies")).all()
    for study, text in studies:
        objectives = json.loads(text)
        values = [
            e.c[_COLUMNS[name]] if name == "flops" else sa.func.coalesce(c.c[_COLUMNS[name]], e.c[_COLUMNS[name]])
            for name in objectives
        ]
        rows = connection.execute(
            sa.select(e.c.id, *values)
            .select_from(
                e.outerjoin(c, sa.and_(c.c.study_id == e.c.study_id, c.c.schedule_hash == e.c.schedule_hash))
            )
            .where(e.c.study_id == study, e.c.state == "done")
            .order_by(e.c.number)
        ).all()
        best = [{"id": rows[i][0]} for i in objectives_front([row[1:] for row in rows], objectives)]
        if best:
            connection.execute(sa.text("UPDATE evaluations SET on_front = TRUE WHERE id = :id"), best)
