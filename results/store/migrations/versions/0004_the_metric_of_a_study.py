"""The metric of a study; older studies measure top-1."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column."""
    op.add_column("studies", sa.Column("metric", sa.String(length=32), nullable=False, server_default="top1"))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("studies", "metric")
