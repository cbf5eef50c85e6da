"""What the commands say of a data set, and the order of its classes."""

import json
from pathlib import Path

import pytest
import torch

import ssm_models
from search.cli import run
from ssm_models.checkpoints import trained_classes
from tests.search.pictures import noise, write_folder

NUMBERS = tuple(map(str, range(12)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "numbers", NUMBERS, each=2)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights that always answer with output 2, and do not name it."""
    state = ssm_models.create_model("vim_nano", 12).state_dict()
    state["head.weight"].zero_()
    state["head.bias"].copy_(torch.eye(12)[2])
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def evaluate(root: Path, weights: Path, *more: str) -> int:
    data = ["--data", f"folder:{root}", "--checkpoint", str(weights), "--images", "24", "--format", "json"]
    return run(["evaluate", "--model", "vim_nano", "--schedule", "", *data, *more])


def test_an_order_that_nothing_says_is_refused_in_one_line(
    root: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(root, weights) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: folder:")
    assert captured.err.count("\n") == 1
    assert "choose with --class-order text, natural, or a file of class names" in captured.err


@pytest.mark.parametrize("order", ["text", "natural", "file"])
def test_a_chosen_order_decides_which_output_is_right(
    root: Path, weights: Path, tmp_path: Path, order: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Output 2 is class 10 in text order, 2 in natural order; only 10 has two images more."""
    for number in range(2):
        noise(number).save(root / "val" / "10" / f"more{number}.png")
    (tmp_path / "classes.txt").write_text("\n".join(["0", "1", "10", *NUMBERS[2:10], "11"]))
    chosen = str(tmp_path / "classes.txt") if order == "file" else order
    assert evaluate(root, weights, "--images", "26", "--class-order", chosen) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["top1"] == pytest.approx(2 / 26 if order == "natural" else 4 / 26)


def test_an_order_that_is_none_is_wrong_usage(root: Path, weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate(root, weights, "--class-order", "alphabetic") == 2
    assert "--class-order alphabetic: expected text, natural, or a file" in capfd.readouterr().err


def test_what_is_left_out_is_one_line_on_stderr(root: Path, weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise(1).save(root / "val" / "3" / "more.jfif", "JPEG")
    assert evaluate(root, weights, "--class-order", "text") == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["images"] == 24
    notes = [line for line in captured.err.splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: {root / 'val'}: 1 left out: 1 .jfif (1 of them images by their content: rename them to .jpg or .png)"
    ]


def test_trained_weights_say_their_order(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    train = ["train", "--model", "vim_nano", "--data", f"folder:{root}", "--epochs", "1", "--img-size", "28"]
    assert run([*train, "--class-order", "natural", "--out", str(out)]) == 0
    path = out / "model.safetensors"
    assert trained_classes(ssm_models.read_checkpoint(path)[1]) == list(NUMBERS)
    assert evaluate(root, path) == 0
    assert evaluate(root, path, "--class-order", "text") == 1
    assert "learned it as number" in capfd.readouterr().err
    assert run([*train, "--checkpoint", str(path), "--out", str(tmp_path / "more")]) == 0
    assert trained_classes(ssm_models.read_checkpoint(tmp_path / "more" / path.name)[1]) == list(NUMBERS)


def test_training_on_from_weights_that_say_nothing_is_refused(
    root: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train = [
        "train",
        "--model",
        "vim_nano",
        "--data",
        f"folder:{root}",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "o"),
    ]
    assert run([*train, "--checkpoint", str(weights)]) == 1
    assert "choose with --class-order" in capfd.readouterr().err
    assert not (tmp_path / "o").exists()
