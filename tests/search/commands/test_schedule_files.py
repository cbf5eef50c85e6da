"""A schedule file is for one model, image size and number of classes."""

import json
from pathlib import Path

import pytest

from search.cli import run
from search.commands.schedule_files import check_belongs
from spaces import PruningSchedule
from spaces.errors import ScheduleError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": "vim_tiny"}, "model is 'vim_tiny', but --model is 'vim_nano'"),
        ({"img_size": [28, 32]}, "img_size is \\[28, 32\\], but this model takes images of 28×28 pixels"),
        ({"num_classes": 100}, "num_classes is 100, but this model has 10 classes"),
        ({"num_classes": True}, "num_classes is True, expected a number of classes"),
        ({"num_classes": 10**9}, "num_classes is 1000000000, expected a number of classes"),
    ],
)
def test_what_differs_is_refused(content: dict[str, object], words: str) -> None:
    with pytest.raises(ScheduleError, match=f"s.json: {words}"):
        check_belongs(content, "s.json", model="vim_nano", img_size=(28, 28), num_classes=10)


def test_what_it_leaves_out_fits_any_model() -> None:
    check_belongs({}, "s.json", model="vim_nano", img_size=(28, 28), num_classes=10)
    check_belongs({"num_classes": 10, "img_size": 28}, "s.json", img_size=(28, 28), num_classes=10)


def test_flops_are_those_of_the_files_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {}
    for classes in (10, 110):
        path = tmp_path / f"{classes}.json"
        path.write_text(json.dumps(PruningSchedule.parse("3:0.5").as_dict() | {"num_classes": classes}))
        assert run(["flops", "--model", "vim_nano", "--schedule", str(path), "--format", "json"]) == 0
        counts[classes] = json.loads(capsys.readouterr().out)["flops"]
    assert counts[110] - counts[10] == 100 * 64, "a head of 64 inputs"


def test_evaluate_compares_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(PruningSchedule.parse("3:0.5").as_dict() | {"num_classes": 100}))
    assert run(["evaluate", "--model", "vim_nano", "--data", "embedded", "--schedule", str(path)]) == 2
    assert "num_classes is 100, but this model has 10 classes" in capsys.readouterr().err
