"""Output whose encoding does not hold all of the text, from the command line as users run it."""

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from search.driver.search_setup import SearchSetup
from tests.patience import PATIENCE
from tests.search.conftest import fill

NAME = "größe–日本"


@pytest.fixture
def named_url(search_setup: SearchSetup, tmp_path: Path) -> str:
    """A database with a study whose name is not ASCII."""
    path = tmp_path / "studies.db"
    fill(path, search_setup)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE studies SET name = ?", (NAME,))
    connection.close()
    return f"sqlite:///{path}"


def prunefront(*arguments: str, encoding: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "search", *arguments],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding} | environment,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_table_has_ascii_for_signs_that_the_encoding_lacks(named_url: str, encoding: str) -> None:
    done = prunefront("front", "--study", NAME, "--db", named_url, encoding=encoding)
    assert done.returncode == 0, done.stderr
    head, rule, *rows = done.stdout.decode(encoding).splitlines()
    assert "95 % interval" in head
    assert set(rule) == {"-"}
    assert rows
    assert all("\\u" not in row for row in rows)


def test_names_in_tables_and_errors_are_escaped(named_url: str) -> None:
    table = prunefront("studies", "--db", named_url, encoding="latin-1")
    assert table.returncode == 0, table.stderr
    assert "größe-\\u65e5\\u672c" in table.stdout.decode("latin-1")
    failed = prunefront("front", "--study", "日–本", "--db", named_url, encoding="ascii")
    assert failed.returncode == 2
    assert failed.stderr.startswith(b"error: ")
    assert b"\\u65e5-\\u672c" in failed.stderr
    assert failed.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_means_the_same_in_every_encoding(named_url: str, encoding: str) -> None:
    done = prunefront("studies", "--db", named_url, "--format", "json", encoding=encoding)
    assert [study["study"] for study in json.loads(done.stdout.decode(encoding))] == [NAME]


def test_csv_keeps_different_names_different(named_url: str) -> None:
    done = prunefront("studies", "--db", named_url, "--format", "csv", encoding="ascii")
    (row,) = csv.DictReader(io.StringIO(done.stdout.decode("ascii")))
    assert row["study"] == NAME.encode("ascii", "backslashreplace").decode()


def test_an_error_handler_of_the_user_stays(named_url: str) -> None:
    done = prunefront("studies", "--db", named_url, encoding="ascii:replace")
    assert b"gr??e" in done.stdout


def test_an_argument_that_is_no_text_is_named(named_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "search", "front", "--study", b"digits\xff", "--db", named_url],
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: digits\\udcff: bytes that are no text")
    assert done.stderr.count(b"\n") == 1


def test_messages_do_not_go_to_stdout_if_stderr_is_closed(named_url: str) -> None:
    done = subprocess.run(
        [
            "sh",
            "-c",
            'exec "$@" 2>&-',
            "sh",
            sys.executable,
            "-m",
            "search",
            "front",
            "--study",
            "no",
            "--db",
            named_url,
        ],
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (2, b"")
