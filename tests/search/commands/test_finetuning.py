"""`finetune`: which images its scores are of, and what a run folder keeps."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from results.store.store import Store
from search.cli import run
from search.config import SearchConfig
from search.driver.search_setup import open_setup
from tests.search.conftest import fill
from tests.search.pictures import write_folder

LEARN = ("--epochs", "1", "--batch-size", "20")
Command = Callable[..., dict[str, Any]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str) -> dict[str, Any]:
        capfd.readouterr()
        code = run([*arguments, "--format", "json"])
        captured = capfd.readouterr()
        assert code == 0, captured.err
        found: dict[str, Any] = json.loads(captured.out)
        return found

    return call


@pytest.fixture
def study(tmp_path: Path) -> tuple[str, ...]:
    """A study that searched the first 20 of 60 images and confirms on the rest, with a schedule exported to FILE."""
    data = f"folder:{write_folder(tmp_path / 'images', tuple('0123456789'), each=6)}"
    settings = SearchConfig(model="vim_nano", study="s", data=data, flops_budget="0.9", trials=8, images=20)
    fill(tmp_path / "s.db", open_setup(replace(settings, confirm_split="rest")))
    named = ("--study", "s", "--db", f"sqlite:///{tmp_path / 's.db'}")
    assert run(["export", *named, "--max-flops", "0.8", "--out", str(tmp_path / "s.json")]) == 0
    return named


def test_scores_are_of_images_that_did_not_choose(
    study: tuple[str, ...], tmp_path: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    file, data = str(tmp_path / "s.json"), ("--data", f"folder:{tmp_path / 'images'}")
    rest = command("finetune", file, *study, *LEARN, "--out", str(tmp_path / "rest"))
    assert rest["scored_on"] == "val, 21–60"
    alone = command("finetune", file, *data, *LEARN, "--out", str(tmp_path / "alone"))
    assert alone["scored_on"] == "val, 21–60", "the file names the images of its study"
    assert (alone["top1"], alone["before_top1"]) == (rest["top1"], rest["before_top1"])
    asked = command("finetune", file, *study, *LEARN, "--split", "val", "--out", str(tmp_path / "val"))
    assert asked["scored_on"] == "val, first 60"
    measured = command("evaluate", "--model", "vim_nano", *data, "--schedule", file, "--split", "rest")
    assert (measured["top1"], measured["images_of"]) == (rest["before_top1"], "val, 21–60")

    with Store.open(study[-1]) as store:
        record, other = store.finetunes(store.study("s"))
        assert (record.split, record.skip, record.images, record.before_top1) == ("val", 20, 40, rest["before_top1"])
        assert record.data_digest == store.study("s").spec.data_digest
        assert (other.skip, other.images) == (0, 60)
    assert run(["finetune", file, *study, *LEARN, "--skip", "9", "--out", str(tmp_path / "no")]) == 2
    assert "--split val --skip 9" in capfd.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_run_folder_keeps_the_images_it_was_begun_with(
    study: tuple[str, ...], tmp_path: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    """Up to version 0.2, scores were of the images of the search, and the checkpoint named only their number."""
    out, file = tmp_path / "out", str(tmp_path / "s.json")
    old = (str(file), *study, *LEARN, "--out", str(out))
    command("finetune", *old, "--split", "val", "--images", "20")
    assert not {"val_split", "val_skip"} & json.loads(torch.load(out / "last.pt")["identity"]).keys()
    resumed = command("finetune", *old)
    assert resumed["scored_on"] == "val, first 20"
    assert run(["finetune", *old, "--split", "rest"]) == 2
    assert "val_images 20 there, 40 now; val_skip None there, 20 now" in capfd.readouterr().err


def test_sizes_come_from_the_file_where_nothing_else_says_them(
    study: tuple[str, ...], tmp_path: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((tmp_path / "s.json").read_text()) | {"img_size": 32}
    (tmp_path / "32.json").write_text(json.dumps(content))
    asked = ("evaluate", "--model", "vim_nano", "--data", f"folder:{tmp_path / 'images'}", "--schedule")
    command(*asked, str(tmp_path / "32.json"), "--checkpoint", "random", "--images", "5")
    for more in ((), ("--checkpoint", "random", "--img-size", "28")):  # the shipped weights say 28
        assert run([*asked, str(tmp_path / "32.json"), *more]) == 2
        assert "img_size is 32, but this model takes images of 28×28 pixels" in capfd.readouterr().err


def test_a_ray_address_of_the_environment_is_told(
    study: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert run(["finetune", str(tmp_path / "s.json"), *study, *LEARN, "--out", str(tmp_path / "out")]) == 0
    told = "RAY_ADDRESS=192.0.2.1:6379 is ignored, the fine-tuning runs on this machine; --ray-address auto uses it"
    assert told in capfd.readouterr().err
