"""Files that are passed on contain no folders of this machine."""

from pathlib import Path

import pytest

from results import FineTune, Study
from results.export.model_card import model_card
from results.export.optuna_mirror import Mirror
from results.export.schedule_json import export_schedule
from results.files import write_json, write_whole
from results.portable import portable
from results.report.plot import plot_front
from results.report.report import write_report
from tests.results.shown import NOW, MakeEvaluation, MakeSpec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ada/models/vim.pth", "vim.pth"),
        ("/home/ada/a b ü/vim.pth#model_ema", "vim.pth#model_ema"),
        ("//server/share/vim.pth", "vim.pth"),
        ("models/vim.pth", "models/vim.pth"),
        ("random", "random"),
        ("folder:/scratch/ada/imagenet", "folder:imagenet"),
        ("folder:/scratch/ada/imagenet/", "folder:imagenet/"),
        ("folder:/a:/b/imagenet", "folder:imagenet"),
        ("folder:data/imagenet", "folder:data/imagenet"),
        ("torchvision:CIFAR10:/scratch/data", "torchvision:CIFAR10:data"),
        ("hf:ada/signs", "hf:ada/signs"),
        ("embedded", "embedded"),
        ("--out=/home/ada/tuned", "--out=tuned"),
        ("--data=folder:/home/ada/signs", "--data=folder:signs"),
        ("3:0.5,6:0.2;context=freeze", "3:0.5,6:0.2;context=freeze"),
        ("/", "/"),
    ],
)
def test_folders_of_absolute_paths_are_removed(text: str, expected: str) -> None:
    assert portable(text) == expected


def test_exports_and_reports_contain_no_folders_of_this_machine(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation, tmp_path: Path
) -> None:
    """Its data and weights were named by absolute paths, and those of the fine-tuning are recorded so."""
    spec = make_spec(
        data="folder:/home/ada/signs", checkpoint="/home/ada/vim.pth", config={"checkpoint": "/home/ada/vim.pth"}
    )
    study, point = Study(1, NOW, spec), make_evaluation()
    tuned = FineTune(point.hash, 0.95, 0.2, 7, 1000, 60.0, "/home/ada/tuned/model.safetensors", "f" * 64)
    form = export_schedule(point, study)
    assert (form["provenance"]["data"], form["provenance"]["checkpoint"]) == ("folder:signs", "vim.pth")
    write_json(tmp_path / "schedule.json", form)
    write_whole(tmp_path / "README.md", model_card(form, {}, "b" * 64, finetune=tuned).encode())
    write_report(tmp_path / "report.html", study, [point], finetunes=[tuned])
    plot_front(tmp_path / "front.html", study, [point])
    mirror = Mirror(f"sqlite:///{tmp_path / 'mirror.db'}")
    mirror.update(study, [point])
    mirror.forget()
    files = list(tmp_path.iterdir())
    assert len(files) == 5
    assert [path.name for path in files if b"/home/ada" in path.read_bytes()] == []


def test_weights_are_named_as_the_user_gave_them(make_spec: MakeSpec) -> None:
    written = make_spec(checkpoint="/home/ada/work/models/vim.pth", config={"checkpoint": "models/vim.pth"})
    assert written.shown_checkpoint == "models/vim.pth"
    assert make_spec(checkpoint="/home/ada/vim.pth", config={}).shown_checkpoint == "vim.pth"
    assert make_spec().shown_checkpoint is None
