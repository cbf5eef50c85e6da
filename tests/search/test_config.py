"""Settings come from a file with flags on top, and are checked before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from search.config import SearchConfig, parse_duration, resolve
from spaces.errors import BudgetError, UnknownNameError, UsageError

GIVEN: dict[str, Any] = {"model": "vim_nano", "study": "s", "data": "embedded", "flops_budget": "0.6", "trials": 40}


def test_flags_lie_on_top_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text(
        'model = "vim_tiny"\nstudy = "a"\ndata = "embedded"\nflops-budget = 0.5\ntrials = 7\n'
        'cpus_per_trial = 2\ngpus-per-trial = 1\nobjective = ["loss", "flops"]\ntime-budget = "30m"\n'
    )
    config = resolve({"model": "vim_nano", "trials": None, "seed": 3, "objective": None}, file)
    assert config == SearchConfig(
        model="vim_nano",
        study="a",
        data="embedded",
        flops_budget="0.5",
        trials=7,
        cpus_per_trial=2,
        gpus_per_trial=1.0,
        objective=("loss", "flops"),
        time_budget="30m",
        seed=3,
    )
    assert config.as_dict()["objective"] == ["loss", "flops"]
    assert config.seconds == 1800


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("flop-budget = 0.5", "unknown setting in .*: 'flop-budget': did you mean 'flops-budget'"),
        ('trials = "many"', "trials='many': expected a whole number"),
        ("trials = true", "trials=True: expected a whole number"),
        ("model = 3", "model=3: expected a text"),
        ("objective = [1]", "objective=\\[1\\]: expected a list of names"),
        ("gpus-per-trial = 'x'", "gpus-per-trial='x': expected a number"),
        ("trials = ", "not valid TOML"),
    ],
)
def test_a_file_is_checked(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "search.toml"
    file.write_text(line)
    with pytest.raises(UsageError, match=message):
        resolve(GIVEN, file)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: cannot be read: No such file"):
        resolve(GIVEN, tmp_path / "none.toml")


@pytest.mark.parametrize("name", GIVEN)
def test_what_has_no_default_must_be_given(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is missing"):
        resolve({key: value for key, value in GIVEN.items() if key != name})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"flops_budget": "0"}, BudgetError, "above 0"),
        ({"flops_budget": "1.7"}, BudgetError, "at most 1"),
        ({"flops_budget": "abc"}, BudgetError, "'abc'"),
        ({"sampler": "cma"}, UnknownNameError, "unknown sampler 'cma'"),
        ({"objective": ("top1", "speed")}, UnknownNameError, "unknown objective 'speed'"),
        ({"objective": ("top1", "top1")}, UsageError, "once"),
        ({"objective": ()}, UsageError, "once"),
        ({"trials": 0}, UsageError, "trials=0"),
        ({"images": -1}, UsageError, "images=-1"),
        ({"workers": 0}, UsageError, "workers=0"),
        ({"gpus_per_trial": float("nan")}, UsageError, "gpus_per_trial=nan"),
        ({"seed": -1}, UsageError, "seed=-1"),
        ({"study": " "}, UsageError, "study: must not be empty"),
        ({"time_budget": "soon"}, UsageError, "'soon'"),
    ],
)
def test_senseless_settings_are_refused(change: dict[str, Any], error: type[UsageError], message: str) -> None:
    with pytest.raises(error, match=message):
        SearchConfig(**(GIVEN | change))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5h", 5400), ("30m", 1800), ("1h30m", 5400), ("1h1m1s", 3661)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-5", "5x", "m", "30 m 5 h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="expected a time such as"):
        parse_duration(text)
