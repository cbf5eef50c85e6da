"""The store of studies and their evaluations, over SQL.

Any number of processes may write and read: writers of one study take turns, and each schedule is one driver's at a
time (`results.claims`). What comes out are the plain values of `results.records`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, case, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from results.objectives import best_evaluation, objectives_front
from results.process import this_process
from results.records import (
    FINISHED,
    STATES,
    UNFINISHED,
    Claim,
    Confirmation,
    Driver,
    Evaluation,
    FineTune,
    News,
    Study,
    StudySpec,
)
from results.store import claims
from results.store import front_flags as marks
from results.store.database import open_database, store_errors, writing
from results.store.row_mapping import CONFIRMATION, SPEC_COLUMNS, evaluations_query, read_evaluation, read_study
from results.store.schema import ConfirmationRow, EvaluationRow, FineTuneRow, StudyRow
from results.store.validation import check_evaluation, refuse_nonfinite
from spaces import PruningSchedule
from spaces.errors import StoreError, StudyExistsError, UnknownNameError, UsageError


class Store:
    """Studies in one database. Safe to use from several threads; a context manager that closes itself.

    Every method raises a StoreError if the database cannot be read or written.
    """

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine = engine
        self.where = where  # its path or address, without a password

    @classmethod
    def open(cls, url: str, create: bool = False) -> "Store":
        """Open a database, and bring an older one to the present schema.

        Args:
            url: `sqlite:///FILE` or `postgresql://…`.
            create: make the database if it is missing; its folder must be there.

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
            StudyExistsError: there is one of that name, perhaps since a moment ago.
        """
        refuse_nonfinite(f"study {spec.name!r}", spec)
        values = {name: getattr(spec, name) for name in SPEC_COLUMNS}
        values |= {name: dict(values[name]) for name in ("layout", "versions", "config")}
        values |= {"img_height": spec.img_size[0], "img_width": spec.img_size[1]}
        values |= {"objectives": list(spec.objectives), "created_at": datetime.now(UTC)}
        with store_errors(self.where):
            try:
                with writing(self._engine).begin() as connection:
                    connection.execute(insert(StudyRow).values(values))
            except IntegrityError:
                if self._studies(StudyRow.name == spec.name):
                    message = f"study {spec.name!r}: exists already in {self.where}; choose another name"
                    raise StudyExistsError(message) from None
                raise
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
        # Only of the studies that are asked for: there may be many evaluations in others.
        chosen = EvaluationRow.study_id.in_(select(StudyRow.id).where(*conditions))
        counts = (
            select(
                EvaluationRow.study_id,
                *(func.sum(case((EvaluationRow.state == state, 1), else_=0)).label(state) for state in STATES),
            )
            .where(chosen)
            .group_by(EvaluationRow.study_id)
            .subquery()
        )
        confirmed = (
            select(ConfirmationRow.study_id, func.count().label("confirmed"))
            .group_by(ConfirmationRow.study_id)
            .subquery()
        )
        query = (
            select(StudyRow.__table__, *(counts.c[state] for state in STATES), confirmed.c.confirmed)
            .outerjoin(counts, counts.c.study_id == StudyRow.id)
            .outerjoin(confirmed, confirmed.c.study_id == StudyRow.id)
            .where(*conditions)
            .order_by(StudyRow.id)
        )
        with store_errors(self.where), self._engine.connect() as connection:
            return [read_study(row) for row in connection.execute(query)]

    # --- evaluations ------------------------------------------------------------------------------------

    def record(self, study: Study, evaluation: Evaluation, claim: Claim | None = None) -> Evaluation | None:
        """Write an evaluation that is done, failed or stopped, and give it the next number of the study.

        Args:
            study: whose.
            evaluation: what came of a schedule.
            claim: under which it was run. Without one it is written if nobody else is about to: the study does not
                know the schedule, it is queued, or the driver that ran it is gone.

        Returns:
            The evaluation as the database has it, with its number. None, and nothing is written, if the claim is void
            or the study has another evaluation of that schedule. Recording again under the same claim is no error.

        Raises:
            StoreError: the evaluation contradicts itself or holds a NaN or an infinity.
        """
        check_evaluation(evaluation)
        same = and_(EvaluationRow.study_id == study.id, EvaluationRow.schedule_hash == evaluation.hash)
        columns = (EvaluationRow.state, EvaluationRow.driver_id, EvaluationRow.attempts)
        with self._turn(study) as connection:
            row = connection.execute(select(*columns).where(same)).first()
            mine = row is not None and claim == Claim(row.driver_id or 0, row.attempts)
            if row is not None and row.state in FINISHED:
                known = evaluations_query(study).where(EvaluationRow.schedule_hash == evaluation.hash)
                return read_evaluation(connection.execute(known).one()) if mine else None
            if claim is not None and not mine:
                return None
            if claim is None and row is not None and claims.is_running(connection, study, row.driver_id):
                return None
            values = _values(evaluation) | {"number": claims.next_number(connection, study)}
            values |= {"driver_id": None if claim is None else claim.driver}
            if row is None:
                connection.execute(insert(EvaluationRow).values(study_id=study.id, **values))
            else:
                connection.execute(update(EvaluationRow).where(same).values(values))
            if evaluation.state == "done":
                marks.mark_new(connection, study, evaluation.hash)
        return replace(
            evaluation,
            number=values["number"],
            attempts=1 if row is None else row.attempts,
            finished_at=values["finished_at"],
            metric=study.spec.metric,
        )

    def evaluation(self, study: Study, schedule_hash: str) -> Evaluation | None:
        """Return what is recorded of a schedule, in whatever state; None if nothing is."""
        found = self._evaluations(evaluations_query(study).where(EvaluationRow.schedule_hash == schedule_hash))
        return found[0] if found else None

    def evaluations(self, study: Study, done_only: bool = True, unfinished: bool = False) -> list[Evaluation]:
        """Return the evaluations of a study in the order in which they finished.

        Args:
            study: whose.
            done_only: leave out the failed and the stopped ones.
            unfinished: add those that are running or queued, last and in the order in which they were claimed.
        """
        states = ("done",) if done_only else FINISHED
        found = self._evaluations(evaluations_query(study).where(EvaluationRow.state.in_(states)))
        if unfinished:
            found += reversed(self._evaluations(evaluations_query(study).where(EvaluationRow.state.in_(UNFINISHED))))
        return found

    def front(self, study: Study, max_flops: int | None = None, min_top1: float | None = None) -> list[Evaluation]:
        """Return the best evaluations within the bounds by the study's own objectives, cheapest first.

        For two objectives and more that is the Pareto front, for one all that share the best value. Only
        evaluations that are done count, each with its standing score: the confirmed one where there is one.
        Of several that are equal in every objective of a Pareto front, the earliest is on it.

        Args:
            study: whose.
            max_flops: the most FLOPs that an evaluation may cost.
            min_top1: the least standing top-1 that it must have.
        """
        bounds = {name: bound for name, bound in (("flops", max_flops), ("top1", min_top1)) if bound is not None}
        if bounds.keys() <= set(study.spec.objectives):
            # What beats a point within such a bound is within it, too: the bounded front is on the whole one.
            found = self._evaluations(evaluations_query(study).where(EvaluationRow.on_front))
        else:
            found = self._bounded_front(study, max_flops, min_top1)
        within = [
            evaluation
            for evaluation in found
            if (max_flops is None or evaluation.flops <= max_flops)
            and (min_top1 is None or (evaluation.standing.top1 or 0.0) >= min_top1)
        ]
        return sorted(within, key=lambda evaluation: evaluation.flops)

    def _bounded_front(self, study: Study, max_flops: int | None, min_top1: float | None) -> list[Evaluation]:
        names = [*study.spec.objectives, "flops", "top1"]
        with store_errors(self.where), self._engine.connect() as connection:
            rows = marks.standing_rows(connection, study, list(dict.fromkeys(names)))
        flops, top1 = (1 + list(dict.fromkeys(names)).index(name) for name in ("flops", "top1"))
        rows = [
            row
            for row in rows
            if (max_flops is None or row[flops] <= max_flops) and (min_top1 is None or row[top1] >= min_top1)
        ]
        objectives = study.spec.objectives
        best = objectives_front([row[1 : 1 + len(objectives)] for row in rows], objectives)
        return self._evaluations(evaluations_query(study).where(EvaluationRow.id.in_([rows[i].id for i in best])))

    def best(self, study: Study, *, max_flops: int | None = None, min_top1: float | None = None) -> Evaluation:
        """Return the evaluation of the highest standing top-1 within the bounds; of equal ones the cheapest.

        Args:
            study: whose.
            max_flops: the most FLOPs it may cost.
            min_top1: the least standing top-1 in 0..1 that it must have.

        Raises:
            UsageError: there is none; the message names the nearest.
        """
        # The front of top-1 and FLOPs holds the best and the cheapest, under any bound.
        all_on_front = set(study.spec.objectives) == {"top1", "flops"}
        candidates = self.front(study) if all_on_front else self.evaluations(study)
        return best_evaluation(candidates, max_flops=max_flops, min_top1=min_top1)

    def _evaluations(self, query: Select[Any]) -> list[Evaluation]:
        with store_errors(self.where), self._engine.connect() as connection:
            return [read_evaluation(row) for row in connection.execute(query.order_by(EvaluationRow.number))]

    # --- drivers and claims -----------------------------------------------------------------------------

    def enter(self, study: Study, versions: Mapping[str, str]) -> Driver:
        """Register this process as a driver of a study; it must `beat` from now on, and `leave` in the end."""
        with self._turn(study) as connection:
            return claims.enter(connection, study, this_process(), dict(versions))

    def beat(self, driver: Driver) -> None:
        """Say that a driver is at work, every `claims.BEAT_SECONDS` or so."""
        with store_errors(self.where), writing(self._engine).begin() as connection:
            claims.beat(connection, driver.id)

    def leave(self, study: Study, driver: Driver) -> None:
        """Give back what a driver was running, for others or its next run, and say that it left."""
        with self._turn(study) as connection:
            claims.leave(connection, study, driver.id)

    def drivers(self, study: Study) -> list[Driver]:
        """Return all that ever searched a study, in the order in which they came."""
        with store_errors(self.where), self._engine.connect() as connection:
            return claims.drivers_of(connection, study)

    def claim(self, study: Study, driver: Driver, evaluations: Sequence[Evaluation], trials: int) -> dict[str, Claim]:
        """Claim schedules to run them; see `claims.claim`. To ask again for what one has is no error."""
        with self._turn(study) as connection:
            return claims.claim(connection, study, driver.id, evaluations, trials)

    def take_over(
        self, study: Study, driver: Driver, most: int, trials: int, held: Collection[str] = ()
    ) -> dict[str, tuple[Evaluation, Claim]]:
        """Claim what was queued, or was run by a driver that is gone; see `claims.take_over`."""
        with self._turn(study) as connection:
            return claims.take_over(connection, study, driver.id, most, trials, held)

    def retry(self, study: Study, schedule_hash: str, claim: Claim) -> Claim | None:
        """Begin another attempt of a schedule whose worker was lost; None if the claim is void."""
        with self._turn(study) as connection:
            return claims.retry(connection, study, schedule_hash, claim)

    def news(self, study: Study, driver: Driver, after: int, held: Collection[str] = ()) -> News:
        """Return what finished beyond number `after`, and what others are at; it only reads.

        Args:
            study: whose.
            driver: who asks.
            after: the last number it knows of, -1 for none.
            held: hashes of what it has claimed and not recorded.
        """
        with store_errors(self.where), self._engine.connect() as connection:
            return claims.news(connection, study, driver.id, after, held)

    @contextmanager
    def _turn(self, study: Study) -> Iterator[Connection]:
        """Begin a transaction in which no one else writes to a study.

        PostgreSQL locks the study's row for it; SQLite's transaction holds the only lock anyway.
        """
        with store_errors(self.where), writing(self._engine).begin() as connection:
            connection.execute(select(StudyRow.id).where(StudyRow.id == study.id).with_for_update())
            yield connection

    # --- confirmations ----------------------------------------------------------------------------------

    def confirm(self, study: Study, confirmation: Confirmation) -> None:
        """Write a schedule's score on the confirming images, in place of an earlier one.

        Raises:
            UsageError: the schedule is not dense, and the study has no evaluation of it that is done.
            StoreError: a figure is a NaN or an infinity, or there are no images.
        """
        where = f"confirmation of {confirmation.schedule_hash}"
        refuse_nonfinite(where, confirmation)
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
        with self._turn(study) as connection:
            if connection.execute(update(ConfirmationRow).where(same).values(values)).rowcount == 0:
                connection.execute(insert(ConfirmationRow).values(values))
            marks.mark_all(connection, study)

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
        refuse_nonfinite(f"fine-tuning of {finetune.schedule_hash}", finetune)
        known = self.evaluation(study, finetune.schedule_hash)
        if known is None or known.state in UNFINISHED:
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


def _values(evaluation: Evaluation) -> dict[str, Any]:
    """Return the columns of a finished evaluation, but for those that the store keeps."""
    names = (
        "state", "failure", "error", "flops", "flops_ratio", "top1", "loss", "agreement", "images", "latency_ms",
        "latency_ratio", "outcomes", "estimate", "seconds", "origin",
    )  # fmt: skip
    return {
        **{name: getattr(evaluation, name) for name in names},
        "schedule_hash": evaluation.hash,
        "schedule": evaluation.schedule.text,
        "parameters": dict(evaluation.parameters),
        "sampler_state": dict(evaluation.sampler_state),
        "finished_at": evaluation.finished_at or datetime.now(UTC),
    }
