"""What a model takes: images of its size, channels and dtype, and schedules."""

import numpy as np
import pytest
import torch

import ssm_models
from spaces import PruningSchedule
from spaces.errors import ScheduleError, UnknownNameError, UsageError
from ssm_models import PrunableModel
from tests.ssm_models.conftest import pictures, shaken


@pytest.mark.parametrize("training", [False, True])
def test_images_of_another_size_are_refused(any_model: PrunableModel, training: bool) -> None:
    side = any_model.img_size[0]
    model = ssm_models.create_model(any_model.model_name, img_size=(side, 2 * side)).train(training)
    images = torch.rand(2, 3, side, 2 * side)
    pixels = (side, 2 * side) if model.task == "segmentation" else ()
    assert model(images).shape == (2, model.num_classes, *pixels)
    for text in ("", "2:0.5"):
        model.set_schedule(PruningSchedule.parse(text))
        for wrong in (images.transpose(2, 3), images[..., :-1], images[:, :1], images.repeat(1, 2, 1, 1), images[0]):
            for call in (model, model.begin, model.kept_patches):
                with pytest.raises(UsageError, match=f"{side}×{2 * side} pixels") as caught:
                    call(wrong)
                assert str(tuple(wrong.shape)) in str(caught.value) and "\n" not in str(caught.value)


def test_the_transposed_image_of_the_case() -> None:
    model = ssm_models.build("vim_nano", img_size=(24, 32))
    with pytest.raises(UsageError, match=r"takes images of 24×32 pixels, \(batch, 3, 24, 32\), got \(2, 3, 32, 24\)"):
        model(torch.rand(2, 3, 32, 24))


def test_other_channels() -> None:
    grey = ssm_models.create_model("vim_nano", in_chans=1)
    assert grey(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(UsageError, match=r"\(batch, 1, 28, 28\), got \(2, 3, 28, 28\)"):
        grey(torch.rand(2, 3, 28, 28))


def test_images_of_another_dtype_are_refused(model: PrunableModel) -> None:
    for images in (torch.zeros(1, 3, 28, 28, dtype=torch.uint8), torch.zeros(1, 3, 28, 28, dtype=torch.float64)):
        with pytest.raises(UsageError, match=r"weights of float32, got images of (uint8|float64)"):
            model(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.zeros(1, 3, 28, 28)).shape == (1, 10)
        assert model(torch.zeros(1, 3, 28, 28, dtype=torch.bfloat16)).shape == (1, 10)
        with pytest.raises(UsageError, match="uint8"):
            model(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))
    with pytest.raises(UsageError, match="got ndarray"):
        model(np.zeros((1, 3, 28, 28), np.float32))


@torch.inference_mode()
@pytest.mark.parametrize("schedule", ["", "2:0.5"])
def test_a_batch_without_images_has_no_logits(any_model: PrunableModel, schedule: str) -> None:
    any_model.set_schedule(PruningSchedule.parse(schedule))
    empty = pictures(any_model)[:0]
    assert any_model(empty).shape == any_model(pictures(any_model, 1))[:0].shape
    with pytest.raises(UsageError, match="no images"):
        any_model.kept_patches(empty)


@torch.inference_mode()
@pytest.mark.parametrize("schedule", ["", "2:0.5"])
def test_a_nan_stays_in_its_image(any_model: PrunableModel, schedule: str) -> None:
    any_model.set_schedule(PruningSchedule.parse(schedule))
    images = pictures(any_model, 3)
    expected = any_model(images)
    images[1, 0, 0, 0] = float("nan")
    found = any_model(images)
    assert torch.allclose(found[[0, 2]], expected[[0, 2]], atol=1e-4 * expected.abs().max().item())
    assert found[1].isnan().any() if any_model.task == "segmentation" else found[1].isnan().all()


def test_the_check_is_exportable(model: PrunableModel) -> None:
    batch = torch.export.Dim("batch", min=1)
    one = shaken(ssm_models.create_model("vim_nano", img_size=8))
    program = torch.export.export(one, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},), strict=False)
    assert program.module()(torch.zeros(3, 3, 8, 8)).shape == (3, 10)


def test_a_schedule_may_be_given_as_text(model: PrunableModel) -> None:
    for schedule in ("2:0.5;importance=l2", "", None):
        model.set_schedule(schedule)
        assert model.schedule == PruningSchedule.parse(schedule or "")
        assert model.layout.tokens(model.schedule) == model.layout.tokens(schedule or "")
    for wrong, message in (
        (0, "expected a PruningSchedule, its text"),
        ("2:", "step '2:'"),
        ("200:0.5", "block 200"),
    ):
        with pytest.raises(ScheduleError, match=message):
            model.set_schedule(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 0}, "img_size is 0"),
        ({"img_size": (28,)}, "img_size is"),
        ({"img_size": (28, 28, 3)}, "img_size is"),
        ({"img_size": 28.5}, "img_size is"),
        ({"img_size": "28"}, "img_size is '28'"),
        ({"img_size": (-4, 28)}, "img_size is"),
        ({"img_size": True}, "img_size is"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"num_classes": 2.5}, "num_classes is"),
        ({"drop_path_rate": 1.5}, "drop_path_rate is"),
        ({"drop_path_rate": float("nan")}, "drop_path_rate is"),
        ({"in_chans": 0}, "in_chans is 0"),
    ],
)
def test_options_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ssm_models.create_model("vim_nano", **options)


def test_unknown_options_are_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown option of vim_nano: 'in_chan': did you mean 'in_chans'"):
        ssm_models.create_model("vim_nano", in_chan=1)


def test_sizes_of_other_kinds() -> None:
    model = ssm_models.create_model("vim_nano", img_size=[np.int64(8), 12], num_classes=np.int64(3))
    assert model.img_size == (8, 12) and all(type(side) is int for side in model.img_size)
