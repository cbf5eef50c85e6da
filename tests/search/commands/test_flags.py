"""Options of commands, as settings make them."""

from pathlib import Path

import pytest

from search.config import SearchConfig, SearchOutputs
from search.settings import build, settings_of
from tests.search.parsing import help_of, parse

CLASSES = (SearchConfig, SearchOutputs)


def test_each_setting_has_one_flag_and_aliases_are_hidden() -> None:
    text = help_of(*CLASSES)
    for one in (*settings_of(SearchConfig), *settings_of(SearchOutputs)):
        assert text.count(f"--{one.name.replace('_', '-')} {one.metavar} {one.help}") == 1, one.name
    assert "--brood" not in text


def test_outputs_stand_where_a_reader_looks_for_them() -> None:
    text = help_of(*CLASSES)
    places = [text.index(f"--{name} ") for name in ("study", "db", "checkpoint", "confirm-split", "mirror", "track")]
    assert places == sorted(places)
    assert text.index("--track ") < text.index("--trial-timeout ")


def test_what_no_flag_says_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text('objective = ["loss", "flops"]\ntrack = ["mlflow"]\nseed = 3')
    given = parse(["--config", str(file), "--seed", "4"], *CLASSES)
    assert {name: (one.value, one.where) for name, one in given.items()} == {
        "objective": (("loss", "flops"), f"config {file}: objective"),
        "track": (("mlflow",), f"config {file}: track"),
        "seed": (4, "--seed"),
    }
    given = parse(["--config", str(file), "--objective", "latency", "--objective", "top1"], *CLASSES)
    assert given["objective"].value == ("latency", "top1")


@pytest.mark.parametrize("flag", ["--group", "--brood"])
def test_the_size_of_a_group_has_two_names(flag: str) -> None:
    required = ["--model", "m", "--data", "embedded", "--flops-budget", "0.6", "--trials", "4", "--study", "s"]
    given = parse([*required, flag, "9"], *CLASSES)
    assert given["group"].where == flag
    assert build(SearchConfig, given).group == 9
