"""What users of timm ask of a model: features, heads and dropout, or one line that says why not."""

import pytest
import timm
import torch

import ssm_models
from spaces import PruningSchedule
from spaces.errors import CheckpointError, UsageError
from ssm_models import PrunableModel
from tests.ssm_models.conftest import pictures


def with_schedule(model: PrunableModel, text: str) -> PrunableModel:
    model.set_schedule(PruningSchedule.parse(text))
    return model


@torch.inference_mode()
def test_features_and_heads_make_up_the_forward_pass(any_model: PrunableModel) -> None:
    if any_model.task != "classification":
        for call in (any_model.forward_features, any_model.forward_head):
            with pytest.raises(UsageError, match="not supported for a model for segmentation"):
                call(pictures(any_model))
        with pytest.raises(UsageError, match="segmentation"):
            any_model.reset_classifier(3)
        with pytest.raises(UsageError, match="num_classes is 0"):
            ssm_models.create_model(any_model.model_name, num_classes=0)
        return
    images, width = pictures(any_model, 3), any_model.num_features
    for text in ("", "1:0.5,3:0.6", "1:0.7;context=freeze", "1:0.5;context=conv"):
        logits = with_schedule(any_model, text)(images)
        tokens = any_model.forward_features(images)
        assert tokens.shape[0] == 3 and tokens.shape[2] == width
        assert torch.allclose(any_model.forward_head(tokens), logits, atol=1e-5 * logits.abs().max().item())
        features = any_model.forward_head(tokens, pre_logits=True)
        assert features.shape == (3, width)
        any_model_head = any_model.get_classifier()
        layers = any_model_head if isinstance(any_model_head, tuple) else (any_model_head,)
        expected = sum(layer(features) for layer in layers) / len(layers)
        assert torch.allclose(expected, logits, atol=1e-5 * logits.abs().max().item())
    any_model.reset_classifier(0)
    assert any_model.num_classes == 0 and any_model.num_features == width
    assert torch.allclose(any_model(images), features, atol=1e-6 * features.abs().max().item())
    assert any_model(images[:0]).shape == (0, width)
    any_model.reset_classifier(4)
    assert any_model(images).shape == (3, 4) and any_model.pretrained_cfg["num_classes"] == 4


def test_no_classes_give_the_features_of_the_weights() -> None:
    images = torch.rand(2, 3, 28, 28)
    whole = timm.create_model("vim_nano", pretrained=True).eval()
    bare = timm.create_model("vim_nano", pretrained=True, num_classes=0, schedule="4:0.5").eval()
    with torch.inference_mode():
        expected = whole.forward_head(with_schedule(whole, "4:0.5").forward_features(images), pre_logits=True)
        assert bare(images).shape == (2, 64)
        assert torch.allclose(bare(images), expected, atol=1e-5)
    with pytest.warns(UserWarning, match="are for 10 classes, the model has 3: it begins with a new head"):
        three = timm.create_model("vim_nano", pretrained=True, num_classes=3)
    assert torch.equal(three.norm_f.weight, whole.norm_f.weight) and three(images).shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 2, 5])
@torch.inference_mode()
def test_weights_for_colours_are_adapted_to_other_channels_as_in_timm(channels: int) -> None:
    """The channels of the first convolution are summed for one channel, and repeated for others."""
    with pytest.warns(UserWarning, match=r"patch_embed\.proj\.weight: its 3 channels are (summed|repeated)"):
        model = timm.create_model("vim_nano", pretrained=True, in_chans=channels).eval()
    whole = timm.create_model("vim_nano", pretrained=True).eval()
    assert torch.equal(
        model.patch_embed.proj.weight, timm.models.adapt_input_conv(channels, whole.patch_embed.proj.weight)
    )
    if channels == 1:
        grey = torch.rand(2, 1, 28, 28)
        assert torch.allclose(model(grey), whole(grey.expand(-1, 3, -1, -1)), atol=1e-4)
    with pytest.raises(CheckpointError, match="misshapen"):
        ssm_models.load_checkpoint(model, whole.state_dict())


def test_dropout_before_the_head_in_training_alone() -> None:
    model = timm.create_model("vim_nano", drop_rate=0.5)
    images = torch.rand(2, 3, 28, 28)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features_only": True}, "features_only is not supported"),
        ({"global_pool": ""}, "pools by 'token' alone; forward_features gives the tokens"),
        ({"global_pool": "avg"}, "pools by 'token' alone"),
        ({"drop_rate": 1.0}, "drop_rate is 1.0"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"out_indices": (1, 2)}, "unknown option of vim_nano: 'out_indices'"),
    ],
)
def test_what_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        timm.create_model("vim_nano", **options)


def test_requests_that_change_nothing() -> None:
    model = timm.create_model("vim_nano", global_pool="token", features_only=False, drop_rate=0.0)
    model.set_grad_checkpointing(False)
    with pytest.raises(UsageError, match="gradient checkpointing is not supported"):
        model.set_grad_checkpointing()
    for wrong in ({"num_classes": -1}, {"num_classes": 3, "global_pool": "avg"}):
        with pytest.raises(UsageError):
            model.reset_classifier(**wrong)
