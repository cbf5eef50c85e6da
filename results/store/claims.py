"""Who works on what: drivers of a study, and the schedules that each has claimed.

A driver claims a schedule before it runs it, and records the outcome under that claim. The database decides every
race: a schedule is one row of its study, and a row has one driver. Each change of hands, and each new attempt, counts
`attempts` up, and a record names the attempt that it is of. So what a driver writes about a schedule that was taken
from it is refused, however late it comes.

A driver is gone if it left, if it ran on this host and its process is no more, or if it has not been heard of for
`LEASE_SECONDS` by the database's clock. What a driver that is gone was running is queued before anybody claims.

All functions work on a connection whose transaction the caller began; those that write need the study's lock.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, insert, select, update

from results.process import Process, has_ended
from results.records import UNFINISHED, Claim, Driver, Evaluation, News, Study
from results.store.row_mapping import evaluations_query, read_driver, read_evaluation
from results.store.schema import DriverRow, EvaluationRow

LEASE_SECONDS = 60.0  # of silence until a driver on another host counts as gone
BEAT_SECONDS = 5.0  # between two signs of life


def database_now(connection: Connection) -> datetime:
    """Return the database's time; SQLite has none but this host's."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    moment: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return moment.astimezone(UTC)


# --- drivers --------------------------------------------------------------------------------------------


def drivers_of(connection: Connection, study: Study) -> list[Driver]:
    """Return all that ever searched a study, in the order in which they came."""
    query = select(DriverRow.__table__).where(DriverRow.study_id == study.id).order_by(DriverRow.id)
    return [read_driver(row) for row in connection.execute(query)]


def is_gone(driver: Driver, now: datetime) -> bool:
    """Return whether a driver can be counted on no more; `now` is the database's."""
    silent = (now - driver.beat_at).total_seconds()
    return driver.left_at is not None or silent > LEASE_SECONDS or has_ended(driver.process)


def enter(connection: Connection, study: Study, process: Process, versions: dict[str, str]) -> Driver:
    """Write a new driver."""
    now = database_now(connection)
    others = [driver for driver in _unseen(connection, study, now) if not is_gone(driver, now)]
    values = {
        "study_id": study.id,
        "host": process.host,
        "pid": process.pid,
        "process_started": process.started,
        "versions": versions,
        "others": len(others),
        "started_at": now,
        "beat_at": now,
    }
    driver = connection.execute(insert(DriverRow).values(values).returning(DriverRow.id)).scalar_one()
    return Driver(driver, process, versions, len(others), now, now)


def beat(connection: Connection, driver: int) -> None:
    """Write a sign of life."""
    connection.execute(update(DriverRow).where(DriverRow.id == driver).values(beat_at=database_now(connection)))


def leave(connection: Connection, study: Study, driver: int) -> None:
    """Queue what a driver was running, and note that it left."""
    _queue(connection, study, EvaluationRow.driver_id == driver)
    connection.execute(update(DriverRow).where(DriverRow.id == driver).values(left_at=database_now(connection)))


def _unseen(connection: Connection, study: Study, now: datetime) -> list[Driver]:
    """Return the drivers that may still be at work."""
    recent = DriverRow.beat_at >= now - timedelta(seconds=LEASE_SECONDS)
    query = select(DriverRow.__table__).where(DriverRow.study_id == study.id, DriverRow.left_at.is_(None), recent)
    return [read_driver(row) for row in connection.execute(query)]


# --- claims ---------------------------------------------------------------------------------------------


def claim(
    connection: Connection, study: Study, driver: int, evaluations: Sequence[Evaluation], trials: int
) -> dict[str, Claim]:
    """Claim schedules that nobody runs and that are not finished, in their order, as far as the total allows.

    Args:
        connection: to write with.
        study: whose total of finished and running evaluations never gets above `trials`.
        driver: who claims.
        evaluations: what is known of the schedules beforehand; the rest of each is ignored.
        trials: see `study`.

    Returns:
        The claims by hash; those that the driver has already are among them.
    """
    _reclaim(connection, study, driver)
    wanted = {evaluation.hash: evaluation for evaluation in evaluations}
    columns = (EvaluationRow.schedule_hash, EvaluationRow.state, EvaluationRow.driver_id, EvaluationRow.attempts)
    found = connection.execute(select(*columns).where(_of(study), EvaluationRow.schedule_hash.in_(wanted))).all()
    known = {row.schedule_hash: row for row in found}
    room = trials - _finished(connection, study) - _count(connection, study, EvaluationRow.state == "running")
    last = connection.execute(select(func.min(EvaluationRow.number)).where(_of(study))).scalar()
    number = min(0, 0 if last is None else last)
    claims: dict[str, Claim] = {}
    for schedule_hash, evaluation in wanted.items():
        row = known.get(schedule_hash)
        if row is not None and row.state == "running" and row.driver_id == driver:
            claims[schedule_hash] = Claim(driver, row.attempts)  # the answer to an earlier claim was lost
        elif room > 0 and (row is None or row.state == "queued"):
            room -= 1
            if row is not None:
                claims[schedule_hash] = _take(connection, study, driver, schedule_hash, row.attempts + 1)
                continue
            number -= 1
            values = _beforehand(evaluation) | {"number": number, "driver_id": driver, "attempts": 1}
            connection.execute(insert(EvaluationRow).values(study_id=study.id, state="running", **values))
            claims[schedule_hash] = Claim(driver, 1)
    return claims


