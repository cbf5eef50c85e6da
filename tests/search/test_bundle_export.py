"""`export --bundle`: which weights a bundle gets, what its card says, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import search.bundle_export
import ssm_models
from results import FineTune
from results.store.store import Store
from search.bundle_export import parity_images
from search.cli import run
from search.commands.inspecting import token_pictures
from search.data.dataset import open_data
from search.data.image_order import ORDERS
from search.data.image_set import ImageChoice, ImageSet
from ssm_models.exporting import Parity
from tests.ssm_models.conftest import pictures

EXPORT = ["export", "--study", "digits", "--max-flops", "0.8"]
BUNDLE = {"README.md", "bundle.json", "config.json", "model.safetensors", "preprocessing.json", "schedule.json"}


@pytest.fixture(autouse=True)
def database(study_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEFRONT_DB", study_url)


def tuned(study_url: str, folder: Path, top1: float = 0.97) -> FineTune:
    """Record a fine-tuning of the point that is exported."""
    with Store.open(study_url) as store:
        study = store.study("digits")
        point = store.best(study, max_flops=int(0.8 * study.spec.dense_flops))
        model = ssm_models.build("vim_nano", "random", seed=round(100 * top1))
        file = folder / f"tuned{top1}.safetensors"
        ssm_models.save_checkpoint(model, file, {"model": "vim_nano", "img_size": "[28, 28]"})
        digest = ssm_models.weights_digest(model)
        record = FineTune(point.hash, top1, 0.1, 3, 40, 9.0, str(file), digest)
        store.record_finetune(study, record)
    return record


def test_a_bundle_of_the_studys_weights(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, folder = tmp_path / "schedule.json", tmp_path / "bundle"
    assert run([*EXPORT, "--out", str(out), "--bundle", str(folder)]) == 0
    assert "the study's weights" in capfd.readouterr().err
    assert {path.name for path in folder.iterdir()} == BUNDLE
    assert json.loads((folder / "schedule.json").read_text()) == json.loads(out.read_text())
    model, shipped = ssm_models.load_bundle(folder), ssm_models.build("vim_nano")
    assert ssm_models.weights_digest(model) == ssm_models.weights_digest(shipped)
    shipped.set_schedule(model.schedule)
    with torch.inference_mode():
        assert torch.equal(model(pictures(model)), shipped(pictures(model)))
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n")
    assert f"`{model.schedule.text}`" in card
    assert ssm_models.weights_digest(shipped) in card
    assert "97.50 %" in card, "the dense model's"


def test_the_best_fine_tuned_weights_come_first(
    capfd: pytest.CaptureFixture[str], study_url: str, tmp_path: Path
) -> None:
    record = [tuned(study_url, tmp_path, top1) for top1 in (0.93, 0.97, 0.95)][1]
    folder = tmp_path / "bundle"
    assert run([*EXPORT, "--bundle", str(folder)]) == 0
    assert "fine-tuned weights" in capfd.readouterr().err
    assert ssm_models.weights_digest(ssm_models.load_bundle(folder)) == record.weights_digest
    assert "**97.00 %**" in (folder / "README.md").read_text()


def test_fine_tuned_weights_that_are_gone_or_changed(
    capfd: pytest.CaptureFixture[str], study_url: str, tmp_path: Path
) -> None:
    file = Path(tuned(study_url, tmp_path).checkpoint)
    ssm_models.save_checkpoint(ssm_models.build("vim_nano"), file, {})
    assert run([*EXPORT, "--bundle", str(tmp_path / "bundle")]) == 1
    assert "are not those that study 'digits' records" in capfd.readouterr().err
    file.unlink()
    assert run([*EXPORT, "--bundle", str(tmp_path / "bundle")]) == 1
    assert "are gone: give their new path with --checkpoint FILE" in capfd.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_weights_given_by_hand_have_no_figures_unless_they_are_known(
    capfd: pytest.CaptureFixture[str], study_url: str, tmp_path: Path
) -> None:
    record, folder = tuned(study_url, tmp_path), tmp_path / "bundle"
    other = tmp_path / "other.safetensors"
    ssm_models.save_checkpoint(ssm_models.build("vim_nano", "random", seed=1), other, {})
    assert run([*EXPORT, "--bundle", str(folder), "--checkpoint", str(other)]) == 0
    assert "given weights" in capfd.readouterr().err
    assert "Nothing was measured with them." in (folder / "README.md").read_text()
    assert run([*EXPORT, "--bundle", str(folder), "--checkpoint", record.checkpoint]) == 0
    assert "**97.00 %**" in (folder / "README.md").read_text()
    small = tmp_path / "small.safetensors"
    ssm_models.save_checkpoint(ssm_models.create_model("vim_nano", num_classes=7), small, {})
    assert run([*EXPORT, "--bundle", str(folder), "--checkpoint", str(small)]) == 1
    assert "are for 7 classes" in capfd.readouterr().err


def test_a_point_by_its_schedule(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    chosen = ["export", "--study", "digits", "--schedule", "5:0.2,9:0.5;context=freeze", "--out", str(out)]
    assert run(chosen) == 0
    assert json.loads(out.read_text())["provenance"]["schedule"] == "5:0.2,9:0.5;context=freeze"
    capfd.readouterr()
    for arguments, message in (
        ([*chosen, "--max-flops", "0.8"], "leave --max-flops and --min-top1 out"),
        (["export", "--study", "digits", "--schedule", "5:0.21", "--out", str(out)], "has no finished evaluation of"),
    ):
        assert run(arguments) == 2
        assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to write: name --out FILE.json or --bundle DIR"),
        (["--out", "s.json", "--to", "onnx"], "--to goes into a bundle: name --bundle DIR"),
        (["--out", "s.json", "--checkpoint", "f"], "--checkpoint goes into a bundle"),
        (["--out", "s.json", "--bundle", "b", "--to", "tflite"], "export to 'tflite': expected one of pt2, onnx"),
    ],
)
def test_what_makes_no_sense(
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run([*EXPORT, *arguments]) == 2
    assert message in capfd.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("order", ORDERS)
def test_the_studys_images_are_in_its_order(study_url: str, order: str) -> None:
    with Store.open(study_url) as store:
        study = store.study("digits")
        point = store.front(study)[0]
    study, model = replace(study, spec=replace(study.spec, order=order)), ssm_models.build("vim_nano")
    digits = open_data("embedded").batches(model.pretrained_cfg, model.img_size, images=8, order=order)
    chosen, images = parity_images(study, model, ImageChoice(images=8))
    assert chosen == ImageSet("val", 8, 0, order)
    assert torch.equal(images, next(iter(digits))[0])
    shown = token_pictures(study, point, 8)
    assert [picture.label for picture in shown] == [str(int(label)) for label in digits.labels]


def test_exports_are_compared_on_the_studys_images(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def exported(model: Any, target: str, folder: Path, images: Tensor) -> Parity:
        (folder / f"model.{target}").write_bytes(b"a graph")
        given[target] = images
        return Parity(target, "a runtime", len(images), 1e-6, 9.0, 1.0, 10, 7, 1.0)

    monkeypatch.setattr(search.bundle_export, "export", exported)
    folder = tmp_path / "bundle"
    arguments = [*EXPORT, "--bundle", str(folder), "--to", "pt2", "--to", "onnx", "--images", "8"]
    assert run(arguments) == 0
    assert given["pt2"].shape == (8, 3, 28, 28) and torch.equal(given["pt2"], given["onnx"])
    report = json.loads((folder / "parity.json").read_text())
    assert report["images"] == "val, first 8 of embedded"
    assert [one["same_answers"] for one in report["exports"]] == [1.0, 1.0]
    assert {path.name for path in folder.iterdir()} == BUNDLE | {"model.pt2", "model.onnx", "parity.json"}
    ssm_models.load_bundle(folder)
    assert "model.onnx" in (folder / "README.md").read_text()
    err = capfd.readouterr().err
    assert "onnx: logits differ by up to 1e-06 of 9, same answer on 100.0 % of 8 images (a runtime)" in err
    monkeypatch.setattr(search.bundle_export, "open_study_data", lambda spec: (_ for _ in ()).throw(OSError("away")))
    assert run(arguments) == 0
    assert "warning: exports are compared on random images: away" in capfd.readouterr().err
    assert json.loads((folder / "parity.json").read_text())["images"] == "8 random"
