"""Which driver runs what: the drivers of a study, their leases, and their claims on schedules.

A driver claims a schedule before it runs it, and records the outcome under that claim. A schedule is one row of its
study and has at most one driver, so the database decides every race. Whenever a schedule changes hands or is tried
again, `attempts` goes up, and a record names the attempt that it belongs to. A driver that lost a schedule can
therefore never overwrite it, however late its record arrives: this is a fencing token.

A driver has expired if it was released, if it ran on this host and its process has ended, or if its last heartbeat
is older than `LEASE_SECONDS` by the database's clock. Before anybody claims, the schedules of expired drivers go back
to the queue.

All functions work on a connection whose transaction the caller began. Those that write need the study's lock.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, insert, select, update

from results.process import Process, has_ended
from results.records import UNFINISHED, Claim, Driver, Evaluation, News, Study
from results.store.queries import evaluations_query
from results.store.row_mapping import planned_values, read_driver, read_evaluation
from results.store.schema import DriverRow, EvaluationRow

LEASE_SECONDS = 60.0  # without a heartbeat, after which a driver on another host has expired
BEAT_SECONDS = 5.0  # between two heartbeats


def database_now(connection: Connection) -> datetime:
    """Return the database's time, in UTC; SQLite has no clock but this host's."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    moment: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return moment.astimezone(UTC)


# --- drivers --------------------------------------------------------------------------------------------


def read_drivers(connection: Connection, study: Study) -> list[Driver]:
    """Return every driver that a study ever had, in the order of registration."""
    query = select(DriverRow.__table__).where(DriverRow.study_id == study.id).order_by(DriverRow.id)
    return [read_driver(row) for row in connection.execute(query)]


def has_expired(driver: Driver, now: datetime) -> bool:
    """Return whether a driver has lost its claims; `now` is the database's time."""
    silent = (now - driver.beat_at).total_seconds()
    return driver.left_at is not None or silent > LEASE_SECONDS or has_ended(driver.process)


def register_driver(connection: Connection, study: Study, process: Process, versions: dict[str, str]) -> Driver:
    """Insert a driver, and count the others that are active."""
    now = database_now(connection)
    others = sum(not has_expired(driver, now) for driver in _leased_drivers(connection, study, now))
    values = {
        "study_id": study.id,
        "host": process.host,
        "pid": process.pid,
        "process_started": process.started,
        "versions": versions,
        "others": others,
        "started_at": now,
        "beat_at": now,
    }
    driver = connection.execute(insert(DriverRow).values(values).returning(DriverRow.id)).scalar_one()
    return Driver(driver, process, versions, others, now, now)


def write_heartbeat(connection: Connection, driver: int) -> None:
    """Renew a driver's lease."""
    connection.execute(update(DriverRow).where(DriverRow.id == driver).values(beat_at=database_now(connection)))


def release_driver(connection: Connection, study: Study, driver: int) -> None:
    """Put what a driver was running back in the queue, and end its registration."""
    _queue(connection, study, EvaluationRow.driver_id == driver)
    connection.execute(update(DriverRow).where(DriverRow.id == driver).values(left_at=database_now(connection)))


def _leased_drivers(connection: Connection, study: Study, now: datetime) -> list[Driver]:
    """Return the drivers that were not released and whose lease has not run out; their process may have ended."""
    recent = DriverRow.beat_at >= now - timedelta(seconds=LEASE_SECONDS)
    query = select(DriverRow.__table__).where(DriverRow.study_id == study.id, DriverRow.left_at.is_(None), recent)
    return [read_driver(row) for row in connection.execute(query)]


# --- claims ---------------------------------------------------------------------------------------------


def claim(
    connection: Connection, study: Study, driver: int, evaluations: Sequence[Evaluation], trials: int
) -> dict[str, Claim]:
    """Claim schedules that are neither finished nor running, in the given order, until the total is reached.

    Args:
        connection: a transaction that holds the study's lock.
        study: the study.
        driver: id of the driver that claims.
        evaluations: the schedules, with what is known before they run; other fields are ignored.
        trials: the most evaluations of the study that may be finished or running.

    Returns:
        The claims by hash, those that the driver had already included.
    """
    _queue_expired(connection, study, driver)
    wanted = {evaluation.hash: evaluation for evaluation in evaluations}
    columns = (EvaluationRow.schedule_hash, EvaluationRow.state, EvaluationRow.driver_id, EvaluationRow.attempts)
    found = connection.execute(select(*columns).where(_in(study), EvaluationRow.schedule_hash.in_(wanted))).all()
    known = {row.schedule_hash: row for row in found}
    room = _room(connection, study, trials)
    lowest = connection.execute(select(func.min(EvaluationRow.number)).where(_in(study))).scalar()
    number = min(0, 0 if lowest is None else lowest)
    claims: dict[str, Claim] = {}
    for schedule_hash, evaluation in wanted.items():
        row = known.get(schedule_hash)
        if row is not None and row.state == "running" and row.driver_id == driver:
            claims[schedule_hash] = Claim(driver, row.attempts)  # the reply to an earlier claim was lost
        elif room > 0 and (row is None or row.state == "queued"):
            room -= 1
            if row is not None:
                claims[schedule_hash] = _assign(connection, study, driver, schedule_hash, row.attempts + 1)
                continue
            number -= 1
            values = planned_values(evaluation) | {"number": number, "driver_id": driver, "attempts": 1}
            connection.execute(insert(EvaluationRow).values(study_id=study.id, state="running", **values))
            claims[schedule_hash] = Claim(driver, 1)
    return claims


