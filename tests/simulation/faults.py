"""What may go wrong in a history, chosen by its seed, and the borders at which it goes wrong."""

import errno
import random
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from io import FileIO
from typing import Any, Protocol
from unittest import mock

from sqlalchemy import Engine, create_engine
from sqlalchemy.engine.default import DefaultDialect

from results.store import database
from search.driver import spool as spool_module


class Killed(BaseException):
    """Ends a simulated driver at once, as `kill -9` does: nothing that handles errors handles it."""


@dataclass(frozen=True)
class Rates:
    """How often each fault comes.

    Each history has some kinds of faults and not others, so that rare combinations are not drowned in common faults
    (A. Groce et al., "Swarm testing", ISSTA 2012).

    Attributes:
        kill, error, lost_reply, outage, full, stall, stall_locked, suspend: probability at one statement or commit.
        dies, hangs, twice, late, fails, refused: probability for one task of a worker.
        failovers, jumps, kills, stops: how many in the whole history.
    """

    kill: float = 0.0
    error: float = 0.0
    lost_reply: float = 0.0
    outage: float = 0.0
    full: float = 0.0
    stall: float = 0.0
    stall_locked: float = 0.0
    suspend: float = 0.0
    dies: float = 0.0
    hangs: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    fails: float = 0.0
    refused: float = 0.0
    failovers: int = 0
    jumps: int = 0
    kills: int = 0
    stops: int = 0

    @classmethod
    def draw(cls, chance: random.Random) -> "Rates":
        """Draw the kinds of one history."""
        most = cls(
            kill=0.006, error=0.02, lost_reply=0.1, outage=0.015, full=0.003, stall=0.05, stall_locked=0.001,
            suspend=0.02, dies=0.15, hangs=0.1, twice=0.2, late=0.1, fails=0.1, refused=0.02,
            failovers=2, jumps=2, kills=2, stops=2,
        )  # fmt: skip
        drawn: dict[str, Any] = {}
        for field in fields(cls):
            value = getattr(most, field.name)
            if chance.random() < 0.35:
                drawn[field.name] = chance.randint(1, value) if isinstance(value, int) else value * chance.random()
        return cls(**drawn)


class Border(Protocol):
    """What a world does where its drivers meet the database and the disk."""

    def before(self, statement: str, errors: Any, connection: Any) -> None:
        """Act before a statement or a commit on a connection; may raise."""

    def after(self, statement: str, errors: Any) -> None:
        """Act after a statement or a commit took effect; may raise."""

    def writes(self, size: int) -> int:
        """Return how many of the bytes a spool's file takes; may raise an OSError."""

    def snapshot(self, connection: Any) -> None:
        """Note that a commit took effect."""


@contextmanager
def bordered(border: Border) -> Iterator[None]:
    """Let a border watch every statement and commit of SQLAlchemy, on any engine, and every write of a spool."""
    execute, commit = DefaultDialect.do_execute, DefaultDialect.do_commit

    def do_execute(dialect: Any, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        border.before(statement, dialect.dbapi, cursor.connection)
        execute(dialect, cursor, statement, parameters, context)
        border.after(statement, dialect.dbapi)

    def do_commit(dialect: Any, connection: Any) -> None:
        border.before("COMMIT", dialect.dbapi, connection.driver_connection)
        commit(dialect, connection)
        border.snapshot(connection)
        border.after("COMMIT", dialect.dbapi)

    class SimulatedFile(FileIO):
        def write(self, data: Any, /) -> int:
            return super().write(data[: border.writes(len(data))])

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(DefaultDialect, "do_execute", do_execute))
        stack.enter_context(mock.patch.object(DefaultDialect, "do_commit", do_commit))
        stack.enter_context(mock.patch.object(database, "create_engine", create_shared_engine))
        stack.enter_context(mock.patch.object(spool_module, "FileIO", SimulatedFile))
        stack.enter_context(mock.patch.object(spool_module.os, "fsync", lambda descriptor: None))
        yield


# Dialects and compiled statements: to compile them anew for each driver takes long.
_SHARED: dict[str, Any] = {}


def create_shared_engine(url: Any, **options: Any) -> Engine:
    """Do as SQLAlchemy's `create_engine`, with the compiled statements of all engines of the same kind."""
    engine = create_engine(url, execution_options={"compiled_cache": _SHARED.setdefault("statements", {})}, **options)
    engine.dialect = _SHARED.setdefault(engine.dialect.name, engine.dialect)
    return engine


def lost_connection(errors: Any) -> Exception:
    """Return what a driver of a database raises when its server or its file is away."""
    if errors is sqlite3 or not hasattr(errors, "AdminShutdown"):
        return _sqlite_error(errors, "disk I/O error", sqlite3.SQLITE_IOERR)
    error: Exception = errors.OperationalError("server closed the connection unexpectedly")
    return error


def full_disk(errors: Any) -> Exception:
    """Return what a driver of a database raises when its disk is full."""
    if hasattr(errors, "AdminShutdown"):
        error: Exception = errors.OperationalError("could not extend file: No space left on device")
        return error
    return _sqlite_error(errors, "database or disk is full", sqlite3.SQLITE_FULL)


def no_space() -> OSError:
    """Return what a file on a full disk raises."""
    return OSError(errno.ENOSPC, "No space left on device")


def _sqlite_error(errors: Any, message: str, code: int) -> Exception:
    error: Exception = errors.OperationalError(message)
    error.sqlite_errorcode = code  # type: ignore[attr-defined]
    return error
