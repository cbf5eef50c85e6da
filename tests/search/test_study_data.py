"""Studies and the way their images are read: the order of classes, and EXIF orientation."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import ssm_models
from results.records import StudySpec
from results.store.store import Store
from search.cli import run
from search.config import SearchConfig
from search.data.dataset import open_data
from search.driver.search_setup import open_setup
from search.driver.study_identity import begun_study, open_study
from search.study_data import check_reading, open_study_data
from spaces.errors import DataError, StudyMismatchError
from tests.search.pictures import write_folder

NUMBERS = tuple(map(str, range(12)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "numbers", NUMBERS, each=2, split_names=("val",))


@pytest.fixture(scope="module")
def config(root: Path) -> SearchConfig:
    """Weights of twelve classes that do not name them."""
    weights = root.parent / "weights.pth"
    torch.save(ssm_models.create_model("vim_nano", 12).state_dict(), weights)
    return SearchConfig(
        model="vim_nano", study="s", data=f"folder:{root}", checkpoint=str(weights), flops_budget="0.9", trials=1
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'x.db'}"


def begin(config: SearchConfig, url: str, **forgotten: str) -> StudySpec:
    """Begin a study, without what an earlier version did not record, and return what it was begun with."""
    setup = open_setup(config)
    store, study, _ = open_study(setup, url)
    store.close()
    assert study.spec.config["orientation"] == "exif"
    if not forgotten:
        return study.spec
    kept = {key: value for key, value in study.spec.config.items() if key not in ("class_order", "orientation")}
    return replace(study.spec, config=kept)


def test_a_new_study_of_two_orders_is_refused(config: SearchConfig) -> None:
    with pytest.raises(DataError, match=r"'10' is number 3 .*; choose with --class-order"):
        open_setup(config)


@pytest.mark.parametrize("order", ["text", "natural"])
def test_the_order_is_stored_and_holds_for_whatever_comes_later(config: SearchConfig, url: str, order: str) -> None:
    spec = begin(replace(config, class_order=order), url)
    assert spec.config["class_order"] == order
    begun = begun_study(url, "s")
    assert begun is not None
    resumed = open_setup(config, begun)
    assert (resumed.data.class_order, resumed.data_digest) == (order, spec.data_digest)
    with Store.open(url) as store:
        assert store.study("s").spec.config["class_order"] == order
    assert open_study_data(spec).digest() == spec.data_digest
    _, _, dense = open_study(resumed, url)
    assert resumed.worker_setup(dense).class_order == order


def test_a_resume_in_another_order_is_refused(config: SearchConfig, url: str) -> None:
    begin(replace(config, class_order="natural"), url)
    other = open_setup(replace(config, class_order="text"), begun_study(url, "s"))
    with pytest.raises(
        StudyMismatchError, match=r"images, or the order of their classes \(--data, --class-order\) was"
    ):
        open_study(other, url)


def test_a_study_of_an_earlier_version_had_text_order(config: SearchConfig, url: str) -> None:
    spec = begin(replace(config, class_order="text"), url, forgotten="all")
    resumed = open_setup(config, spec)
    assert (resumed.data.class_order, resumed.data_digest) == ("text", spec.data_digest)


def test_there_is_no_study_before_it_is_begun(config: SearchConfig, url: str) -> None:
    assert begun_study(url, "s") is None
    begin(replace(config, class_order="text"), url)
    assert begun_study(url, "other") is None


def test_an_earlier_study_of_turned_images_is_refused(config: SearchConfig, url: str, root: Path) -> None:
    """Their files, and so their digests, are equal, but an earlier version left them unturned."""
    path = root / "val" / "3" / "0.png"
    exif = Image.Exif()
    exif[0x112] = 6
    Image.open(path).save(path, exif=exif)
    chosen = replace(config, class_order="text")
    spec = begin(chosen, url)
    check_reading(spec, open_study_data(spec), ["val"])  # begun today
    earlier = replace(spec, config={"class_order": "text"})
    with pytest.raises(DataError, match=r"val/3/0\.png has an EXIF orientation, .* begin another study"):
        check_reading(earlier, open_study_data(spec), ["val"])
    Image.open(path).save(path, exif=Image.Exif())
    check_reading(earlier, open_study_data(spec), ["val"])


def test_classes_that_a_file_describes_have_its_order(tmp_path: Path) -> None:
    """Names such as Background, Water and building differ in text and natural order; classes.json decides."""
    for kind in ("images", "masks"):
        (tmp_path / "val" / kind).mkdir(parents=True)
        Image.new("RGB" if kind == "images" else "L", (64, 64)).save(tmp_path / "val" / kind / "a.png")
    names = ["Background", "Water", "building"]
    classes = [{"name": name, "id": number} for number, name in enumerate(names)]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes, "window": 64}))
    data = open_data(f"segmentation:{tmp_path}")
    for weights in ("weights.safetensors", None):
        data.settle_order(names, weights)
        data.settle_order(None, weights)
    assert data.classes == names


def test_a_resumed_study_keeps_its_image_size(url: str, tmp_path: Path) -> None:
    weights = tmp_path / "wide.pth"
    torch.save(ssm_models.create_model("vim_nano", img_size=(32, 72)).state_dict(), weights)
    config = SearchConfig(
        model="vim_nano", study="s", data="embedded", checkpoint=str(weights), flops_budget="0.9", trials=1,
        images=10, img_size="32x72",
    )  # fmt: skip
    spec = begin(config, url)
    resumed = open_setup(replace(config, img_size=None), spec)
    assert resumed.model.img_size == spec.img_size == (32, 72)


def test_a_fine_tuning_at_another_image_size_is_not_recorded(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights without position embeddings are alike at every size, so their digest does not tell."""
    weights, schedule = tmp_path / "weights.safetensors", tmp_path / "schedule.json"
    model = ssm_models.create_model("vmamba_nano", 10)
    ssm_models.save_checkpoint(model, weights, {})
    config = SearchConfig(
        model="vmamba_nano",
        study="s",
        data="embedded",
        checkpoint=str(weights),
        flops_budget="0.9",
        trials=1,
        images=10,
    )
    height, width = begin(config, url).img_size
    schedule.write_text(
        json.dumps(
            {
                "format": "prunefront.schedule",
                "version": 1,
                "model": "vmamba_nano",
                "steps": [{"after": 1, "keep": 0.5}],
            }
        )
    )
    command = [
        "finetune",
        str(schedule),
        "--study",
        "s",
        "--db",
        url,
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert run([*command, "--img-size", f"{2 * height}x{2 * width}"]) == 2
    assert f"is about images of {height}×{width} pixels: give --img-size {height}x{width}" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()
