"""The first schema: studies, their evaluations and fine-tunings."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "studies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("img_height", sa.Integer(), nullable=False),
        sa.Column("img_width", sa.Integer(), nullable=False),
        sa.Column("num_classes", sa.Integer(), nullable=False),
        sa.Column("layout", sa.JSON(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("data_digest", sa.String(length=64), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("weights_digest", sa.String(length=64), nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=True),
        sa.Column("budget", sa.String(length=64), nullable=False),
        sa.Column("flops_limit", sa.BigInteger(), nullable=False),
        sa.Column("dense_flops", sa.BigInteger(), nullable=False),
        sa.Column("dense_top1", sa.Double(), nullable=False),
        sa.Column("dense_loss", sa.Double(), nullable=False),
        sa.Column("dense_latency_ms", sa.Double(), nullable=True),
        sa.Column("space", sa.Text(), nullable=False),
        sa.Column("sampler", sa.String(length=64), nullable=False),
        sa.Column("objectives", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
        sa.UniqueConstraint("name", name=op.f("uq_studies_name")),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("schedule_hash", sa.String(length=64), nullable=False),
        sa.Column("schedule", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("failure", sa.String(length=16), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("flops", sa.BigInteger(), nullable=False),
        sa.Column("flops_ratio", sa.Double(), nullable=False),
        sa.Column("top1", sa.Double(), nullable=True),
        sa.Column("loss", sa.Double(), nullable=True),
        sa.Column("agreement", sa.Double(), nullable=True),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("origin", sa.String(length=64), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("sampler_state", sa.JSON(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'failed') = (failure IS NOT NULL)", name=op.f("ck_evaluations_failed_has_failure")
        ),
        sa.CheckConstraint(
            "failure IS NULL OR failure IN ('OOM', 'NONFINITE', 'ERROR', 'KILLED', 'TIMEOUT')",
            name=op.f("ck_evaluations_failure"),
        ),
        sa.CheckConstraint(
            "state <> 'done' OR (top1 IS NOT NULL AND loss IS NOT NULL)", name=op.f("ck_evaluations_done_has_metrics")
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'done', 'failed', 'stopped')", name=op.f("ck_evaluations_state")
        ),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name=op.f("fk_evaluations_studies"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("study_id", "number", name=op.f("uq_evaluations_study_id_number")),
        sa.UniqueConstraint("study_id", "schedule_hash", name=op.f("uq_evaluations_study_id_schedule_hash")),
    )
    op.create_index(
        op.f("ix_evaluations_study_id_state_flops_top1"), "evaluations", ["study_id", "state", "flops", "top1"]
    )
    op.create_table(
        "finetunes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("schedule_hash", sa.String(length=64), nullable=False),
        sa.Column("top1", sa.Double(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.Column("epochs", sa.Integer(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=False),
        sa.Column("weights_digest", sa.String(length=64), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("curve", sa.JSON(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id", "schedule_hash"],
            ["evaluations.study_id", "evaluations.schedule_hash"],
            name=op.f("fk_finetunes_evaluations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finetunes")),
    )
    op.create_index(op.f("ix_finetunes_study_id_schedule_hash"), "finetunes", ["study_id", "schedule_hash"])
