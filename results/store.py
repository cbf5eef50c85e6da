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

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, case, func, insert, select, update

from results.database import open_database, store_errors, writing
from results.objectives import objectives_front
from results.records import FAILURES, Confirmation, Evaluation, FineTune, Study, StudySpec
from results.rows import (
    CONFIRMATION,
    CONFIRMED_COLUMNS,
    OBJECTIVE_COLUMNS,
    RECORDED,
    SAME_SCHEDULE,
    SPEC_COLUMNS,
    evaluations_query,
    read_evaluation,
    read_study,
)
from results.schema import ConfirmationRow, EvaluationRow, FineTuneRow, StudyRow
from spaces import PruningSchedule
from spaces.errors import StoreError, UnknownNameError, UsageError


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
        values = {name: getattr(spec, name) for name in SPEC_COLUMNS}
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
        counts = (
            select(
                EvaluationRow.study_id,
                *(func.sum(case((EvaluationRow.state == state, 1), else_=0)).label(state) for state in RECORDED),
            )
            .group_by(EvaluationRow.study_id)
            .subquery()
        )
        confirmed = (
            select(ConfirmationRow.study_id, func.count().label("confirmed"))
            .group_by(ConfirmationRow.study_id)
            .subquery()
        )
        query = (
            select(StudyRow.__table__, *(counts.c[state] for state in RECORDED), confirmed.c.confirmed)
            .outerjoin(counts, counts.c.study_id == StudyRow.id)
            .outerjoin(confirmed, confirmed.c.study_id == StudyRow.id)
            .where(*conditions)
            .order_by(StudyRow.id)
        )
        with store_errors(self.where), self._engine.connect() as connection:
            return [read_study(row) for row in connection.execute(query)]

    # --- evaluations ------------------------------------------------------------------------------------

    def record(self, study: Study, evaluation: Evaluation) -> bool:
        """Write an evaluation that is done, failed or stopped, and give it the next number of the study.

        Returns:
            False, and nothing is written, if the study has an evaluation of that schedule already.

        Raises:
            StoreError: the evaluation contradicts itself or holds a NaN or an infinity.
        """
        _check_evaluation(evaluation)
        of_study = EvaluationRow.study_id == study.id
        with store_errors(self.where), writing(self._engine).begin() as connection:
            _take_turns(connection, study)
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
                    latency_ratio=evaluation.latency_ratio,
                    outcomes=evaluation.outcomes,
                    estimate=evaluation.estimate,
                    seconds=evaluation.seconds,
                    origin=evaluation.origin,
                    parameters=dict(evaluation.parameters),
                    sampler_state=dict(evaluation.sampler_state),
                    finished_at=evaluation.finished_at or datetime.now(UTC),
                )
            )
        return True

    def evaluation(self, study: Study, schedule_hash: str) -> Evaluation | None:
        """Return what is recorded of a schedule, in whatever state; None if nothing is."""
        found = self._evaluations(evaluations_query(study).where(EvaluationRow.schedule_hash == schedule_hash))
        return found[0] if found else None

    def evaluations(self, study: Study, done_only: bool = True) -> list[Evaluation]:
        """Return the evaluations of a study in the order they were recorded.

        Args:
            study: whose.
            done_only: leave out the failed and the stopped ones.
        """
        states = ("done",) if done_only else RECORDED
        return self._evaluations(evaluations_query(study).where(EvaluationRow.state.in_(states)))

    def front(self, study: Study, max_flops: int | None = None, min_top1: float | None = None) -> list[Evaluation]:
        """Return the best evaluations within the bounds by the study's own objectives, cheapest first.

        For two objectives and more that is the Pareto front, for one all that share the best value. Only
        evaluations that are done count, each with its standing score: the confirmed one where there is one.
        Of several that are equal in every objective of a Pareto front, the earliest is on it.

        Args:
            study: whose.
            max_flops: the most FLOPs that an evaluation may cost.
            min_top1: the least standing top-1 that it must have, in 0..1.
        """
        objectives = study.spec.objectives
        names = list(dict.fromkeys([*objectives, "top1"]))
        top1 = 1 + names.index("top1")
        query = select(EvaluationRow.id, *(OBJECTIVE_COLUMNS[name] for name in names)).where(
            EvaluationRow.study_id == study.id, EvaluationRow.state == "done"
        )
        if max_flops is not None:
            query = query.where(EvaluationRow.flops <= max_flops)
        confirmed = (
            select(EvaluationRow.id, *((OBJECTIVE_COLUMNS | CONFIRMED_COLUMNS)[name] for name in names))
            .join_from(ConfirmationRow, EvaluationRow, SAME_SCHEDULE)
            .where(ConfirmationRow.study_id == study.id)
        )
        with store_errors(self.where), self._engine.connect() as connection:
            # For top-1 and FLOPs the index alone answers this; the few confirmed ones are then put in.
            rows = connection.execute(query.order_by(EvaluationRow.id)).all()
            standing = {row.id: row for row in connection.execute(confirmed)}
        rows = [standing.get(row.id, row) for row in rows]
        if min_top1 is not None:
            rows = [row for row in rows if row[top1] >= min_top1]
        best = objectives_front([row[1 : 1 + len(objectives)] for row in rows], objectives)
        found = self._evaluations(evaluations_query(study).where(EvaluationRow.id.in_([rows[i].id for i in best])))
        return sorted(found, key=lambda evaluation: evaluation.flops)

    def _evaluations(self, query: Select[Any]) -> list[Evaluation]:
        with store_errors(self.where), self._engine.connect() as connection:
            return [read_evaluation(row) for row in connection.execute(query.order_by(EvaluationRow.number))]

    # --- confirmations ----------------------------------------------------------------------------------

    def confirm(self, study: Study, confirmation: Confirmation) -> None:
        """Write a schedule's score on the confirming images, in place of an earlier one.

        Raises:
            UsageError: the schedule is not dense, and the study has no evaluation of it that is done.
            StoreError: a figure is a NaN or an infinity, or there are no images.
        """
        where = f"confirmation of {confirmation.schedule_hash}"
        _refuse_nonfinite(where, confirmation)
        if confirmation.images < 1:
            raise StoreError(f"{where}: is on {confirmation.images} images")
        values = {f.name: getattr(confirmation, f.name) for f in fields(Confirmation)}
        values |= {"study_id": study.id, "finished_at": confirmation.finished_at or datetime.now(UTC)}
        if confirmation.schedule_hash != PruningSchedule().hash:
            known = self.evaluation(study, confirmation.schedule_hash)
            if known is None or known.state != "done":
                raise UsageError(
                    f"schedule {confirmation.schedule_hash}: study {study.name!r} has no finished evaluation of it"
                )
        same = and_(ConfirmationRow.study_id == study.id, ConfirmationRow.schedule_hash == confirmation.schedule_hash)
        with store_errors(self.where), writing(self._engine).begin() as connection:
            _take_turns(connection, study)
            if connection.execute(update(ConfirmationRow).where(same).values(values)).rowcount == 0:
                connection.execute(insert(ConfirmationRow).values(values))

    def confirmation(self, study: Study, schedule_hash: str) -> Confirmation | None:
        """Return a schedule's confirmed score, for the dense model that of the empty schedule; None without one."""
        query = select(*CONFIRMATION).where(
            ConfirmationRow.study_id == study.id, ConfirmationRow.schedule_hash == schedule_hash
        )
        with store_errors(self.where), self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else Confirmation(*row)

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