def take_over(
    connection: Connection, study: Study, driver: int, most: int, trials: int, held: Collection[str]
) -> dict[str, tuple[Evaluation, Claim]]:
    """Claim what is queued, earliest first, and what this driver is said to run and does not hold.

    Args:
        connection, study, driver, trials: as for `claim`.
        most: how many at most.
        held: hashes of what the driver knows it has claimed.

    Returns:
        What is known of each schedule, and the claim, by hash.
    """
    _reclaim(connection, study, driver)
    lost = (EvaluationRow.state == "running", EvaluationRow.driver_id == driver)
    missed = _evaluations(connection, evaluations_query(study).where(*lost))
    found = [evaluation for evaluation in missed if evaluation.hash not in held]
    taken = {evaluation.hash: (evaluation, Claim(driver, evaluation.attempts)) for evaluation in found[:most]}
    room = trials - _finished(connection, study) - _count(connection, study, EvaluationRow.state == "running")
    fits = max(0, min(most - len(taken), room))
    query = evaluations_query(study).where(EvaluationRow.state == "queued").order_by(EvaluationRow.number.desc())
    for evaluation in _evaluations(connection, query.limit(fits)):
        attempt = evaluation.attempts + 1
        taken[evaluation.hash] = (evaluation, _take(connection, study, driver, evaluation.hash, attempt))
    return taken


def retry(connection: Connection, study: Study, schedule_hash: str, held: Claim) -> Claim | None:
    """Begin another attempt under a claim, since a worker was lost; None if the claim is void."""
    begun = update(EvaluationRow).where(holds(study, schedule_hash, held)).values(attempts=EvaluationRow.attempts + 1)
    return Claim(held.driver, held.attempt + 1) if connection.execute(begun).rowcount else None


def news(connection: Connection, study: Study, driver: int, after: int, held: Collection[str]) -> News:
    """Return what happened in a study beyond number `after`; `held` are the hashes that the driver has claimed."""
    query = evaluations_query(study).where(EvaluationRow.number > max(after, -1)).order_by(EvaluationRow.number)
    finished = _evaluations(connection, query)
    columns = (EvaluationRow.schedule_hash, EvaluationRow.driver_id)
    rows = connection.execute(select(*columns).where(_of(study), EvaluationRow.state.in_(UNFINISHED))).all()
    under_way = [row for row in rows if row.driver_id != driver or row.schedule_hash not in held]
    gone = {None, driver} | (_gone(connection, study) if under_way else set())
    waiting = sum(row.driver_id in gone for row in under_way)
    return News(finished, len(under_way) - waiting, waiting)


def holds(study: Study, schedule_hash: str, held: Claim) -> ColumnElement[bool]:
    """Return the condition that a schedule is still running under a claim: the fence of every write."""
    return (
        _of(study)
        & (EvaluationRow.schedule_hash == schedule_hash)
        & (EvaluationRow.state == "running")
        & (EvaluationRow.driver_id == held.driver)
        & (EvaluationRow.attempts == held.attempt)
    )


def is_running(connection: Connection, study: Study, driver: int | None) -> bool:
    """Return whether a driver of the study is still at work."""
    return driver is not None and driver not in _gone(connection, study)


def next_number(connection: Connection, study: Study) -> int:
    """Return the number of the evaluation that finishes next."""
    return _finished(connection, study)


def _finished(connection: Connection, study: Study) -> int:
    """Count the finished, whose numbers have no holes."""
    last = connection.execute(select(func.max(EvaluationRow.number)).where(_of(study))).scalar()
    return 0 if last is None else max(last, -1) + 1


def _count(connection: Connection, study: Study, condition: ColumnElement[bool]) -> int:
    return connection.execute(
        select(func.count()).select_from(EvaluationRow).where(_of(study), condition)
    ).scalar_one()


def _gone(connection: Connection, study: Study) -> set[int]:
    """Return the drivers that are gone, of those that are said to run something."""
    now = database_now(connection)
    running = select(EvaluationRow.driver_id).where(_of(study), EvaluationRow.state == "running")
    query = select(DriverRow.__table__).where(DriverRow.id.in_(running))
    return {row.id for row in connection.execute(query) if is_gone(read_driver(row), now)}


def _reclaim(connection: Connection, study: Study, asking: int) -> None:
    """Queue what drivers that are gone have left; the one who asks is here, however long it was silent."""
    if gone := _gone(connection, study) - {asking}:
        _queue(connection, study, EvaluationRow.driver_id.in_(gone))


def _queue(connection: Connection, study: Study, condition: ColumnElement[bool]) -> None:
    running = (_of(study), EvaluationRow.state == "running", condition)
    connection.execute(update(EvaluationRow).where(*running).values(state="queued", driver_id=None))


def _take(connection: Connection, study: Study, driver: int, schedule_hash: str, attempt: int) -> Claim:
    same = (_of(study), EvaluationRow.schedule_hash == schedule_hash)
    values = {"state": "running", "driver_id": driver, "attempts": attempt}
    connection.execute(update(EvaluationRow).where(*same).values(values))
    return Claim(driver, attempt)


def _evaluations(connection: Connection, query: Select[Any]) -> list[Evaluation]:
    return [read_evaluation(row) for row in connection.execute(query)]


def _of(study: Study) -> ColumnElement[bool]:
    return EvaluationRow.study_id == study.id


def _beforehand(evaluation: Evaluation) -> dict[str, Any]:
    """Return the columns that are known before a schedule has run."""
    return {
        "schedule_hash": evaluation.hash,
        "schedule": evaluation.schedule.text,
        "flops": evaluation.flops,
        "flops_ratio": evaluation.flops_ratio,
        "images": 0,
        "origin": evaluation.origin,
        "parameters": dict(evaluation.parameters),
        "sampler_state": dict(evaluation.sampler_state),
    }
