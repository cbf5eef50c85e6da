"""The example of docs/samplers.md runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest

from spaces import PruningSchedule

GUIDE = Path(__file__).parents[3] / "docs" / "samplers.md"


@pytest.mark.slow
def test_the_guide_s_own_loop_finds_a_front_within_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(GUIDE), "exec"), names)
    study, space = names["study"], names["space"]
    schedules = {PruningSchedule.parse(trial.user_attrs["schedule"]) for trial in study.trials}
    assert len(schedules) == len(study.trials) == 12
    assert all(space.flops(schedule) <= space.limit for schedule in schedules)
    assert len(capsys.readouterr().out.splitlines()) == len(study.best_trials) > 1
