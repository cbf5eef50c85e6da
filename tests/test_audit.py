"""The audit passes only when every package was looked up."""

import json
import sys
from pathlib import Path

import pytest

from tests.audit import audit

FINE = {"name": "a", "version": "1", "vulns": []}
VULNERABLE = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "b", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([FINE, FINE | {"name": "b"}], 0, "2 packages, no known vulnerability"),
        ([FINE, VULNERABLE], 1, "b 2: PYSEC-1, fixed in 3"),
        ([FINE, SKIPPED], 1, "1 of 2 packages could not be looked up"),
        (None, 1, "pip-audit gave no result"),
    ],
)
def test_what_fails(
    packages: object, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "constraints.txt").write_text("a==1\nb==2\n")
    answer = "no network" if packages is None else json.dumps({"dependencies": packages})
    says = [sys.executable, "-c", f"print({answer!r})"]
    assert audit(says, tmp_path / "constraints.txt") == code
    assert words in "".join(capsys.readouterr())