def take_over(
    connection: Connection, study: Study, driver: int, most: int, trials: int, held: Collection[str]
) -> dict[str, tuple[Evaluation, Claim]]:
    """Claim what is queued, earliest first, after claims of this driver that it does not know of.

    Args:
        connection, study, driver, trials: as for `claim`.
        most: the most schedules to claim.
        held: hashes of the schedules that the driver knows it has claimed.

    Returns:
        By hash, what is known of each schedule, and the claim.
    """
    _queue_expired(connection, study, driver)
    own = (EvaluationRow.state == "running", EvaluationRow.driver_id == driver)
    running = _evaluations(connection, evaluations_query(study).where(*own))
    unknown = [evaluation for evaluation in running if evaluation.hash not in held]
    claimed = {evaluation.hash: (evaluation, Claim(driver, evaluation.attempts)) for evaluation in unknown[:most]}
    limit = max(0, min(most - len(claimed), _room(connection, study, trials)))
    queued = evaluations_query(study).where(EvaluationRow.state == "queued").order_by(EvaluationRow.number.desc())
    for evaluation in _evaluations(connection, queued.limit(limit)):
        attempt = evaluation.attempts + 1
        claimed[evaluation.hash] = (evaluation, _assign(connection, study, driver, evaluation.hash, attempt))
    return claimed


def retry(connection: Connection, study: Study, schedule_hash: str, claim: Claim) -> Claim | None:
    """Start another attempt under a claim, because a worker was lost; None if the claim is void."""
    started = (
        update(EvaluationRow).where(is_valid(study, schedule_hash, claim)).values(attempts=EvaluationRow.attempts + 1)
    )
    return Claim(claim.driver, claim.attempt + 1) if connection.execute(started).rowcount else None


def read_news(connection: Connection, study: Study, driver: int, after: int, held: Collection[str]) -> News:
    """Return what changed in a study after evaluation `after`, for a driver that has claimed `held`."""
    query = evaluations_query(study).where(EvaluationRow.number > max(after, -1)).order_by(EvaluationRow.number)
    finished = _evaluations(connection, query)
    columns = (EvaluationRow.schedule_hash, EvaluationRow.driver_id)
    rows = connection.execute(select(*columns).where(_in(study), EvaluationRow.state.in_(UNFINISHED))).all()
    others = [row for row in rows if row.driver_id != driver or row.schedule_hash not in held]
    available = {None, driver} | (_expired_drivers(connection, study) if others else set())
    waiting = sum(row.driver_id in available for row in others)
    return News(finished, len(others) - waiting, waiting)


def is_valid(study: Study, schedule_hash: str, claim: Claim) -> ColumnElement[bool]:
    """Return the SQL condition that a schedule is still running under a claim."""
    return (
        _in(study)
        & (EvaluationRow.schedule_hash == schedule_hash)
        & (EvaluationRow.state == "running")
        & (EvaluationRow.driver_id == claim.driver)
        & (EvaluationRow.attempts == claim.attempt)
    )


def is_active(connection: Connection, study: Study, driver: int | None) -> bool:
    """Return whether a schedule's driver is still at work; False for a schedule without one."""
    return driver is not None and driver not in _expired_drivers(connection, study)


def next_number(connection: Connection, study: Study) -> int:
    """Return the number of the evaluation that finishes next, which is how many have finished."""
    last = connection.execute(select(func.max(EvaluationRow.number)).where(_in(study))).scalar()
    return 0 if last is None else max(last, -1) + 1


def _room(connection: Connection, study: Study, trials: int) -> int:
    """Return how many more evaluations may start until `trials` are finished or running; may be negative."""
    query = select(func.count()).select_from(EvaluationRow).where(_in(study), EvaluationRow.state == "running")
    return trials - next_number(connection, study) - connection.execute(query).scalar_one()


def _expired_drivers(connection: Connection, study: Study) -> set[int]:
    """Return the ids of the expired drivers that still own a running schedule."""
    now = database_now(connection)
    owners = select(EvaluationRow.driver_id).where(_in(study), EvaluationRow.state == "running")
    query = select(DriverRow.__table__).where(DriverRow.id.in_(owners))
    return {row.id for row in connection.execute(query) if has_expired(read_driver(row), now)}


def _queue_expired(connection: Connection, study: Study, driver: int) -> None:
    """Queue what expired drivers were running; `driver`, who asks, is alive even if its lease ran out."""
    if expired := _expired_drivers(connection, study) - {driver}:
        _queue(connection, study, EvaluationRow.driver_id.in_(expired))


def _queue(connection: Connection, study: Study, condition: ColumnElement[bool]) -> None:
    running = (_in(study), EvaluationRow.state == "running", condition)
    connection.execute(update(EvaluationRow).where(*running).values(state="queued", driver_id=None))


def _assign(connection: Connection, study: Study, driver: int, schedule_hash: str, attempt: int) -> Claim:
    same = (_in(study), EvaluationRow.schedule_hash == schedule_hash)
    values = {"state": "running", "driver_id": driver, "attempts": attempt}
    connection.execute(update(EvaluationRow).where(*same).values(values))
    return Claim(driver, attempt)


def _evaluations(connection: Connection, query: Select[Any]) -> list[Evaluation]:
    return [read_evaluation(row) for row in connection.execute(query)]


def _in(study: Study) -> ColumnElement[bool]:
    return EvaluationRow.study_id == study.id
