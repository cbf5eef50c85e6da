"""Opening a database: what it is, whether it is ours, and bringing it to the present schema.

Nothing here knows studies or evaluations. A file that is not ours is refused before SQLite may write to it.
"""

import importlib.util
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    URL,
    ColumnClause,
    Connection,
    Engine,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    table,
    text,
)
from sqlalchemy import column as sql_column
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool

from results.files import SQLITE_MAGIC
from results.store.schema import REVISIONS, VERSION_TABLE, Base
from spaces.errors import DatabaseError, StoreError, UsageError

BUSY_SECONDS = 60.0  # how long to wait for another writer's lock
_ADVICE = {
    "locked": "another program has held the lock for a minute; try again when it is done",
    "disk I/O error": "check its disk, and what is free on it; what was recorded is safe",
    "full": "free some space and run the same command again; what was recorded is safe",
    "malformed": "the database is damaged; take a copy of it and try `sqlite3 FILE .recover`",
    "readonly": "the file or its folder cannot be written; check who owns them",
    "unable to open": "check the path and who owns it",
}
_FULL = ("disk is full", "disk I/O error", "No space left")
_SQLITE_TRANSIENT = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,  # a network drive that is away, too
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)


def open_database(address: str, create: bool) -> tuple[Engine, str]:
    """Return an engine on a database of the present schema, and its name as it may be shown to anybody.

    Args:
        address: `sqlite:///FILE` or `postgresql://…`.
        create: make what is missing: the file, the tables.

    Raises:
        UsageError: the address is none of the two kinds.
        StoreError: it is missing, not ours, damaged, newer than this program, or cannot be reached.
    """
    url = parse_address(address)
    if url.get_backend_name() == "sqlite":
        where = url.database or ""
        path = Path(where).absolute()
        if create and not os.path.lexists(path):
            _create_sqlite(path, where)
        _refuse_foreign_sqlite(path, where)
        engine = _sqlite_engine(_sqlite_uri(path))
    else:
        where = shown_address(url)
        engine = _postgresql_engine(url)
    try:
        with store_errors(where):
            _bring_up_to_date(engine, where, create)
    except BaseException:
        engine.dispose()
        raise
    return engine, where


def parse_address(address: str) -> URL:
    """Read a database's address; messages never repeat a password."""
    shown = re.sub(r"(?<=://).*@", "***@", address)
    shown = re.sub(r"(?i)(\w*(?:password|secret)\w*=)[^&]*", r"\1***", shown)
    advice = "expected sqlite:///FILE or postgresql://USER@HOST/NAME"
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        hint = f"; for a file write sqlite:///{shown}" if ":" not in address and address else ""
        raise UsageError(f"database {shown!r}: {advice}{hint}") from None
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        if url.host:
            raise UsageError(f"database {shown!r}: a file takes three slashes: sqlite:///{url.host}…")
        if not url.database or url.database == ":memory:":
            raise UsageError(f"database {shown!r}: name a file, such as sqlite:///prunefront.db")
        if url.query:
            raise UsageError(f"database {shown!r}: options after '?' are not understood for SQLite")
    elif url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise UsageError(f"database {shown!r}: {advice}")
    elif "@" in f"{url.host}{url.database}":  # SQLAlchemy ends a password at the first one
        raise UsageError(f"database {shown!r}: write an @ that belongs to a password as %40, and a / as %2F")
    return url


def shown_address(url: URL) -> str:
    """Return an address as it may be shown to anybody, wherever in it a password stands."""
    secret = {name: "***" for name in url.query if re.search("password|secret", name, re.IGNORECASE)}
    return url.update_query_dict(secret).render_as_string(hide_password=True)


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turn what SQLAlchemy raises into a DatabaseError of one line, with advice where there is some."""
    try:
        yield
    except SQLAlchemyError as error:
        original = error.orig if isinstance(error, DBAPIError) else None
        lines = str(original or error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        advice = next((f": {text}" for word, text in _ADVICE.items() if word in reason), "")
        free = free_bytes(where) if any(word in reason for word in _FULL) else None
        left = "" if free is None else f" ({free:,} bytes are free on its disk)"
        raise DatabaseError(f"database {where}: {reason}{left}{advice}", transient(error)) from None


def transient(error: SQLAlchemyError) -> bool:
    """Whether what went wrong may be over later: a connection or a server lost, a lock held, a disk full."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _SQLITE_TRANSIENT  # the rest of the bits tell the kinds of one error apart
    # Of PostgreSQL: its classes 08 (connection), 40 (conflict), 53 (resources), 57 and 58, and what never reached it.
    return error.connection_invalidated or isinstance(error, OperationalError)


def free_bytes(where: str) -> int | None:
    """Return what is free on the disk of a database in a file; None for one behind an address."""
    try:
        return shutil.disk_usage(Path(where).absolute().parent).free
    except OSError:
        return None


def writing(engine: Engine) -> Engine:
    """Return the engine in a mode where a transaction takes SQLite's write lock as it begins.

    Otherwise two writers that have both read can only fail.
    """
    return engine.execution_options(immediate=True)


# --- SQLite ---------------------------------------------------------------------------------------------


def _create_sqlite(path: Path, where: str) -> None:
    """Make a database beside its place and put it there whole, so that no one ever sees half a schema."""
    temporary = path.with_name(f".{path.name[:40]}.{uuid4().hex[:8]}.part")
    try:
        temporary.touch(exist_ok=False)
        try:
            _fill_sqlite(temporary, where)
            with suppress(FileExistsError):  # another process was faster; its database serves
                _link(temporary, path)
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                Path(f"{temporary}{suffix}").unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"database {where}: cannot be made: {error.strerror or error}") from None


