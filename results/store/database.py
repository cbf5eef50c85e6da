"""Opening a database: check that it belongs to prunefront, and upgrade its schema.

Nothing here depends on studies or evaluations. A file of another program is refused before SQLite can write to it.
"""

import importlib.util
import os
import re
import shutil
import sqlite3
import tempfile
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
from spaces.errors import DatabaseError, DatabaseNotFoundError, StoreError, UsageError

LONGEST_ADDRESS = 2_000  # characters
BUSY_SECONDS = 60.0  # the longest wait for another writer's lock
_ADVICE = {
    "locked": "another program has held the lock for a minute; try again when it has finished",
    "disk I/O error": "check its disk and the free space; what was recorded is safe",
    "full": "free some space and run the same command again; what was recorded is safe",
    "malformed": "the database is damaged; copy it and try `sqlite3 FILE .recover`",
    "read-only transaction": "the server is a standby, or set to read only: name the primary one with --db",
    "session is read-only": "the server is a standby, or set to read only: name the primary one with --db",
    "readonly": "the file or its folder cannot be written; check their permissions",
    "unable to open": "check the path and its permissions",
}
_FULL = ("disk is full", "disk I/O error", "No space left")
_SQLITE_TRANSIENT = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,  # also a network drive that is unavailable
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)


def open_database(address: str, create: bool) -> tuple[Engine, str]:
    """Return an engine for a database with the current schema, and its path or address without a password.

    Args:
        address: `sqlite:///FILE` or `postgresql://…`.
        create: create the file or the tables if they do not exist.

    Raises:
        UsageError: the address is neither.
        StoreError: the database does not exist, belongs to another program, is damaged, has a newer schema, or cannot
            be reached.
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


@contextmanager
def unchanged(address: str) -> Iterator[str]:
    """Yield the address of a database with the same studies and the current schema, without upgrading any.

    It is the same address, except for an SQLite file of an older schema, of which a copy is upgraded. So whoever may
    still refuse what a user asked for can read the studies before.

    Raises:
        UsageError, StoreError: as for `open_database`.
    """
    url = parse_address(address)
    if url.get_backend_name() != "sqlite":
        yield address
        return
    where = url.database or ""
    path = Path(where).absolute()
    _refuse_foreign_sqlite(path, where)
    engine = _sqlite_engine(_sqlite_uri(path))
    try:
        with store_errors(where), engine.connect() as connection:
            revision = _revision(connection)
        if revision not in REVISIONS[:-1]:
            yield address
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy.db"
            with (
                store_errors(where),
                closing(engine.raw_connection()) as raw,
                closing(sqlite3.connect(copy)) as target,
            ):
                source = raw.driver_connection
                assert isinstance(source, sqlite3.Connection)
                source.backup(target)
            yield f"sqlite:///{copy}"
    finally:
        engine.dispose()


def parse_address(address: str) -> URL:
    """Parse the address of a database.

    Raises:
        UsageError: it is neither `sqlite:///FILE` nor `postgresql://…`. The message contains no password.
    """
    if len(address) > LONGEST_ADDRESS:
        raise UsageError(f"database: an address of {len(address):,} characters; expected at most {LONGEST_ADDRESS:,}")
    if "\0" in address or "%00" in address or address.encode(errors="replace").decode() != address:
        raise UsageError("database: the address holds a NUL, or bytes that are not valid UTF-8")
    # What stands before an @ may be a password, however the rest is misspelled.
    shown = re.sub(r"(?s)\A(\w[\w+]*://)?.*@", r"\1***@", address)
    shown = re.sub(r"(?i)(\w*(?:password|secret)\w*=)[^&]*", r"\1***", shown)
    advice = "expected sqlite:///FILE or postgresql://USER@HOST/NAME"
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        hint = f"; for a file write sqlite:///{shown}" if ":" not in address and address else ""
        raise UsageError(f"database {shown!r}: {advice}{hint}") from None
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        if url.host:
            raise UsageError(f"database {shown!r}: a path needs three slashes: sqlite:///{url.host}…")
        if not url.database or url.database == ":memory:":
            raise UsageError(f"database {shown!r}: name a file, such as sqlite:///prunefront.db")
        if url.query:
            raise UsageError(f"database {shown!r}: options after '?' are not supported for SQLite")
    elif url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise UsageError(f"database {shown!r}: {advice}")
    elif "@" in f"{url.host}{url.database}":  # SQLAlchemy takes the first @ as the end of the password
        raise UsageError(f"database {shown!r}: in a password, write @ as %40 and / as %2F")
    return url


def shown_address(url: URL) -> str:
    """Return an address with every password in it replaced by asterisks."""
    secret = {name: "***" for name in url.query if re.search("password|secret", name, re.IGNORECASE)}
    return url.update_query_dict(secret).render_as_string(hide_password=True)


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turn errors of SQLAlchemy into a DatabaseError of one line, with advice where there is some."""
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
    """Return whether a retry may succeed: a lost connection, a server that is down, a held lock, a full disk."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _SQLITE_TRANSIENT  # the other bits are the extended error code
    # PostgreSQL: error classes 08 (connection), 40 (conflict), 53 (resources), 57, 58, and lost requests.
    return error.connection_invalidated or isinstance(error, OperationalError)


def free_bytes(where: str) -> int | None:
    """Return the free bytes on the disk of a database file; None for a database server."""
    try:
        return shutil.disk_usage(Path(where).absolute().parent).free
    except OSError:
        return None


def writing(engine: Engine) -> Engine:
    """Return the engine in a mode in which transactions take SQLite's write lock when they begin.

    Without it, of two transactions that read and then write, one must fail.
    """
    return engine.execution_options(immediate=True)


# --- SQLite ---------------------------------------------------------------------------------------------


def _create_sqlite(path: Path, where: str) -> None:
    """Create a database under a temporary name and rename it, so that no process sees an incomplete schema."""
    temporary = path.with_name(f".{path.name[:40]}.{uuid4().hex[:8]}.part")
    try:
        temporary.touch(exist_ok=False)
        try:
            _fill_sqlite(temporary, where)
            with suppress(FileExistsError):  # another process created it first; use that one
                _link(temporary, path)
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                Path(f"{temporary}{suffix}").unlink(missing_ok=True)
    except OSError as error:
        kind = DatabaseNotFoundError if isinstance(error, FileNotFoundError) else StoreError
        raise kind(f"database {where}: cannot be created: {error.strerror or error}") from None


def _fill_sqlite(path: Path, where: str) -> None:
    engine = _sqlite_engine(f"{path.as_uri()}?mode=rw")
    try:
        with store_errors(where):
            with writing(engine).begin() as connection:
                _upgrade(connection)
            with closing(engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA journal_mode = WAL")  # persistent
    finally:
        engine.dispose()


def _link(source: Path, target: Path) -> None:
    """Rename a file without replacing an existing one."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(target) from None
        source.rename(target)


