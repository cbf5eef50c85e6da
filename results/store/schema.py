"""The tables of the store, the same for SQLite and PostgreSQL.

A change here needs a revision in `migrations/versions`, and its number at the end of `REVISIONS`. A test checks that
the tables and the migrations agree.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from results.records import FAILURES, STATES

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")  # every schema, oldest first
VERSION_TABLE = "prunefront_version"  # not alembic's default name: Optuna's databases use that


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time in UTC; SQLite itself stores no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time with a zone to UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Attach UTC, or convert to it."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The base of all tables. It names every constraint, so that migrations can refer to it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _one_of(column: str, names: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(name) for name in names)})"


class StudyRow(Base):
    """What a study measures; see `StudySpec`."""

    __tablename__ = "studies"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    model: Mapped[str] = mapped_column(String(200))
    img_height: Mapped[int]
    img_width: Mapped[int]
    num_classes: Mapped[int]
    layout: Mapped[dict[str, Any]] = mapped_column(JSON)
    data: Mapped[str] = mapped_column(Text)
    data_digest: Mapped[str] = mapped_column(String(64))
    images: Mapped[int]
    order: Mapped[str] = mapped_column("image_order", String(32), server_default="stratified")  # ORDER is a keyword
    confirm_split: Mapped[str] = mapped_column(String(64))
    confirm_images: Mapped[int]
    confirm_digest: Mapped[str] = mapped_column(String(64))
    weights_digest: Mapped[str] = mapped_column(String(64))
    checkpoint: Mapped[str | None] = mapped_column(Text)
    budget: Mapped[str] = mapped_column(String(64))
    limit: Mapped[int] = mapped_column("flops_limit", BigInteger)  # so is LIMIT
    least: Mapped[int] = mapped_column("flops_least", BigInteger)  # so is LEAST
    dense_flops: Mapped[int] = mapped_column(BigInteger)
    dense_top1: Mapped[float]
    dense_loss: Mapped[float]
    dense_latency_ms: Mapped[float | None]
    space: Mapped[str] = mapped_column(Text)
    sampler: Mapped[str] = mapped_column(String(64))
    objectives: Mapped[list[str]] = mapped_column(JSON)
    metric: Mapped[str] = mapped_column(String(32), server_default="top1")
    seed: Mapped[int] = mapped_column(BigInteger)
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class DriverRow(Base):
    """A process that searches, or searched, a study; see `Driver`."""

    __tablename__ = "drivers"
    __table_args__ = (Index(None, "study_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(BigInteger)
    process_started: Mapped[str] = mapped_column(String(64))
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    others: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    beat_at: Mapped[datetime] = mapped_column(UtcDateTime)
    left_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EvaluationRow(Base):
    """One schedule of a study and its outcome; see `Evaluation`."""

    __tablename__ = "evaluations"
    __table_args__ = (
        UniqueConstraint("study_id", "schedule_hash"),
        UniqueConstraint("study_id", "number"),
        CheckConstraint(_one_of("state", STATES), name="state"),
        CheckConstraint(f"failure IS NULL OR {_one_of('failure', FAILURES)}", name="failure"),
        CheckConstraint("(state = 'failed') = (failure IS NOT NULL)", name="failed_has_failure"),
        CheckConstraint("state <> 'done' OR (top1 IS NOT NULL AND loss IS NOT NULL)", name="done_has_metrics"),
        Index(None, "study_id", "state", "flops", "top1"),
        Index(
            "ix_evaluations_front",
            "study_id",
            postgresql_where=text("on_front"),
            sqlite_where=text("on_front = 1"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    number: Mapped[int]  # 0, 1, … in the order of finishing; -1, -2, … in the order of claiming
    schedule_hash: Mapped[str] = mapped_column(String(64))
    schedule: Mapped[str] = mapped_column(Text)  # canonical text
    state: Mapped[str] = mapped_column(String(16))
    failure: Mapped[str | None] = mapped_column(String(16))
    error: Mapped[str | None] = mapped_column(Text)
    flops: Mapped[int] = mapped_column(BigInteger)
    flops_ratio: Mapped[float]
    top1: Mapped[float | None]
    loss: Mapped[float | None]
    agreement: Mapped[float | None]
    images: Mapped[int]
    latency_ms: Mapped[float | None]
    latency_ratio: Mapped[float | None]
    outcomes: Mapped[bytes | None] = mapped_column(LargeBinary)
    estimate: Mapped[float | None]
    seconds: Mapped[float | None]
    origin: Mapped[str] = mapped_column(String(64))
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    sampler_state: Mapped[dict[str, Any]] = mapped_column(JSON)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    driver_id: Mapped[int | None] = mapped_column(ForeignKey("drivers.id"))
    attempts: Mapped[int] = mapped_column(server_default="1")
    on_front: Mapped[bool] = mapped_column(server_default=false())  # set by `results.store.front_flags`


class ConfirmationRow(Base):
    """A schedule's score on a study's confirming images; see `Confirmation`.

    It has no foreign key to an evaluation, because the dense model is confirmed too.
    """

    __tablename__ = "confirmations"
    __table_args__ = (UniqueConstraint("study_id", "schedule_hash"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    schedule_hash: Mapped[str] = mapped_column(String(64))
    top1: Mapped[float]
    loss: Mapped[float]
    agreement: Mapped[float]
    images: Mapped[int]
    seconds: Mapped[float]
    latency_ms: Mapped[float]
    latency_ratio: Mapped[float]
    finished_at: Mapped[datetime] = mapped_column(UtcDateTime)
    outcomes: Mapped[bytes | None]


class FineTuneRow(Base):
    """One fine-tuning of a schedule of a study; see `FineTune`. A schedule may have several."""

    __tablename__ = "finetunes"
    __table_args__ = (
        ForeignKeyConstraint(
            ["study_id", "schedule_hash"],
            ["evaluations.study_id", "evaluations.schedule_hash"],
            ondelete="CASCADE",
        ),
        Index(None, "study_id", "schedule_hash"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int]
    schedule_hash: Mapped[str] = mapped_column(String(64))
    top1: Mapped[float]
    loss: Mapped[float]
    epochs: Mapped[int]
    images: Mapped[int]
    seconds: Mapped[float]
    checkpoint: Mapped[str] = mapped_column(Text)
    weights_digest: Mapped[str] = mapped_column(String(64))
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    curve: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    finished_at: Mapped[datetime] = mapped_column(UtcDateTime)
    split: Mapped[str | None] = mapped_column(String(64))
    skip: Mapped[int | None]
    order: Mapped[str | None] = mapped_column("image_order", String(32))
    data_digest: Mapped[str | None] = mapped_column(String(64))
    before_top1: Mapped[float | None]
    dense_top1: Mapped[float | None]
