"""The store of studies and their evaluations, over SQL.

One process writes at a time: the driver of a search, then whoever records a fine-tuning. Any number may
read meanwhile. What comes out are the plain values of `results.records`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, Select, case, func, insert, select

from results.database import open_database, store_errors, writing
from results.front import pareto_front
from results.records import FAILURES, Evaluation, FineTune, Study, StudySpec
from results.schema import EvaluationRow, FineTuneRow, StudyRow
from spaces import PruningSchedule
from spaces.errors import StoreError, UnknownNameError, UsageError

_SAME_NAME = [f.name for f in fields(StudySpec) if f.name not in ("img_size", "objectives")]


class Store:
    """Studies in one data base. Safe to use from several threads; a context manager that closes itself.

    Every method raises a StoreError if the data base cannot be read or written.
    """

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine = engine
        self.where = where  # its path or address, without a password

    @classmethod
    def open(cls, url: str, create: bool = False) -> "Store":
        """Open a data base, and bring an older one to the present schema.

        Args:
            url: `sqlite:///FILE` or `postgresql://…`.
            create: make the data base if it is missing; its folder must be there.

        Raises:
            UsageError: the address is neither.
            StoreError: it is missing, foreign, cut short, of a newer schema, or cannot be reached. A file
                that is refused is left as it was.
        """
        return cls(*open_database(url, create))

    def close(self) -> None:
        """Give back the connections; SQLite then tidies its log away."""
        self._engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- studies ----------------------------------------------------------------------------------------

    def create_study(self, spec: StudySpec) -> Study:
        """Write a new study.

        Raises:
            StoreError: there is one of that name.
        """
        _refuse_nonfinite(f"study {spec.name!r}", spec)
        values = {name: getattr(spec, name) for name in _SAME_NAME}
        values |= {name: dict(values[name]) for name in ("layout", "versions", "config")}
        values |= {"img_height": spec.img_size[0], "img_width": spec.img_size[1]}
        values |= {"objectives": list(spec.objectives), "created_at": datetime.now(UTC)}
        with store_errors(self.where), writing(self._engine).begin() as connection:
            if connection.execute(select(StudyRow.id).where(StudyRow.name == spec.name)).scalar() is not None:
                raise StoreError(f"study {spec.name!r}: exists already in {self.where}; choose another name")
            connection.execute(insert(StudyRow).values(values))
        return self.study(spec.name)

    def study(self, name: str) -> Study:
        """Return the study of that name.

        Raises:
            UnknownNameError: there is none; the message offers the nearest.
        """
        found = self._studies(StudyRow.name == name)
        if not found:
            with store_errors(self.where), self._engine.connect() as connection:
                raise UnknownNameError("study", name, connection.execute(select(StudyRow.name)).scalars())
        return found[0]

    def studies(self) -> list[Study]:
        """Return all studies, oldest first."""
        return self._studies()

    def _studies(self, *conditions: ColumnElement[bool]) -> list[Study]:
        state = EvaluationRow.state
        counts = (
            select(
                EvaluationRow.study_id,
                func.sum(case((state == "done", 1), else_=0)).label("done"),
                func.sum(case((state == "failed", 1), else_=0)).label("failed"),
            )
            .group_by(EvaluationRow.study_id)
            .subquery()
        )
        query = (
            select(StudyRow.__table__, counts.c.done, counts.c.failed)
            .outerjoin(counts, counts.c.study_id == StudyRow.id)
            .where(*conditions)
            .order_by(StudyRow.id)
        )
        with store_errors(self.where), self._engine.connect() as connection:
            return [_study(row) for row in connection.execute(query)]

    # --- evaluations ------------------------------------------------------------------------------------

    def record(self, study: Study, evaluation: Evaluation) -> bool:
        """Write a finished evaluation, done or failed, and give it the next number of the study.

        Returns:
            False, and nothing is written, if the study has an evaluation of that schedule already.

        Raises:
            StoreError: the evaluation contradicts itself or holds a NaN or an infinity.
        """
        _check_evaluation(evaluation)
        of_study = EvaluationRow.study_id == study.id
        with store_errors(self.where), writing(self._engine).begin() as connection:
            # Takes turns on PostgreSQL; SQLite's transaction holds the only write lock anyway.
            connection.execute(select(StudyRow.id).where(StudyRow.id == study.id).with_for_update())
            same = select(EvaluationRow.id).where(of_study, EvaluationRow.schedule_hash == evaluation.hash)
            if connection.execute(same).scalar() is not None:
                return False
            last = connection.execute(select(func.max(EvaluationRow.number)).where(of_study)).scalar()
            connection.execute(
                insert(EvaluationRow).values(
                    study_id=study.id,
                    number=0 if last is None else last + 1,
                    schedule_hash=evaluation.hash,
                    schedule=evaluation.schedule.text,
                    state=evaluation.state,
                    failure=evaluation.failure,
                    error=evaluation.error,
                    flops=evaluation.flops,
                    flops_ratio=evaluation.flops_ratio,
                    top1=evaluation.top1,
                    loss=evaluation.loss,
                    agreement=evaluation.agreement,
                    images=evaluation.images,
                    latency_ms=evaluation.latency_ms,
                    seconds=evaluation.seconds,
                    origin=evaluation.origin,
                    parameters=dict(evaluation.parameters),
                    sampler_state=dict(evaluation.sampler_state),
                    finished_at=evaluation.finished_at or datetime.now(UTC),
                )
            )
        return True

    def evaluation(self, study: Study, schedule_hash: str) -> Evaluation | None:
        """Return what is recorded of a schedule, done or failed; None if nothing is."""
        found = self._evaluations(_query(study).where(EvaluationRow.schedule_hash == schedule_hash))
        return found[0] if found else None

    def evaluations(self, study: Study, done_only: bool = True) -> list[Evaluation]:
        """Return the evaluations of a study in the order they were recorded; failed ones only if asked for."""
        states = ("done",) if done_only else ("done", "failed")
        return self._evaluations(_query(study).where(EvaluationRow.state.in_(states)))

    def front(self, study: Study, max_flops: int | None = None, min_top1: float | None = None) -> list[Evaluation]:
        """Return the Pareto front of the evaluations within the bounds, cheapest first.

        Only finished evaluations count. Of two that are equal in FLOPs and top-1, the earlier is on it.
        """
        query = select(EvaluationRow.id, EvaluationRow.flops, EvaluationRow.top1).where(
            EvaluationRow.study_id == study.id, EvaluationRow.state == "done"
        )
        # A point that dominates one within the bounds lies within them too, so the order does not matter.
        if max_flops is not None:
            query = query.where(EvaluationRow.flops <= max_flops)
        if min_top1 is not None:
            query = query.where(EvaluationRow.top1 >= min_top1)
        with store_errors(self.where), self._engine.connect() as connection:
            rows = connection.execute(query.order_by(EvaluationRow.id)).all()  # the index alone answers this
        chosen = [rows[i].id for i in pareto_front([(row.flops, row.top1) for row in rows])]
        found = self._evaluations(_query(study).where(EvaluationRow.id.in_(chosen)))
        return sorted(found, key=lambda evaluation: evaluation.flops)

    def _evaluations(self, query: Select[Any]) -> list[Evaluation]:
        with store_errors(self.where), self._engine.connect() as connection:
            return [_evaluation(row) for row in connection.execute(query.order_by(EvaluationRow.number))]

    # --- fine-tunings -----------------------------------------------------------------------------------

    def record_finetune(self, study: Study, finetune: FineTune) -> None:
        """Write the outcome of a fine-tuning beside the evaluation of its schedule.

        Raises:
            UsageError: the study has no evaluation of that schedule.
            StoreError: a figure is a NaN or an infinity.
        """
        _refuse_nonfinite(f"fine-tuning of {finetune.schedule_hash}", finetune)
        if self.evaluation(study, finetune.schedule_hash) is None:
            raise UsageError(
                f"schedule {finetune.schedule_hash}: study {study.name!r} has no evaluation of it; "
                "name the study it was exported from"
            )
        values = {f.name: getattr(finetune, f.name) for f in fields(FineTune)}
        values |= {"study_id": study.id, "finished_at": finetune.finished_at or datetime.now(UTC)}
        values |= {name: dict(values[name]) for name in ("config", "versions")}
        with store_errors(self.where), writing(self._engine).begin() as connection:
            connection.execute(insert(FineTuneRow).values(values))

    def finetunes(self, study: Study) -> list[FineTune]:
        """Return the fine-tunings of a study, oldest first."""
        columns = [getattr(FineTuneRow, f.name) for f in fields(FineTune)]
        query = select(*columns).where(FineTuneRow.study_id == study.id).order_by(FineTuneRow.id)
        with store_errors(self.where), self._engine.connect() as connection:
            return [FineTune(*row) for row in connection.execute(query)]


# --- rows to values and back ------------------------------------------------------------------------------

_COLUMNS = [getattr(EvaluationRow, f.name) for f in fields(Evaluation) if hasattr(EvaluationRow, f.name)]


def _query(study: Study) -> Select[Any]:
    """Select a study's evaluations, in the order of the fields of `Evaluation`."""
    best = (
        select(FineTuneRow.schedule_hash, func.max(FineTuneRow.top1).label("top1"))
        .where(FineTuneRow.study_id == study.id)
        .group_by(FineTuneRow.schedule_hash)
        .subquery()
    )
    return (
        select(*_COLUMNS, best.c.top1)
        .outerjoin(best, best.c.schedule_hash == EvaluationRow.schedule_hash)
        .where(EvaluationRow.study_id == study.id)
    )


