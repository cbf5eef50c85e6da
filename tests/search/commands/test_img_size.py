"""--img-size: the size of the images that weights are for, where their file does not say it."""

import json
from pathlib import Path

import pytest
import torch

import ssm_models
from search.cli import run
from search.config import given_size, parse_img_size
from spaces.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"), [("224", (224, 224)), ("32x72", (32, 72)), (" 32X72 ", (32, 72)), ("32×72", (32, 72))]
)
def test_a_size_is_one_side_or_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse_img_size(text) == size
    assert given_size(text) == size
    assert given_size(None) is None


@pytest.mark.parametrize("text", ["", "0", "32x0", "x72", "32x", "32x72x3", "-4", "32.5", "1e3", "３２"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="expected pixels such as 224, or HEIGHTxWIDTH"):
        parse_img_size(text)


@pytest.mark.parametrize("size", [(32, 72), (24, 32)])
def test_evaluate_takes_the_size_of_a_rectangle(
    size: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.pth"
    torch.save(ssm_models.create_model("vim_nano", img_size=size).state_dict(), file)
    command = ["evaluate", "--model", "vim_nano", "--data", "embedded", "--schedule", "3:0.5", "--images", "20"]
    command += ["--checkpoint", str(file), "--format", "json"]
    assert run(command) == 1
    assert "say the images' size, --img-size HxW" in capsys.readouterr().err
    assert run([*command, "--img-size", f"{size[0]}x{size[1]}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 20
    assert run(["flops", "--model", "vim_nano", "--schedule", "3:0.5", "--img-size", f"{size[0]}x{size[1]}",
                 "--format", "json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["flops"] == found["flops"]


def test_a_bad_size_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["flops", "--model", "vim_nano"], ["train", "--model", "vim_nano", "--data", "embedded",
                    "--epochs", "1", "--out", "x"]):  # fmt: skip
        assert run([*command, "--img-size", "32x"]) == 2
        assert "--img-size '32x': expected pixels such as 224, or HEIGHTxWIDTH" in capsys.readouterr().err