def _fill_sqlite(path: Path, where: str) -> None:
    engine = _sqlite_engine(f"{path.as_uri()}?mode=rw")
    try:
        with store_errors(where):
            with writing(engine).begin() as connection:
                _upgrade(connection)
            with closing(engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA journal_mode = WAL")  # stays with the file
    finally:
        engine.dispose()


def _link(source: Path, target: Path) -> None:
    """Give a file its name, and never take it from another file."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(target) from None
        source.rename(target)


class _DamagedError(StoreError):
    """A file that looks damaged, perhaps since its log's pages were being moved into it."""


def _refuse_foreign_sqlite(path: Path, where: str) -> None:
    """Raise a StoreError unless the file is a database of ours, without changing a byte of it."""
    for wait in (0.05, 0.1, 0.2):
        try:
            return _look_at_sqlite(path, where)
        except _DamagedError:
            time.sleep(wait)
    return _look_at_sqlite(path, where)


def _look_at_sqlite(path: Path, where: str) -> None:
    _check_sqlite_header(path, where)
    # An immutable connection takes no lock and recovers no journal. That suffices: a database of ours has
    # its version table from the moment it exists under its name.
    try:
        try:
            tables = _sqlite_tables(f"{path.as_uri()}?mode=ro&immutable=1")
        except sqlite3.DatabaseError:
            if not Path(f"{path}-wal").exists():
                raise
            # A full disk may have cut the moving of the log's pages short: only both together are whole.
            tables = _sqlite_tables(f"{path.as_uri()}?mode=ro")
    except sqlite3.Error as error:
        raise _DamagedError(f"database {where}: {error}: {_ADVICE['malformed']}") from None
    if VERSION_TABLE not in tables:
        raise StoreError(
            f"database {where}: belongs to another program (no table {VERSION_TABLE}); name another with --db"
        )


def _sqlite_tables(uri: str) -> set[str]:
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _check_sqlite_header(path: Path, where: str) -> None:
    try:
        if path.is_dir():
            raise StoreError(f"database {where}: is a folder; name a file")
        with path.open("rb") as file:
            header, size = file.read(100), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise StoreError(
            f"database {where}: does not exist; name another with --db, or make it with `prunefront search`"
        ) from None
    except OSError as error:
        raise StoreError(f"database {where}: cannot be read: {error.strerror or error}") from None
    if size and not header.startswith(SQLITE_MAGIC[: len(header)]):
        raise StoreError(f"database {where}: is not an SQLite database; name another with --db")
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    pages = int.from_bytes(header[28:32], "big")
    recovered = Path(f"{path}-wal").exists()  # after a crash the end of the file may still be in the log
    if len(header) < 100 or (size < page_size * pages and not recovered):
        raise _DamagedError(
            f"database {where}: is cut short at {size} bytes; restore it from a copy, or name another with --db"
        )


def _sqlite_uri(path: Path) -> str:
    """Choose how SQLite opens the file, so that a reader leaves nothing behind."""
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return f"{path.as_uri()}?mode=rw"  # the last connection to close removes the log's files
    # A read-only place. Without a log nobody is writing, and SQLite need not make one to read.
    log = Path(f"{path}-wal").exists()
    return f"{path.as_uri()}?mode=ro" + ("" if log else "&immutable=1")


def _sqlite_engine(uri: str) -> Engine:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool)

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")  # with WAL: safe, and a commit costs no fsync

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:  # the driver's own BEGIN comes too late, before the first write
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


# --- PostgreSQL -----------------------------------------------------------------------------------------


def _postgresql_engine(url: URL) -> Engine:
    if importlib.util.find_spec("psycopg") is None:
        raise StoreError("PostgreSQL needs its driver: run `pip install 'psycopg[binary]'`")
    patience = {} if "connect_timeout" in url.query else {"connect_timeout": 10}  # seconds
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args=patience,
        pool_pre_ping=True,
    )


# --- the schema -----------------------------------------------------------------------------------------


def _bring_up_to_date(engine: Engine, where: str, create: bool) -> None:
    with engine.connect() as connection:
        tables = set(inspect(connection).get_table_names())  # once: another program may be making ours right now
        revision = _revision(connection) if VERSION_TABLE in tables else None
        if revision is None:
            if taken := tables & set(Base.metadata.tables):
                raise StoreError(
                    f"database {where}: holds another program's tables ({', '.join(sorted(taken))}); "
                    "name another with --db"
                )
            if not create:
                raise StoreError(f"database {where}: holds no studies yet; make one with `prunefront search`")
    if revision == REVISIONS[-1]:
        return
    if revision is not None and revision not in REVISIONS:
        raise StoreError(
            f"database {where}: has schema {revision}, this program knows up to {REVISIONS[-1]}; upgrade prunefront"
        )
    with writing(engine).begin() as connection:
        if connection.dialect.name == "postgresql":  # two programs that start at once: one of them upgrades
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('prunefront schema'))"))
        if _revision(connection) != REVISIONS[-1]:
            _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    number: ColumnClause[str] = sql_column("version_num")
    return connection.execute(select(number).select_from(table(VERSION_TABLE, number))).scalar()


_UPGRADING = Lock()  # alembic keeps what it is at in variables of its module, one for all threads


def _upgrade(connection: Connection) -> None:
    from alembic import command  # here, because most commands never need it
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "results.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    with _UPGRADING:
        command.upgrade(config, "head")
