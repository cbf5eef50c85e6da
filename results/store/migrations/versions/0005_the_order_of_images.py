"""The order in which a study evaluates its images; older studies have the stratified one."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column."""
    op.add_column(
        "studies", sa.Column("image_order", sa.String(length=32), nullable=False, server_default="stratified")
    )


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("studies", "image_order")