def _evaluation(row: Row[Any]) -> Evaluation:
    values: tuple[Any, ...] = tuple(row)
    return Evaluation(PruningSchedule.parse(values[0]), *values[1:])


def _study(row: Row[Any]) -> Study:
    values: dict[str, Any] = dict(row._mapping)
    values["limit"] = values["flops_limit"]
    spec = StudySpec(
        **{name: values[name] for name in _SAME_NAME},
        img_size=(values["img_height"], values["img_width"]),
        objectives=tuple(values["objectives"]),
    )
    return Study(values["id"], values["created_at"], spec, int(values["done"] or 0), int(values["failed"] or 0))


def _check_evaluation(evaluation: Evaluation) -> None:
    where = f"evaluation of {evaluation.schedule.text or 'the dense model'}"
    _refuse_nonfinite(where, evaluation)
    if evaluation.state == "done":
        if evaluation.failure is not None:
            raise StoreError(f"{where}: is done and yet has the failure {evaluation.failure}")
        if evaluation.top1 is None or evaluation.loss is None:
            raise StoreError(f"{where}: is done but lacks its top1 or loss")
    elif evaluation.state != "failed":
        raise StoreError(f"{where}: state {evaluation.state!r} is not one that can be recorded (done, failed)")
    elif evaluation.failure not in FAILURES:
        raise StoreError(f"{where}: failure {evaluation.failure!r} is none of {', '.join(FAILURES)}")


def _refuse_nonfinite(where: str, record: StudySpec | Evaluation | FineTune) -> None:
    """Refuse what a data base cannot hold; SQLite would take a NaN for a missing value without a word."""
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise StoreError(f"{where}: {field.name} is {value}; record it as failed with NONFINITE")
        if isinstance(value, Mapping | list):
            try:
                json.dumps(value if isinstance(value, list) else dict(value), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise StoreError(f"{where}: {field.name} cannot be written as JSON: {error}") from None
