"""Settings come from a file with flags on top, and are checked before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.config import SearchConfig, parse_bytes, parse_duration, read_toml, resolve
from spaces.errors import BudgetError, UnknownNameError, UsageError

GIVEN: dict[str, Any] = {"model": "vim_nano", "study": "s", "data": "embedded", "flops_budget": "0.6", "trials": 40}


def test_flags_lie_on_top_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text(
        'model = "vim_tiny"\nstudy = "a"\ndata = "embedded"\nflops-budget = 0.5\ntrials = 7\n'
        'cpus_per_trial = 2\ngpus-per-trial = 1\nobjective = ["loss", "flops"]\ntime-budget = "30m"\n'
        'brood = 8\nprefix-cache = 0\nrace-error = 0\nconfirm-images = 500\nconfirm_split = "test"\n'
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
        brood=8,
        prefix_cache="0",
        race_error=0.0,
        confirm_images=500,
        confirm_split="test",
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
        ("track = [1]", "track=\\[1\\]: expected a list of names"),
        ("db = 3", "db=3: expected a text"),
        ("objective = [1]", "objective=\\[1\\]: expected a list of names"),
        ("gpus-per-trial = 'x'", "gpus-per-trial='x': expected a number"),
        ("brood = 2.5", "brood=2.5: expected a whole number"),
        ("prefix-cache = true", "prefix-cache=True: expected a text"),
        ("race-error = 'low'", "race-error='low': expected a number"),
        ("confirm-images = 'all'", "confirm-images='all': expected a whole number"),
        ("confirm-split = 3", "confirm-split=3: expected a text"),
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
        ({"flops_budget": "0.7:0.5"}, BudgetError, "begins above its end"),
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
        ({"brood": 0}, UsageError, "brood=0: must be at least 1"),
        ({"prefix_cache": "much"}, UsageError, "prefix_cache='much': expected memory such as 500M"),
        ({"race_error": -0.1}, UsageError, "race_error=-0.1: must be from 0"),
        ({"race_error": 0.6}, UsageError, r"race_error=0.6: must be from 0 \(no race\) to 0.5"),
        ({"race_error": float("nan")}, UsageError, "race_error=nan"),
        ({"confirm_images": -1}, UsageError, "confirm_images=-1: must be 0"),
        ({"confirm_split": "tset"}, UnknownNameError, "unknown split 'tset': did you mean 'test'"),
        ({"confirm_split": "rest"}, UsageError, "confirm_split=rest: there is no rest.*give --images"),
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


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("500M", 500 * 2**20),
        ("2g", 2 * 2**30),
        ("1.5 GB", 3 * 2**29),
        ("64K", 2**16),
        ("8000000000", 8 * 10**9),
    ],
)
def test_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@given(st.integers(0, 10**15 - 1))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert parse_bytes(str(size)) == size


@pytest.mark.parametrize("text", ["", "-1", "1e9", "G", "5X", "1 2G", "inf", "5G\n6"])
def test_what_is_no_memory(text: str) -> None:
    with pytest.raises(UsageError, match="expected memory such as"):
        parse_bytes(text)


@pytest.mark.parametrize(
    "change", [{"confirm_split": "rest", "images": 40}, {"confirm_images": 0}, {"race_error": 0.5}]
)
def test_settings_at_the_edge_are_taken(change: dict[str, Any]) -> None:
    assert SearchConfig(**(GIVEN | change)).as_dict().items() >= change.items()


def test_a_file_may_say_what_is_not_of_the_study(tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text('db = "sqlite:///a.db"\nmirror = "sqlite:///o.db"\ntrack = "mlflow"\nseed = 4')
    assert read_toml(file) == {"db": "sqlite:///a.db", "mirror": "sqlite:///o.db", "track": ("mlflow",), "seed": 4}
    assert resolve(GIVEN, file) == resolve({**GIVEN, "seed": 4})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "s" * 201}, "is 201 characters long, at most 200"),
        ({"study": "caf\udce9"}, r"study='caf\\udce9': is no text in UTF-8"),
        ({"data": "folder:caf\udce9"}, "data=.* is no text in UTF-8"),
        ({"checkpoint": "a\0b"}, "checkpoint=.* is no text in UTF-8"),
    ],
)
def test_names_that_no_data_base_keeps(change: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchConfig(**{**GIVEN, **change})
    SearchConfig(**{**GIVEN, "study": "ж" * 200})
