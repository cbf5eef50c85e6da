"""What an exported file answers is what the model answers, for each family; what cannot be exported says so."""

import json
import socket
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ssm_models
from spaces import PruningSchedule
from spaces.errors import ExportError, UsageError
from ssm_models import PrunableModel, exporting
from ssm_models.exporting import export
from tests.ssm_models.conftest import pictures, shaken

# Two blocks, between which tokens are pruned: exporters take seconds for each scan. One has another stage, too.
TINY: dict[str, dict[str, Any]] = {
    "vim_nano": {"depth": 2},
    "plain_mamba_nano": {"depth": 2},
    "vmamba_nano": {"depths": (2,)},
    "group_mamba_nano": {"depths": (2,), "dims": (32,), "mlp": (4,)},
    "vssd_nano": {"depths": (2, 1), "heads": (2, 4)},
    "vim2_nano": {"depths": (2, 1)},
    "cvmh_unet_nano": {"depths": (2, 1), "decoder": (2, 1)},
    "vmamba_nano_segmenter": {"depths": (2, 1)},
}
# Each has its own way to be scored, and to be seen by later blocks.
SCHEDULES = {
    "vim_nano": "1:0.5:freeze,2:0.5:conv;reduction=merge;importance=delta",
    "plain_mamba_nano": "1:0.5;importance=random;context=conv",
    "vmamba_nano": "1:0.5;alignment=hold",
    "group_mamba_nano": "1:0.5;context=freeze",
    "vssd_nano": "1:0.5;importance=l2",
    "vim2_nano": "1:0.5;context=conv",
    "cvmh_unet_nano": "1:0.5;context=freeze",
    "vmamba_nano_segmenter": "1:0.5;importance=l1",
}
PT2 = ("group_mamba_nano", "cvmh_unet_nano")  # an export to ONNX begins as this does; one of the two is tried of each


def tiny(name: str) -> PrunableModel:
    info = ssm_models.model_info(name)
    torch.manual_seed(0)
    model = shaken(info.family(replace(info.config, **TINY[name]), name, 10, (16, 16)))
    model.pretrained_cfg = info.pretrained_cfg((16, 16), 10)
    model.set_schedule(PruningSchedule.parse(SCHEDULES[name]))
    return model


def onnx_domains(graph: Any) -> set[str]:
    """The domains of a graph's operators, those in the bodies of loops among them."""
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    bodies = [body for attribute in attributes for body in (attribute.g, *attribute.graphs)]
    return {node.domain for node in graph.node}.union(*map(onnx_domains, bodies))


def contents(file: Path) -> dict[str, bytes]:
    """The bytes of a file by its name, those of an archive's members and their names too."""
    found = {file.name: file.read_bytes()}
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            found |= {name: name.encode() + archive.read(name) for name in archive.namelist()}
    return found


def of_this_machine() -> dict[str, bytes]:
    """What a file that is handed on must not tell, as text and as JSON writes it."""
    root, packages = Path(__file__).parents[2], Path(torch.__file__).parents[1]
    known = {str(root), str(packages), str(Path.home()), sys.prefix, socket.gethostname()}
    words = {form for word in known for form in (word, json.dumps(word)[1:-1])}
    return {word: word.encode() for word in words if len(word) > 4}  # what is shorter turns up by chance


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_an_export_answers_as_the_model_does(name: str, tmp_path: Path) -> None:
    target = "pt2" if name in PT2 else "onnx"
    if target == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install .[export])")
    model = tiny(name)
    images = pictures(model, 7)
    before = ssm_models.weights_digest(model), model.schedule, model.training
    parity = export(model, target, tmp_path, images)
    assert (parity.target, parity.images, parity.same_answers) == (target, 7, 1.0)
    assert parity.max_difference < 1e-4 * max(1.0, parity.largest_logit)
    assert parity.nodes < 1000 * model.layout.depth, "loops are not unrolled"
    assert (ssm_models.weights_digest(model), model.schedule, model.training) == before
    (file,) = tmp_path.iterdir()
    assert parity.bytes == file.stat().st_size
    if target == "onnx":
        onnx = pytest.importorskip("onnx")
        exported = onnx.load(file)
        assert onnx_domains(exported.graph) <= {"", "ai.onnx"}, "plain operators only"
        assert not exported.functions
    found = contents(file)
    secrets = of_this_machine() | {"an image": images[0].numpy().tobytes()}
    leaks = {(member, name) for member, data in found.items() for name, secret in secrets.items() if secret in data}
    assert not leaks, "the file holds what is of this machine alone"


def test_what_an_exporter_refuses_is_one_line_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("vssd_nano")

    def looks_at_values(images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None].expand(-1, 10) if images.sum() > 0 else images.new_zeros(1, 10)

    monkeypatch.setattr(type(model), "forward", lambda self, images: looks_at_values(images))
    with pytest.raises(
        ExportError, match=r"vssd_nano under 1:0\.5;importance=l2 cannot be exported to pt2: "
    ) as told:
        export(model, "pt2", tmp_path, pictures(model, 2))
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("vssd_nano")

    def changed(path: Path, images: torch.Tensor) -> tuple[str, torch.Tensor]:
        return "a runtime", -model(images)

    def written(program: object, path: Path) -> int:
        path.write_bytes(b"")
        return 1

    monkeypatch.setattr(exporting, "_program", lambda model, images: None)
    monkeypatch.setattr(exporting, "_write_pt2", written)
    monkeypatch.setattr(exporting, "_run_pt2", changed)
    with pytest.raises(ExportError, match=r"gives the same answer for 0\.0 % of 3 images only"):
        export(model, "pt2", tmp_path, pictures(model, 3))
    assert list(tmp_path.iterdir()) == []


def test_targets_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="export to 'tflite': expected one of pt2, onnx"):
        exporting.check_target("tflite")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs onnx, onnxscript, onnxruntime: pip install onnx"):
        exporting.check_target("onnx")
    exporting.check_target("pt2")
