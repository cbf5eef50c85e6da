"""One entry makes a setting: its flag, its TOML key, its help, its check, and its place in the report's command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from results import Study
from results.report.report import reproducing_commands
from search.config import SearchConfig
from search.settings import (
    InvalidValueError,
    build,
    check_settings,
    given_flags,
    given_keys,
    reproducing_settings,
    setting,
    settings_of,
)
from spaces.errors import UnknownNameError, UsageError
from tests.results.conftest import make_spec as make_spec
from tests.results.shown import NOW, MakeSpec
from tests.search.parsing import help_of, parse

GIVEN: dict[str, Any] = {"model": "vim_nano", "study": "s", "data": "embedded", "flops_budget": "0.6", "trials": 40}
FLAGS = [word for name, value in GIVEN.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@dataclass(frozen=True, kw_only=True)
class PatientConfig(SearchConfig):
    """The settings of a search, and a new one."""

    stall_after: int = setting(
        20, help="End after N evaluations without a better front.", metavar="N", least=2, aliases=("patience",)
    )


class TestANewSettingIsOneEntry:
    def test_it_has_a_flag(self) -> None:
        assert build(PatientConfig, parse([*FLAGS, "--stall-after", "5"], PatientConfig)).stall_after == 5
        assert build(PatientConfig, parse(FLAGS, PatientConfig)).stall_after == 20

    def test_it_has_a_help_with_its_default(self) -> None:
        text = help_of(PatientConfig)
        assert "--stall-after N End after N evaluations without a better front. Default: 20." in text
        assert "--patience" not in text, "a former name works and is not shown"

    def test_it_has_a_key(self, tmp_path: Path) -> None:
        file = tmp_path / "search.toml"
        file.write_text("stall-after = 6")
        assert build(PatientConfig, parse([*FLAGS, "--config", str(file)], PatientConfig)).stall_after == 6
        both = [*FLAGS, "--config", str(file), "--stall-after", "7"]
        assert build(PatientConfig, parse(both, PatientConfig)).stall_after == 7, "a flag wins"

    def test_it_has_a_former_name(self, tmp_path: Path) -> None:
        file = tmp_path / "search.toml"
        file.write_text("patience = 6")
        assert build(PatientConfig, parse([*FLAGS, "--config", str(file)], PatientConfig)).stall_after == 6
        assert build(PatientConfig, parse([*FLAGS, "--patience", "5"], PatientConfig)).stall_after == 5
        with pytest.raises(UsageError, match="--stall-after and --patience are the same setting"):
            parse([*FLAGS, "--patience", "5", "--stall-after", "5"], PatientConfig)

    def test_it_has_a_check_that_says_where_the_value_was_given(self, tmp_path: Path) -> None:
        file = tmp_path / "search.toml"
        file.write_text("stall-after = 1")
        with pytest.raises(UsageError, match=r"^stall_after=1: must be at least 2$"):
            PatientConfig(**GIVEN, stall_after=1)
        with pytest.raises(UsageError, match=r"^--stall-after 1: must be at least 2$"):
            build(PatientConfig, parse([*FLAGS, "--stall-after", "1"], PatientConfig))
        with pytest.raises(UsageError, match=r"^config .*search\.toml: stall-after=1: must be at least 2$"):
            build(PatientConfig, parse([*FLAGS, "--config", str(file)], PatientConfig))
        file.write_text("stall-after = 'soon'")
        with pytest.raises(UsageError, match="stall-after='soon': expected a whole number"):
            parse([*FLAGS, "--config", str(file)], PatientConfig)

    def test_it_is_stored_and_in_the_command_of_the_report(self, make_spec: MakeSpec) -> None:
        stored = PatientConfig(**GIVEN, stall_after=8).as_dict()
        assert stored["stall_after"] == 8
        study = Study(1, NOW, make_spec(config=stored))
        search, *_ = reproducing_commands(study, 40, settings=reproducing_settings(stored, PatientConfig))
        assert "--stall-after 8" in search


def test_every_setting_of_a_search_says_what_it_is() -> None:
    for one in settings_of(SearchConfig):
        assert one.help.endswith("."), one.name
        assert one.metavar.isupper(), one.name


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """A setting of each kind."""

    size: str = setting("1", help="Size.", metavar="S", parse=int)
    ratio: float = setting(0.5, help="Ratio.", metavar="X", least=0, most=1)
    count: int | None = setting(None, help="Count.", metavar="N", default_help="all", least=-3)
    names: tuple[str, ...] = setting(("a",), help="Names.", metavar="K", choices=("a", "b"), choice="letter")

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("size = 3", "3"),
        ("size = '3'", "3"),
        ("ratio = 1", 1.0),
        ("count = -3", -3),
        ("names = 'b'", ("b",)),
        ("names = ['a', 'b']", ("a", "b")),
    ],
)
def test_a_value_of_a_file_has_the_kind_of_its_field(tmp_path: Path, line: str, value: object) -> None:
    file = tmp_path / "kinds.toml"
    file.write_text(line)
    (given,) = given_keys(file, Kinds).values()
    assert given.value == value
    assert type(given.value) is type(value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ratio": 1.5}, UsageError, "ratio=1.5: must be from 0 to 1"),
        ({"ratio": float("nan")}, UsageError, "ratio=nan: must be from 0 to 1"),
        ({"count": -4}, UsageError, "count=-4: must be at least -3"),
        ({"count": -(10**400)}, UsageError, "must be at least -3"),
        ({"count": 2**63}, UsageError, "must be at most 9223372036854775807"),
        ({"names": ("c",)}, UnknownNameError, "unknown letter 'c'"),
    ],
)
def test_a_value_out_of_bounds_is_refused(change: dict[str, Any], error: type[UsageError], message: str) -> None:
    with pytest.raises(error, match=message):
        Kinds(**change)


def test_what_only_the_setting_knows_is_put_in_front_of_an_error() -> None:
    error = InvalidValueError("soon", "expected a time")
    assert str(error) == "'soon': expected a time"
    with pytest.raises(UsageError, match=r"^--names: unknown letter 'c'"):
        build(Kinds, given_flags({"names": ("c",)}, Kinds))


def test_settings_of_another_class_are_left_alone() -> None:
    given = given_flags({**GIVEN, "ratio": 0.25}, SearchConfig, Kinds)
    assert build(Kinds, given) == Kinds(ratio=0.25)
    assert build(SearchConfig, given) == SearchConfig(**GIVEN)
