"""The store of studies and their evaluations, over SQL.

Any number of processes may read and write at once. Writers of one study wait for each other, and a schedule belongs
to one driver at a time (`results.store.claims`). Methods take and return the plain values of `results.records`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from sqlalchemy import (
    ColumnElement,
    ColumnExpressionArgument,
    Connection,
    Engine,
    Select,
    and_,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from results.finetuned import latest_runs
from results.objectives import best_evaluation
from results.process import this_process
from results.records import (
    FINISHED,
    UNFINISHED,
    Claim,
    Confirmation,
    Driver,
    Evaluation,
    FineTune,
    FineTuned,
    News,
    Study,
    StudySpec,
)
from results.store import claims, front_flags
from results.store.database import open_database, store_errors, writing
from results.store.queries import bounded_front, evaluations_query, finetunes_count, finetunes_query, studies_query
from results.store.row_mapping import (
    CONFIRMATION_COLUMNS,
    confirmation_values,
    finished_values,
    read_evaluation,
    read_study,
    study_values,
)
from results.store.schema import ConfirmationRow, EvaluationRow, FineTuneRow, StudyRow
from results.store.validation import check_confirmation, check_evaluation, refuse_nonfinite
from spaces import PruningSchedule
from spaces.errors import StudyExistsError, UnknownNameError, UsageError


class Store:
    """Studies in one database. Thread-safe; a context manager that closes the connections at its end.

    Every method raises a StoreError if the database cannot be read or written.

    To read the front of a study that a search left behind::

        with Store.open("sqlite:///prunefront.db") as store:
            study = store.study("digits")
            for evaluation in store.front(study, max_flops=study.spec.limit):
                print(evaluation.schedule.text, evaluation.flops, evaluation.reported.top1)

    A new database has no studies:

    >>> with Store.open("sqlite:///new.db", create=True) as store:
    ...     store.studies()
    []

    Attributes:
        where: the path or address of the database, without a password, for messages.
    """

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine = engine
        self.where = where

    @classmethod
    def open(cls, url: str, create: bool = False) -> "Store":
        """Open a database, and upgrade it if its schema is older.

        Args:
            url: `sqlite:///FILE` or `postgresql://…`.
            create: create the database if it does not exist; its folder must exist.

        Raises:
            UsageError: `url` is neither.
            StoreError: the database does not exist, belongs to another program, is truncated, has a newer
                schema, or cannot be reached. A file that is refused is not changed.
        """
        return cls(*open_database(url, create))

    def close(self) -> None:
        """Close the connections; the last one to an SQLite file removes its log."""
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
            StudyExistsError: the database has a study of that name, even if it was created a moment ago.
            StoreError: a number in `spec` is NaN or infinite.
        """
        refuse_nonfinite(f"study {spec.name!r}", spec)
        with store_errors(self.where):
            try:
                with writing(self._engine).begin() as connection:
                    connection.execute(insert(StudyRow).values(study_values(spec)))
            except IntegrityError:
                if self._studies(StudyRow.name == spec.name):
                    message = f"study {spec.name!r}: exists already in {self.where}; choose another name"
                    raise StudyExistsError(message) from None
                raise
        return self.study(spec.name)

    def study(self, name: str) -> Study:
        """Return the study of that name, with its counts at this moment.

        Raises:
            UnknownNameError: there is none; the message suggests similar names.
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
        with store_errors(self.where), self._engine.connect() as connection:
            return [read_study(row) for row in connection.execute(studies_query(*conditions))]

    # --- evaluations ------------------------------------------------------------------------------------

    def record(self, study: Study, evaluation: Evaluation, claim: Claim | None = None) -> Evaluation | None:
        """Write a finished evaluation (done, failed or stopped), and give it the next number of the study.

        Args:
            study: the study.
            evaluation: the outcome of one schedule.
            claim: the claim that it ran under. Without a claim, the evaluation is written only if no active driver
                is running its schedule and it has no result yet.

        Returns:
            The evaluation as the database has it, with its number. None, with nothing written, if the claim is void
            or the schedule has another result. Recording again under the same claim changes nothing.

        Raises:
            StoreError: the evaluation contradicts itself, or a number in it is NaN or infinite.
        """
        check_evaluation(evaluation)
        same = and_(EvaluationRow.study_id == study.id, EvaluationRow.schedule_hash == evaluation.hash)
        columns = (EvaluationRow.state, EvaluationRow.driver_id, EvaluationRow.attempts)
        with self._study_lock(study) as connection:
            row = connection.execute(select(*columns).where(same)).first()
            mine = row is not None and claim == Claim(row.driver_id or 0, row.attempts)
            if row is not None and row.state in FINISHED:
                known = evaluations_query(study).where(EvaluationRow.schedule_hash == evaluation.hash)
                return read_evaluation(connection.execute(known).one()) if mine else None
            if claim is not None and not mine:
                return None
            if claim is None and row is not None and claims.is_active(connection, study, row.driver_id):
                return None
            values = finished_values(evaluation) | {"number": claims.next_number(connection, study)}
            values |= {"driver_id": None if claim is None else claim.driver}
            if row is None:
                connection.execute(insert(EvaluationRow).values(study_id=study.id, **values))
            else:
                connection.execute(update(EvaluationRow).where(same).values(values))
            if evaluation.state == "done":
                front_flags.flag_new(connection, study, evaluation.hash)
        return replace(
            evaluation,
            number=values["number"],
            attempts=1 if row is None else row.attempts,
            finished_at=values["finished_at"],
            metric=study.spec.metric,
        )

    def evaluation(self, study: Study, schedule_hash: str) -> Evaluation | None:
        """Return the evaluation of a schedule, in any state; None if the study has none."""
        same = EvaluationRow.schedule_hash == schedule_hash
        found = self._evaluations(study, evaluations_query(study).where(same))
        return found[0] if found else None

    def evaluations(self, study: Study, done_only: bool = True, unfinished: bool = False) -> list[Evaluation]:
        """Return the evaluations of a study in the order in which they finished.

        Args:
            study: the study.
            done_only: leave out those that failed or were stopped.
            unfinished: append those that are queued or running, in the order in which they were claimed.
        """
        states = ("done",) if done_only else FINISHED
        found = self._evaluations(study, evaluations_query(study).where(EvaluationRow.state.in_(states)))
        if unfinished:
            waiting = evaluations_query(study).where(EvaluationRow.state.in_(UNFINISHED))
            found += reversed(self._evaluations(study, waiting))
        return found

    def front(self, study: Study, max_flops: int | None = None, min_top1: float | None = None) -> list[Evaluation]:
        """Return the best evaluations by the study's objectives and the search's scores, cheapest first.

        With two or more objectives this is the Pareto front: of evaluations that are equal in all of them, the
        earliest. With one objective it is every evaluation that shares the best value. Only evaluations that are
        done count. Confirmed scores do not choose; `min_top1` leaves out points whose reported score is lower.

        Args:
            study: the study.
            max_flops: the most FLOPs an evaluation may cost, for one image.
            min_top1: the least reported top-1, in 0..1.
        """
        if max_flops is None or "flops" in study.spec.objectives:
            # A point that dominates one within the bound is within it too, so the whole front is enough.
            on_front: ColumnExpressionArgument[bool] = EvaluationRow.on_front
        else:
            with store_errors(self.where), self._engine.connect() as connection:
                on_front = EvaluationRow.id.in_(bounded_front(connection, study, max_flops))
        found = [
            evaluation
            for evaluation in self._evaluations(study, evaluations_query(study).where(on_front))
            if (max_flops is None or evaluation.flops <= max_flops)
            and (min_top1 is None or (evaluation.reported.top1 or 0.0) >= min_top1)
        ]
        return sorted(found, key=lambda evaluation: evaluation.flops)

    def best(self, study: Study, *, max_flops: int | None = None, min_top1: float | None = None) -> Evaluation:
        """Return the evaluation with the highest top-1 in the search within the bounds; if several tie, the cheapest.

        Args:
            study: the study.
            max_flops: the most FLOPs it may cost, for one image.
            min_top1: the least reported top-1, in 0..1.

        Raises:
            UsageError: no evaluation is within the bounds; the message names the closest.
        """
        # The front of top-1 and FLOPs contains the best and the cheapest under any bound on FLOPs.
        front_suffices = set(study.spec.objectives) == {"top1", "flops"}
        candidates = self.front(study) if front_suffices else self.evaluations(study)
        return best_evaluation(candidates, max_flops=max_flops, min_top1=min_top1)

    def _evaluations(self, study: Study, query: Select[Any]) -> list[Evaluation]:
        """Return the evaluations that a query selects, in order, each with its latest fine-tunings."""
        with store_errors(self.where), self._engine.connect() as connection:
            counted = query.add_columns(finetunes_count(study)).order_by(EvaluationRow.number)
            rows = [tuple(row) for row in connection.execute(counted)]
            found = [read_evaluation(row[:-1]) for row in rows]
            if not (rows and rows[0][-1]):  # the usual case takes one statement
                return found
            tuned = latest_runs(FineTune(*row) for row in connection.execute(finetunes_query(study)))
        return [replace(e, finetuned=FineTuned.of(tuned[e.hash])) if e.hash in tuned else e for e in found]

    # --- drivers and claims -----------------------------------------------------------------------------

    def enter(self, study: Study, versions: Mapping[str, str]) -> Driver:
        """Register this process as a driver of a study. It must call `beat` regularly, and `leave` at its end."""
        with self._study_lock(study) as connection:
            return claims.register_driver(connection, study, this_process(), dict(versions))

    def beat(self, driver: Driver) -> None:
        """Write a driver's heartbeat, about every `claims.BEAT_SECONDS`."""
        with store_errors(self.where), writing(self._engine).begin() as connection:
            claims.write_heartbeat(connection, driver.id)

    def leave(self, study: Study, driver: Driver) -> None:
        """Release a driver: what it was running goes back to the queue."""
        with self._study_lock(study) as connection:
            claims.release_driver(connection, study, driver.id)

    def drivers(self, study: Study) -> list[Driver]:
        """Return every driver that a study ever had, in the order of registration."""
        with store_errors(self.where), self._engine.connect() as connection:
            return claims.read_drivers(connection, study)

    def claim(self, study: Study, driver: Driver, evaluations: Sequence[Evaluation], trials: int) -> dict[str, Claim]:
        """Claim schedules before running them; see `claims.claim`. Claiming again returns the same claims."""
        with self._study_lock(study) as connection:
            return claims.claim(connection, study, driver.id, evaluations, trials)

    def take_over(
        self, study: Study, driver: Driver, most: int, trials: int, held: Collection[str] = ()
    ) -> dict[str, tuple[Evaluation, Claim]]:
        """Claim what is queued or belonged to an expired driver; see `claims.take_over`."""
        with self._study_lock(study) as connection:
            return claims.take_over(connection, study, driver.id, most, trials, held)

    def retry(self, study: Study, schedule_hash: str, claim: Claim) -> Claim | None:
        """Start another attempt of a schedule whose worker was lost; None if the claim is void."""
        with self._study_lock(study) as connection:
            return claims.retry(connection, study, schedule_hash, claim)

    def news(self, study: Study, driver: Driver, after: int, held: Collection[str] = ()) -> News:
        """Return what finished after evaluation `after`, and what others are running. This only reads.

        Args:
            study: the study.
            driver: the driver that asks.
            after: the last number that it knows of; -1 for none.
            held: hashes of the schedules that it has claimed and not recorded yet.
        """
        with store_errors(self.where), self._engine.connect() as connection:
            return claims.read_news(connection, study, driver.id, after, held)

    @contextmanager
    def _study_lock(self, study: Study) -> Iterator[Connection]:
        """Begin a transaction that keeps other writers off a study.

        On PostgreSQL it locks the study's row; SQLite has one write lock, which every writing transaction takes.
        """
        with store_errors(self.where), writing(self._engine).begin() as connection:
            connection.execute(select(StudyRow.id).where(StudyRow.id == study.id).with_for_update())
            yield connection

    # --- confirmations ----------------------------------------------------------------------------------

    def confirm(self, study: Study, confirmation: Confirmation) -> None:
        """Write the confirmed score of a schedule; it replaces an earlier one.

        Raises:
            UsageError: the schedule is not dense, and the study has no evaluation of it that is done.
            StoreError: a number is NaN or infinite, or there are no images, or outcomes of others.
        """
        check_confirmation(confirmation)
        if confirmation.schedule_hash != PruningSchedule().hash:
            known = self.evaluation(study, confirmation.schedule_hash)
            if known is None or known.state != "done":
                raise UsageError(
                    f"schedule {confirmation.schedule_hash}: study {study.name!r} has no finished evaluation of it"
                )
        values = confirmation_values(study, confirmation)
        same = and_(ConfirmationRow.study_id == study.id, ConfirmationRow.schedule_hash == confirmation.schedule_hash)
        with self._study_lock(study) as connection:
            if connection.execute(update(ConfirmationRow).where(same).values(values)).rowcount == 0:
                connection.execute(insert(ConfirmationRow).values(values))

    def confirmation(self, study: Study, schedule_hash: str) -> Confirmation | None:
        """Return the confirmed score of a schedule, or None; the dense model is the empty schedule."""
        query = select(*CONFIRMATION_COLUMNS).where(
            ConfirmationRow.study_id == study.id, ConfirmationRow.schedule_hash == schedule_hash
        )
        with store_errors(self.where), self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else Confirmation(*row)

    # --- fine-tunings -----------------------------------------------------------------------------------

    def record_finetune(self, study: Study, finetune: FineTune) -> bool:
        """Write the outcome of a fine-tuning beside the evaluation of its schedule, unless it is recorded already.

        The outcome is known by its schedule, the digest of its weights and the images of its scores, so a fine-tuning
        that is reported twice, even by two processes at once, is recorded once.

        Returns:
            Whether it was written now.

        Raises:
            UsageError: the study has no finished evaluation of that schedule.
            StoreError: a figure is a NaN or an infinity.
        """
        refuse_nonfinite(f"fine-tuning of {finetune.schedule_hash}", finetune)
        values = {f.name: getattr(finetune, f.name) for f in fields(FineTune)}
        values |= {"study_id": study.id, "finished_at": finetune.finished_at or datetime.now(UTC)}
        values |= {name: dict(values[name]) for name in ("config", "versions")}
        evaluated = select(EvaluationRow.id).where(
            EvaluationRow.study_id == study.id,
            EvaluationRow.schedule_hash == finetune.schedule_hash,
            EvaluationRow.state.in_(FINISHED),
        )
        recorded = select(FineTuneRow.id).where(
            FineTuneRow.study_id == study.id,
            FineTuneRow.schedule_hash == finetune.schedule_hash,
            FineTuneRow.weights_digest == finetune.weights_digest,
            FineTuneRow.images == finetune.images,
            func.coalesce(FineTuneRow.split, "val") == (finetune.split or "val"),
            func.coalesce(FineTuneRow.skip, 0) == (finetune.skip or 0),
        )
        with self._study_lock(study) as connection:
            if connection.execute(evaluated).first() is None:
                raise UsageError(
                    f"schedule {finetune.schedule_hash}: study {study.name!r} has no evaluation of it; "
                    "name the study it was exported from"
                )
            if connection.execute(recorded).first() is not None:
                return False
            connection.execute(insert(FineTuneRow).values(values))
        return True

    def finetunes(self, study: Study) -> list[FineTune]:
        """Return the fine-tunings of a study, oldest first."""
        with store_errors(self.where), self._engine.connect() as connection:
            return [FineTune(*row) for row in connection.execute(finetunes_query(study))]