# --- checks and locks --------------------------------------------------------------------------------------


def _take_turns(connection: Connection, study: Study) -> None:
    """Let one writer at a time into a study on PostgreSQL; SQLite's transaction holds the only lock anyway."""
    connection.execute(select(StudyRow.id).where(StudyRow.id == study.id).with_for_update())


def _check_evaluation(evaluation: Evaluation) -> None:
    where = f"evaluation of {evaluation.schedule.text or 'the dense model'}"
    _refuse_nonfinite(where, evaluation)
    state = evaluation.state
    if state not in RECORDED:
        raise StoreError(f"{where}: state {state!r} is not one that can be recorded ({', '.join(RECORDED)})")
    if state == "failed":
        if evaluation.failure not in FAILURES:
            raise StoreError(f"{where}: failure {evaluation.failure!r} is none of {', '.join(FAILURES)}")
    elif evaluation.failure is not None:
        raise StoreError(f"{where}: is {state} and yet has the failure {evaluation.failure}")
    if state == "done" and (evaluation.top1 is None or evaluation.loss is None):
        raise StoreError(f"{where}: is done but lacks its top1 or loss")
    if state == "stopped" and evaluation.images < 1:
        raise StoreError(f"{where}: was stopped after {evaluation.images} images; it must have run some")
    if evaluation.outcomes is not None and len(evaluation.outcomes) != (evaluation.images + 7) // 8:
        raise StoreError(
            f"{where}: outcomes of {len(evaluation.outcomes)} bytes do not fit {evaluation.images} images"
        )


def _refuse_nonfinite(where: str, record: StudySpec | Evaluation | Confirmation | FineTune) -> None:
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
