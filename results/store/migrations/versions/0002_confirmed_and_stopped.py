"""Confirmed scores, stopped candidates, latency as a ratio, and budgets with a lower end.

Columns are added in place. Other changes in SQLite copy the table and drop the old one, which would delete the rows
that refer to it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns and the table, and fill in what held for older studies."""
    # A NOT NULL column needs a default for existing rows; new rows always have a value.
    for column in (
        sa.Column("flops_least", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("confirm_split", sa.String(length=64), nullable=False, server_default="val"),
        sa.Column("confirm_images", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("confirm_digest", sa.String(length=64), nullable=False, server_default=""),
    ):
        op.add_column("studies", column)
    op.execute(
        "UPDATE studies SET flops_least = flops_limit / 3, confirm_images = images, confirm_digest = data_digest"
    )
    op.add_column("evaluations", sa.Column("latency_ratio", sa.Double(), nullable=True))
    op.add_column("evaluations", sa.Column("outcomes", sa.LargeBinary(), nullable=True))
    op.add_column("evaluations", sa.Column("estimate", sa.Double(), nullable=True))
    # Studies of latency optimised milliseconds; dividing by the dense model's latency keeps their order.
    op.execute(
        "UPDATE evaluations SET latency_ratio = latency_ms / (SELECT NULLIF(dense_latency_ms, 0) FROM studies"
        " WHERE studies.id = study_id)"
        " WHERE study_id IN (SELECT id FROM studies WHERE CAST(objectives AS TEXT) LIKE '%\"latency\"%')"
    )
    op.create_table(
        "confirmations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("schedule_hash", sa.String(length=64), nullable=False),
        sa.Column("top1", sa.Double(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.Column("agreement", sa.Double(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("latency_ratio", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name=op.f("fk_confirmations_studies"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_confirmations")),
        sa.UniqueConstraint("study_id", "schedule_hash", name=op.f("uq_confirmations_study_id_schedule_hash")),
    )
