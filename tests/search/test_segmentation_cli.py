"""Segmentation through the commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ssm_models
from search.cli import run
from search.data.dataset import open_data
from search.training.recipe import Recipe
from search.training.train import train_model
from search.training.training_run import TrainingRun
from tests.search.landscapes import write_landscapes

MODEL = ("--model", "vmamba_nano_segmenter")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Data, and the weights of a model that was trained on it for a moment."""
    folder = tmp_path_factory.mktemp("segmentation")
    spec = f"segmentation:{write_landscapes(folder / 'lands')}"
    torch.manual_seed(0)
    model = ssm_models.create_model(MODEL[1], 2, 32)
    recipe = Recipe(epochs=2, batch_size=4, lr=3e-3, ema=0.0)
    return spec, str(
        train_model(model, open_data(spec), recipe, TrainingRun(folder / "dense", device="cpu")).checkpoint
    )


def printed(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    capfd.readouterr()
    code = run(arguments)
    captured = capfd.readouterr()
    assert code == 0, captured.err
    return captured.out


def as_json(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(printed(capfd, *arguments, "--format", "json"))


def test_evaluate(trained: tuple[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    data, weights = trained
    asked = ("evaluate", *MODEL, "--checkpoint", weights, "--data", data, "--schedule", "4:0.5")
    found = as_json(capfd, *asked)
    assert found["metric"] == "miou" and 0 < found["top1"] < 1 and found["top1_low"] is None
    assert found["top1"] == pytest.approx((found["iou water"] + found["iou land"]) / 2)
    assert 0 < found["mf1"] <= 1 and 0 < found["oa"] <= 1 and 0 < found["agreement"] < 1
    assert "mIoU" in printed(capfd, *asked) and "top-1" not in printed(capfd, *asked)


def test_a_classifier_is_refused(trained: tuple[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    code = run(("evaluate", "--model", "vim_nano", "--data", trained[0], "--schedule", ""))
    assert code != 0
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "is for segmentation, but vim_nano does classification" in lines[0]


@pytest.mark.slow
def test_from_a_search_to_a_finetuned_model(
    trained: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, weights = trained
    study = ("--study", "lands", "--db", f"sqlite:///{tmp_path / 'studies.db'}")
    front = as_json(
        capfd, "search", *MODEL, "--checkpoint", weights, "--data", data, *study, "--flops-budget", "0.7:0.9",
        "--trials", "4", "--objective", "miou", "--objective", "flops", "--workers", "1",
    )  # fmt: skip
    assert front and {row["metric"] for row in front} == {"miou"}
    assert all(row["images"] == 8 and row["top1_low"] is None for row in front)  # none was stopped early
    assert "mIoU" in printed(capfd, "front", *study)
    printed(capfd, "report", *study, "--out", str(tmp_path / "page.html"), "--pictures", "2")
    page = (tmp_path / "page.html").read_text()
    assert page.count("of pixels") >= 2 and "mask" in page
    schedule = tmp_path / "schedule.json"
    printed(capfd, "export", *study, "--out", str(schedule))
    tuned = as_json(
        capfd, "finetune", str(schedule), "--data", data, "--checkpoint", weights, *study, "--epochs", "1",
        "--batch-size", "4", "--out", str(tmp_path / "tuned"),
    )  # fmt: skip
    assert tuned["metric"] == "miou"
    assert tuned["top1"] in {row["finetuned_top1"] for row in as_json(capfd, "front", *study)}
