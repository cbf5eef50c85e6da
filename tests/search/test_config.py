"""Settings come from a file with flags on top, and are checked before anything starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.config import SearchConfig, SearchOutputs, parse_bytes, parse_duration
from search.settings import build, given_flags, given_keys, reproducing_settings, settings_of
from spaces import FlopsBudget
from spaces.errors import BudgetError, UnknownNameError, UsageError

GIVEN: dict[str, Any] = {"model": "vim_nano", "study": "s", "data": "embedded", "flops_budget": "0.6", "trials": 40}
CLASSES = (SearchConfig, SearchOutputs)


def resolve(flags: Mapping[str, Any], file: Path | None = None) -> SearchConfig:
    """The settings of a file with flags on top, as the command line makes them."""
    given = given_keys(file, *CLASSES) if file is not None else {}
    return build(SearchConfig, given | given_flags(flags, *CLASSES))


def test_flags_lie_on_top_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text(
        'model = "vim_tiny"\nstudy = "a"\ndata = "embedded"\nflops-budget = 0.5\ntrials = 7\n'
        'cpus_per_trial = 2\ngpus-per-trial = 1\nobjective = ["loss", "flops"]\ntime-budget = "30m"\n'
        'group = 8\nprefix-cache = 0\nrace-error = 0\nconfirm-images = 500\nconfirm_split = "test"\n'
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
        group=8,
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
        ("model = 3", "model=3: expected a string"),
        ("track = [1]", "track=\\[1\\]: expected a list of names"),
        ("db = 3", "db=3: expected a string"),
        ("objective = [1]", "objective=\\[1\\]: expected a list of names"),
        ("gpus-per-trial = 'x'", "gpus-per-trial='x': expected a number"),
        ("group = 2.5", "group=2.5: expected a whole number"),
        ("brood = 2.5", "brood=2.5: expected a whole number"),
        ("prefix-cache = true", "prefix-cache=True: expected a string"),
        ("race-error = 'low'", "race-error='low': expected a number"),
        ("confirm-images = 'all'", "confirm-images='all': expected a whole number"),
        ("confirm-split = 3", "confirm-split=3: expected a string"),
        ("trials = ", "not valid TOML"),
        ("trials = " + "9" * 5000, "not valid TOML"),
        ("race-error = " + "9" * 400, "race-error=9*: is too large"),
        ("batch-size = 9223372036854775808", "batch-size=9223372036854775808: must be at most 9223372036854775807"),
        ("workers = 0", r"search\.toml: workers=0: must be at least 1"),
        ("race_error = 0.7", r"search\.toml: race_error=0.7: must be from 0 to 0.5"),
        ("sampler = 'nsga'", r"search\.toml: sampler: unknown sampler 'nsga': did you mean 'nsga2'"),
        ("time-budget = 'soon'", r"search\.toml: time-budget='soon': expected a time such as 90s"),
        ("flops-budget = 0", r"search\.toml: flops-budget: FLOPs budget '0': must be above 0"),
        ("checkpoint = ''", r"search\.toml: checkpoint='': must not be empty"),
        ("group = 3\nbrood = 3", r"search\.toml: group and brood are the same setting; give one of them"),
        ("batch-size = 3\nbatch_size = 4", "batch-size and batch_size are the same setting; give one of them"),
    ],
)
def test_a_file_is_checked(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "search.toml"
    file.write_text(line)
    with pytest.raises(UsageError, match=message):
        resolve({name: value for name, value in GIVEN.items() if name not in line.replace("-", "_")}, file)


@pytest.mark.parametrize("key", ["db", "mirror"])
def test_an_address_of_the_wrong_kind_is_not_shown(tmp_path: Path, key: str) -> None:
    file = tmp_path / "search.toml"
    file.write_text(f'{key} = ["postgresql://u:hunter2@h/d"]')
    with pytest.raises(UsageError, match=f"{key}='…': expected a string") as caught:
        given_keys(file, *CLASSES)
    assert "hunter2" not in str(caught.value)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text("seed = 3", encoding="utf-8-sig")
    assert resolve(GIVEN, file).seed == 3


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
        ({"gpus_per_trial": float("nan")}, UsageError, "gpus_per_trial=nan: must be at least 0"),
        ({"gpus_per_trial": float("inf")}, UsageError, "gpus_per_trial=inf: must be"),
        ({"seed": -1}, UsageError, "seed=-1"),
        ({"study": " "}, UsageError, "study=' ': must not be empty"),
        ({"time_budget": "soon"}, UsageError, "'soon'"),
        ({"group": 0}, UsageError, "group=0: must be at least 1"),
        ({"prefix_cache": "much"}, UsageError, "prefix_cache='much': expected memory such as 500M"),
        ({"race_error": -0.1}, UsageError, "race_error=-0.1: must be from 0"),
        ({"race_error": 0.6}, UsageError, "race_error=0.6: must be from 0 to 0.5"),
        ({"race_error": float("nan")}, UsageError, "race_error=nan"),
        ({"confirm_images": -1}, UsageError, "confirm_images=-1: must be at least 0"),
        ({"confirm_split": "tset"}, UnknownNameError, "unknown split 'tset': did you mean 'test'"),
        ({"confirm_split": "rest"}, UsageError, "--confirm-split rest: no image of val is left.*give --images"),
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
    given = given_keys(file, *CLASSES)
    assert build(SearchOutputs, given) == SearchOutputs(
        db="sqlite:///a.db", mirror="sqlite:///o.db", track=("mlflow",)
    )
    assert set(given) == {"db", "mirror", "track", "seed"}
    assert resolve(GIVEN, file) == resolve({**GIVEN, "seed": 4})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "s" * 201}, "study='sss.*…': is 201 characters long, at most 200"),
        ({"study": "a\nb"}, r"study='a\\nb': holds control characters"),
        ({"study": "caf\udce9"}, r"study='caf\\udce9': is not valid UTF-8"),
        ({"data": "folder:caf\udce9"}, "data=.* is not valid UTF-8"),
        ({"checkpoint": "a\0b"}, "checkpoint='a.*b': is not valid UTF-8, or holds a NUL"),
    ],
)
def test_names_that_no_database_keeps(change: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchConfig(**{**GIVEN, **change})
    SearchConfig(**{**GIVEN, "study": "ж" * 200})


def test_quantities_are_read_once_and_stored_as_they_were_written() -> None:
    config = SearchConfig(**(GIVEN | {"flops_budget": "0.5:0.6", "prefix_cache": "2G", "time_budget": "1h30m"}))
    assert config.budget == FlopsBudget(0.6, low=0.5)
    assert (config.prefix_cache_bytes, config.seconds) == (2 * 2**30, 5400)
    stored = config.as_dict()
    assert (stored["flops_budget"], stored["prefix_cache"], stored["time_budget"]) == ("0.5:0.6", "2G", "1h30m")
    assert set(stored) == {one.name for one in settings_of(SearchConfig)}


def test_the_longest_time_of_a_candidate_grows_with_the_dense_models() -> None:
    config = SearchConfig(**GIVEN)
    assert (config.timeout(1.0), config.timeout(100.0)) == (600.0, 3000.0)
    assert SearchConfig(**(GIVEN | {"trial_timeout": "15s"})).timeout(100.0) == 15.0


class TestAFormerName:
    """`group` was called `brood`, in files and on the command line, and studies are stored under that name."""

    def test_it_still_works_in_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "search.toml"
        file.write_text("brood = 7")
        assert resolve(GIVEN, file).group == 7
        assert resolve(GIVEN | {"group": 2}, file).group == 2, "a flag wins, whichever name the file uses"
        file.write_text("group = 7")
        assert resolve(GIVEN | {"brood": 2}, file).group == 2

    def test_two_names_of_one_setting_are_refused(self) -> None:
        with pytest.raises(UsageError, match="--group and --brood are the same setting; give one of them"):
            resolve(GIVEN | {"group": 2, "brood": 2})

    def test_a_stored_study_is_read_under_the_current_name(self) -> None:
        stored = {**SearchConfig(**GIVEN).as_dict(), "brood": 16, "colour": "red"}
        del stored["group"]
        found = reproducing_settings(stored, SearchConfig)
        assert found["group"] == 16
        assert not {"brood", "colour", "ray_address", "db_patience"} & set(found)
        assert set(found) >= {"batch_size", "workers", "race_error", "confirm_images", "confirm_split"}
