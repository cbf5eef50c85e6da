"""A bundle comes back to the same logits, here and in timm; one that is damaged is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ssm_models
from spaces import PruningSchedule
from spaces.errors import ExportError, ScheduleError
from ssm_models import PrunableModel, bundle
from tests.ssm_models.conftest import pictures

SCHEDULE = PruningSchedule.parse("1:0.6:freeze,2:0.5;importance=l2")


def write(model: PrunableModel, directory: Path) -> Path:
    with bundle.building(directory) as folder:
        bundle.write_parts(folder, model, {**model.schedule.as_dict(), "metrics": {"top1": 0.9}})
    return directory


@torch.inference_mode()
def test_the_same_logits_here_and_in_timm(any_model: PrunableModel, tmp_path: Path) -> None:
    any_model.set_schedule(SCHEDULE)
    images = pictures(any_model)
    expected = any_model(images)
    folder = write(any_model, tmp_path / "bundle")
    again = ssm_models.load_bundle(folder)
    assert not again.training
    assert again.schedule == SCHEDULE
    assert torch.equal(again(images), expected)
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(by_timm(images), expected)
    for loaded in (again, by_timm):
        assert loaded.img_size == any_model.img_size
        config = timm.data.resolve_model_data_config(loaded)
        assert config["mean"] == tuple(any_model.pretrained_cfg["mean"])
        assert config["input_size"] == (3, *any_model.img_size)


@torch.inference_mode()
def test_classes_and_sizes_of_its_own(tmp_path: Path) -> None:
    model = ssm_models.create_model("vim_nano", num_classes=7, img_size=(20, 36)).eval()
    again = ssm_models.load_bundle(write(model, tmp_path / "bundle"))
    assert (again.num_classes, again.img_size, again.schedule.dense) == (7, (20, 36), True)
    assert torch.equal(again(pictures(model)), model(pictures(model)))


@torch.inference_mode()
def test_images_of_other_channels(tmp_path: Path) -> None:
    model = ssm_models.create_model("vim_nano", in_chans=2).eval()
    assert model.pretrained_cfg["input_size"] == (2, 28, 28)
    assert 0 < ssm_models.cost_table(model).flops(SCHEDULE) < ssm_models.count_flops(model)
    images = torch.randn(2, 2, 28, 28, generator=torch.Generator().manual_seed(0))
    folder = write(model, tmp_path / "bundle")
    assert torch.equal(ssm_models.load_bundle(folder)(images), model(images))
    assert torch.equal(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images), model(images))


@torch.inference_mode()
def test_timm_takes_a_file_and_a_schedule(model: PrunableModel, tmp_path: Path) -> None:
    model.set_schedule(SCHEDULE)
    folder, images = write(model, tmp_path / "bundle"), pictures(model)
    file = str(folder / "model.safetensors")
    for options in ({"checkpoint_path": file}, {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}):
        assert torch.equal(
            timm.create_model("vim_nano", schedule=SCHEDULE.text, **options).eval()(images), model(images)
        )
    with pytest.raises(ScheduleError, match="block 99"):
        timm.create_model("vim_nano", schedule="99:0.5")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["model.safetensors", "schedule.json", "preprocessing.json", "config.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(Path.unlink, "is missing"), (_truncate, "SHA-256 differs"), (_flip, "SHA-256 differs")],
)
def test_a_damaged_bundle_is_one_line(
    model: PrunableModel, tmp_path: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    folder = write(model, tmp_path / "bundle")
    damage(folder / name)
    with pytest.raises(ExportError, match=rf"{name} .*{message}") as told:
        ssm_models.load_bundle(folder)
    assert "\n" not in str(told.value)
    with pytest.raises((ExportError, OSError, ValueError)):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"version": 2}, "version 2 is newer than 1"),
        ({"version": True}, "version is True"),
        ({"files": []}, "lists no files"),
        ({"files": {}}, "does not list model.safetensors"),
        ({"files": {"../secret": "0"}}, "'../secret', which is not the name of a file in it"),
    ],
)
def test_a_manifest_that_makes_no_sense(
    model: PrunableModel, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write(model, tmp_path / "bundle") / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ExportError, match=message):
        ssm_models.load_bundle(path.parent)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_any_manifest_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(ExportError):
        ssm_models.load_bundle(tmp_path)


@torch.inference_mode()
def test_the_card_is_there_to_be_written_on(model: PrunableModel, tmp_path: Path) -> None:
    with bundle.building(tmp_path / "bundle") as folder:
        bundle.write_parts(folder, model, model.schedule.as_dict())
        (folder / "README.md").write_text("license: unknown")
    card = tmp_path / "bundle" / "README.md"
    card.write_text("license: mit")
    assert torch.equal(ssm_models.load_bundle(card.parent)(pictures(model)), model(pictures(model)))
    timm.create_model(f"local-dir:{card.parent}", pretrained=True)
    with pytest.raises(ExportError, match=r"its README\.md was edited; move it away"):
        write(model, card.parent)
    assert card.read_text() == "license: mit"
    card.unlink()
    card.mkdir()
    with pytest.raises(ExportError, match="cannot be written: Is a directory"):
        write(model, card.parent)
    card.rmdir()
    write(model, card.parent)  # it is still a bundle, which another one may replace


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ExportError, match=r"no bundle\.json in it: not a bundle, or not a whole one"):
            ssm_models.load_bundle(path)


def test_a_bundle_takes_the_place_of_an_older_one_and_of_nothing_else(model: PrunableModel, tmp_path: Path) -> None:
    folder = write(model, tmp_path / "bundle")
    model.set_schedule(SCHEDULE)
    write(model, folder)
    assert ssm_models.load_bundle(folder).schedule == SCHEDULE
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds 'notes\.txt', which is of no bundle; name a new folder"):
        write(model, folder)
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is a file; name a folder"):
        write(model, tmp_path / "file")
    with pytest.raises(ExportError, match="cannot be written: No such file"):
        write(model, tmp_path / "nowhere" / "bundle")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "file"}
    assert (folder / "notes.txt").read_text() == "mine"


def test_where_the_new_one_cannot_take_its_place_the_old_one_stays(
    model: PrunableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = write(model, tmp_path / "bundle"), Path.replace

    def replace(path: Path, target: Path) -> Path:
        if path.name.startswith(".bundle.") and path.suffix == ".part":
            raise PermissionError(13, "Permission denied")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(bundle, "_exchanged", lambda one, other: False)
    with pytest.raises(ExportError, match="Permission denied"):
        write(model, folder)
    ssm_models.load_bundle(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_new_one_takes_the_old_ones_place(
    model: PrunableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    with bundle.building(tmp_path / "bundle") as folder:
        bundle.write_parts(folder, model, model.schedule.as_dict())
        (folder / "README.md").write_text("the old one's")
    folder = tmp_path / "bundle"
    if at_once:
        if not sys.platform.startswith("linux"):
            pytest.skip("two folders cannot change places in one step here")
        real = Path.replace

        def replace(path: Path, target: Path) -> Path:
            assert path != folder, "there was a moment without a bundle"
            return real(path, target)

        monkeypatch.setattr(Path, "replace", replace)
    else:
        monkeypatch.setattr(bundle, "_exchanged", lambda one, other: False)
    write(model, folder)
    assert not (folder / "README.md").exists()
    ssm_models.load_bundle(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_appears_whole_or_not_at_all(model: PrunableModel, tmp_path: Path) -> None:
    folder = write(model, tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(KeyboardInterrupt), bundle.building(folder) as building:
        bundle.write_parts(building, model, model.schedule.as_dict())
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
