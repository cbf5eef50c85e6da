"""Opening a model for a data set."""

import json
from pathlib import Path

import pytest

import ssm_models
from search.data.dataset import ImageData, open_data
from search.models import open_model
from spaces.errors import DataError
from tests.search.pictures import write_folder

CLASSES = ("cat", "dog")


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    return open_data(f"folder:{write_folder(tmp_path / 'images', CLASSES)}")


def write_weights(path: Path, classes: object, num_classes: int = 2) -> ssm_models.PrunableModel:
    model = ssm_models.create_model("vim_nano", num_classes)
    ssm_models.save_checkpoint(model, path, {} if classes is None else {"classes": json.dumps(classes)})
    return model


@pytest.mark.parametrize("classes", [["cat", "dog"], ["Felis", "Canis"], None, {"not": "a list"}])
def test_weights_of_fitting_or_unknown_classes(data: ImageData, tmp_path: Path, classes: object) -> None:
    written = write_weights(tmp_path / "w.safetensors", classes)
    opened = open_model("vim_nano", str(tmp_path / "w.safetensors"), data)
    assert ssm_models.weights_digest(opened) == ssm_models.weights_digest(written)
    assert not opened.training


def test_weights_of_classes_in_another_order_are_refused(data: ImageData, tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", ["dog", "cat"])
    with pytest.raises(DataError, match=r"class 'cat' is number 1, but .*w\.safetensors learned it as number 2"):
        open_model("vim_nano", str(tmp_path / "w.safetensors"), data)


def test_weights_of_another_number_of_classes_are_refused(data: ImageData, tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", None, num_classes=3)
    with pytest.raises(DataError, match="has 2 classes but vim_nano answers with 3"):
        open_model("vim_nano", str(tmp_path / "w.safetensors"), data)


def test_random_weights_take_the_number_of_classes_from_the_data(data: ImageData) -> None:
    assert open_model("vim_nano", "random", data).num_classes == 2


def test_the_shipped_weights_are_the_default() -> None:
    assert open_model("vim_nano", None, open_data("embedded")).num_classes == 10
