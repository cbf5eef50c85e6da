"""A database's password is in nothing that a command prints."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from search.cli import run

ROOT = Path(__file__).parent.parent.parent
SECRET = "hunter2secret"
ADDRESSES = (
    f"postgresql://u:{SECRET}@127.0.0.1:1/d",
    f"postgresql://127.0.0.1:1/d?user=u&password={SECRET}",
    f"postgresql://127.0.0.1:1/d?sslpassword={SECRET}",
    f"mysql://u:{SECRET}@127.0.0.1:1/d",
    f"mysql://127.0.0.1:1/d?password={SECRET}",
    f"postgresql://u:{SECRET}@127.0.0.1:port/d",
)
SEARCH = "search --model vim_nano --data embedded --images 10 --flops-budget 0.6 --trials 2 --study s --workers 1"


@pytest.fixture
def printed(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command that must fail, with tracebacks asked for; return all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEFRONT_DEBUG", "1")

    def call(*arguments: str) -> str:
        assert run(arguments) in (1, 2)
        out, err = capfd.readouterr()
        return out + err

    return call


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "command",
    [
        "front --study s",
        "export --study s --out x.json",
        "report --study s --out x.html",
        "mirror --study s --to sqlite:///optuna.db",
        "studies",
    ],
)
def test_no_command_shows_a_password(printed: Callable[..., str], command: str, address: str) -> None:
    found = printed(*command.split(), "--db", address)
    assert "error: " in found
    assert SECRET not in found


@pytest.mark.parametrize("address", ADDRESSES)
def test_neither_does_a_mirror(printed: Callable[..., str], study_url: str, address: str) -> None:
    assert SECRET not in printed("mirror", "--study", "digits", "--db", study_url, "--to", address)


@pytest.mark.slow
def test_neither_does_a_search(printed: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEFRONT_DB", ADDRESSES[1])
    found = printed(*SEARCH.split())
    assert "error: database postgresql://127.0.0.1:1/d" in found
    assert SECRET not in found


def test_nor_does_an_error_that_is_a_bug(tmp_path: Path) -> None:
    """A traceback shows source lines and no values."""
    program = (
        "import sys, results.store.store, search.cli\n"
        "def broken(self, name): raise RuntimeError('a bug')\n"
        "results.store.store.Store.open = classmethod(broken)\n"
        "search.cli.main(['studies', '--db', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, ADDRESSES[0]],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert "RuntimeError: a bug" in done.stderr
    assert SECRET not in done.stdout + done.stderr
