"""A bar on a terminal, lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from search.driver.progress import SearchProgress, Snapshot


def snapshot(done: int, stopped: int = 3, unconfirmed: int | None = None) -> Snapshot:
    return Snapshot(
        done=done,
        stopped=stopped,
        failed=1,
        reused=2,
        trials=40,
        front=3,
        hypervolume=0.51234,
        unconfirmed=unconfirmed,
    )


def test_lines_without_a_terminal_come_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    out = io.StringIO()
    with SearchProgress("s", Console(file=out, width=40)) as progress:
        for done in range(1, 37):
            clock[0] += 1.0
            progress.update(snapshot(done))
    lines = out.getvalue().splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[0] == "s: 5/40: 1 done, 3 stopped early, 1 failed, 2 reused, front 3, hypervolume 0.5123"
    assert lines[1].endswith(", 0:25 left")  # ten evaluations in ten seconds, 25 to go
    assert lines[-1].startswith("s: 40/40: 36 done")  # the end is never left out


def test_the_confirmations_that_are_left_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    out = io.StringIO()
    with SearchProgress("s", Console(file=out, width=40)) as progress:
        for unconfirmed in (5, 4, 3, 2, 1, 0):
            clock[0] += 4.0
            progress.update(snapshot(36, unconfirmed=unconfirmed))
    lines = out.getvalue().splitlines()
    assert [line.rpartition(", ")[2] for line in lines] == ["5 to confirm", "2 to confirm", "0 to confirm"]
    assert all(" left" not in line for line in lines)


def test_a_snapshot_counts_evaluations_in_any_state() -> None:
    assert snapshot(10, stopped=4).recorded == 15
    assert "to confirm" not in snapshot(10).text


@pytest.mark.parametrize("no_color", [True, False])
def test_a_bar_on_a_terminal(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    console = Console(file=out, width=140, force_terminal=True, color_system="standard")
    with SearchProgress("s", console) as progress:
        progress.update(snapshot(10))
        progress.note("a note")
        progress.update(snapshot(20))
    text = out.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "24/40" in plain
    assert "20 done, 3 stopped early, 1 failed, 2 reused, front 3, hypervolume 0.5123" in plain
    assert "a note" in plain
    assert bool(re.search(r"\x1b\[[0-9;]*[39][0-9]m", text)) is not no_color
