"""A user whom the system does not know."""

import getpass
import os
from pathlib import Path

import pytest

from search.runtime.user import complete_user


def test_what_is_known_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/some/home")
    monkeypatch.setenv("USER", "someone")
    before = dict(os.environ)
    complete_user()
    assert dict(os.environ) == before


def test_a_number_alone_gets_a_home_and_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    complete_user()
    assert Path.home() == Path("/")
    assert getpass.getuser() == str(os.getuid())
