"""Ray's environment variables are set while Ray runs, and only then; the user's own settings survive."""

import os
import subprocess
import sys

import pytest

from search.runtime.ray_environment import DEFAULTS, REQUIRED, ray_environment
from tests.patience import PATIENCE

OWN = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "7", "RAY_USAGE_STATS_ENABLED": "1", "TUNE_DISABLE_SIGINT_HANDLER": "0"}
PROGRAM = """
import os
before = {k: v for k, v in os.environ.items() if k.startswith(("RAY_", "TUNE_"))}
import search.config, search.data.dataset, search.models, search.cli
assert {k: v for k, v in os.environ.items() if k.startswith(("RAY_", "TUNE_"))} == before
assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
"""


def test_an_import_changes_no_variable_of_the_user() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    environment |= OWN | {"OMP_WAIT_POLICY": "ACTIVE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr


def test_the_users_settings_win_unless_a_search_would_break(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*DEFAULTS, *REQUIRED):
        monkeypatch.delenv(name, raising=False)
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with ray_environment():
        expected = DEFAULTS | {name: OWN[name] for name in OWN if name in DEFAULTS} | REQUIRED
        assert {name: os.environ[name] for name in expected} == expected
    assert dict(os.environ) == before
