"""Which images the scores of a fine-tuning are of; older ones are of the first images of val."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("finetunes", sa.Column("split", sa.String(length=64), nullable=True))
    op.add_column("finetunes", sa.Column("skip", sa.Integer(), nullable=True))
    op.add_column("finetunes", sa.Column("image_order", sa.String(length=32), nullable=True))
    op.add_column("finetunes", sa.Column("data_digest", sa.String(length=64), nullable=True))
    op.add_column("finetunes", sa.Column("before_top1", sa.Double(), nullable=True))
    op.add_column("finetunes", sa.Column("dense_top1", sa.Double(), nullable=True))


def downgrade() -> None:
    """Drop the columns."""
    for name in ("dense_top1", "before_top1", "data_digest", "image_order", "skip", "split"):
        op.drop_column("finetunes", name)