class _DamagedError(StoreError):
    """A file that looks damaged; perhaps another process was just writing the pages of its log into it."""


def _refuse_foreign_sqlite(path: Path, where: str) -> None:
    """Raise a StoreError unless the file is a database of prunefront; the file is not changed."""
    for wait in (0.05, 0.1, 0.2):
        try:
            return _check_sqlite(path, where)
        except _DamagedError:
            time.sleep(wait)
    return _check_sqlite(path, where)


def _check_sqlite(path: Path, where: str) -> None:
    _check_sqlite_header(path, where)
    # An immutable connection takes no lock and recovers no journal. That is enough: a database of prunefront has its
    # version table from the moment it has its name.
    try:
        try:
            tables = _sqlite_tables(f"{path.as_uri()}?mode=ro&immutable=1")
        except sqlite3.DatabaseError:
            if not Path(f"{path}-wal").exists():
                raise
            # A full disk may have interrupted a checkpoint: then only the file and its log together are complete.
            tables = _sqlite_tables(f"{path.as_uri()}?mode=ro")
    except sqlite3.Error as error:
        raise _DamagedError(f"database {where}: {error}: {_ADVICE['malformed']}") from None
    if VERSION_TABLE not in tables:
        raise StoreError(
            f"database {where}: belongs to another program (no table {VERSION_TABLE}); choose another with --db"
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
        raise DatabaseNotFoundError(
            f"database {where}: does not exist; choose another with --db, or create it with `prunefront search`"
        ) from None
    except OSError as error:
        raise StoreError(f"database {where}: cannot be read: {error.strerror or error}") from None
    if size and not header.startswith(SQLITE_MAGIC[: len(header)]):
        raise StoreError(f"database {where}: is not an SQLite database; choose another with --db")
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    pages = int.from_bytes(header[28:32], "big")
    recovered = Path(f"{path}-wal").exists()  # after a crash, the end of the file may still be in the log
    if len(header) < 100 or (size < page_size * pages and not recovered):
        raise _DamagedError(
            f"database {where}: is truncated at {size} bytes; restore it from a copy, or choose another with --db"
        )


def _sqlite_uri(path: Path) -> str:
    """Return the URI with which SQLite opens the file, so that a reader leaves no files behind."""
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return f"{path.as_uri()}?mode=rw"  # the last connection removes the log when it closes
    # A read-only file or folder. Without a log nobody is writing, and SQLite must not create one.
    log = Path(f"{path}-wal").exists()
    return f"{path.as_uri()}?mode=ro" + ("" if log else "&immutable=1")


def _sqlite_engine(uri: str) -> Engine:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool)

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")  # with WAL this is safe, and a commit needs no fsync

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:  # the driver itself would begin only before the first write
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
        tables = set(inspect(connection).get_table_names())  # read once: another process may be creating ours now
        revision = _revision(connection) if VERSION_TABLE in tables else None
        if revision is None:
            if taken := tables & set(Base.metadata.tables):
                raise StoreError(
                    f"database {where}: has tables of another program ({', '.join(sorted(taken))}); "
                    "choose another with --db"
                )
            if not create:
                raise StoreError(f"database {where}: has no studies yet; create one with `prunefront search`")
    if revision == REVISIONS[-1]:
        return
    if revision is not None and revision not in REVISIONS:
        raise StoreError(
            f"database {where}: has schema {revision}, but this prunefront supports up to {REVISIONS[-1]}; "
            "upgrade prunefront"
        )
    with writing(engine).begin() as connection:
        if connection.dialect.name == "postgresql":  # of two programs that start at once, one upgrades
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('prunefront schema'))"))
        if _revision(connection) != REVISIONS[-1]:
            _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    number: ColumnClause[str] = sql_column("version_num")
    return connection.execute(select(number).select_from(table(VERSION_TABLE, number))).scalar()


_UPGRADING = Lock()  # alembic keeps its state in module variables that all threads share


def _upgrade(connection: Connection) -> None:
    from alembic import command  # slow, and most commands do not need it
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "results.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    with _UPGRADING:
        command.upgrade(config, "head")
