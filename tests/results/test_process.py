"""The identity of a process, and whether it has ended."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from results.process import Process, has_ended, this_process


def test_a_reused_pid_is_another_process() -> None:
    me = this_process()
    assert not has_ended(me)
    assert has_ended(replace(me, started="another time")), "its PID was reused"
    assert not has_ended(Process("another host", me.pid, "another time")), "nothing is known about other hosts"


@pytest.mark.parametrize(
    ("read_error", "kill_error"), [(PermissionError, None), (FileNotFoundError, PermissionError)]
)
def test_a_hidden_process_has_not_ended(
    monkeypatch: pytest.MonkeyPatch, read_error: type[OSError], kill_error: type[OSError] | None
) -> None:
    """As on systems that mount /proc with hidepid=1 or hidepid=2."""
    me = this_process()

    def hidden(*_: object) -> None:
        raise read_error

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (me.pid, 0)
        if kill_error:
            raise kill_error

    monkeypatch.setattr(Path, "read_text", hidden)
    monkeypatch.setattr(os, "kill", kill)
    assert not has_ended(me)
