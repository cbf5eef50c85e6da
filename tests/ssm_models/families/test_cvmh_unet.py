"""CVMH-UNet by the formulas that its module states, and segmenters of classifiers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import ssm_models
from spaces import PruningSchedule
from spaces.errors import UsageError
from ssm_models.families.cvmh_unet import CVMHConfig, CVMHUNet, CVSSBlock
from ssm_models.families.staged import as_grid, as_tokens
from ssm_models.token_sets import TokenSets
from ssm_models.token_view import TokenView
from tests.ssm_models.conftest import pictures, shaken, view_of

CONFIG = CVMHConfig(16, (2, 3), decoder=(2, 1), states=4)


def small(size: tuple[int, int] = (24, 40)) -> CVMHUNet:
    torch.manual_seed(0)
    model = CVMHUNet(CONFIG, "cvmh_small_one", 3, size)
    shaken(model)
    return model


def test_sizes() -> None:
    """With the parameters of the state-space models, which the paper's counter leaves out, it has 36.2 million."""
    model = ssm_models.create_model("cvmh_unet")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(36.2, rel=0.01)
    assert [stage.blocks for stage in model.layout.stages] == [2, 2, 2, 2, 2, 2, 2, 1]
    assert [stage.height for stage in model.layout.stages] == [64, 32, 16, 8, 8, 16, 32, 64]


def test_the_count_has_the_scan() -> None:
    """About 9.9 GFLOPs, of which the paper's 5.71 leave out 4.19 of scans and of their projections."""
    table = ssm_models.cost_table(ssm_models.create_model("cvmh_unet").eval())
    assert table.dense / 1e9 == pytest.approx(9.9, rel=0.04)


@torch.inference_mode()
def test_a_block_by_its_formula() -> None:
    torch.manual_seed(0)
    block = CVSSBlock(CONFIG, 16, None, 0.0).eval()
    for parameter in block.parameters():
        parameter += 0.1 * torch.randn(parameter.shape)
    x, grid = torch.randn(2, 12, 16), (3, 4)
    view = TokenView(TokenSets(12), torch.zeros(2).long(), PruningSchedule().method, grid=grid)

    def over(conv: Any, tokens: torch.Tensor) -> torch.Tensor:
        return as_tokens(conv(as_grid(tokens, grid)))

    scanned = x + block.op(block.norm(x), view, False)[0]
    layers = block.channel_attention.layers
    channels = torch.sigmoid(layers(scanned.mean(1)) + layers(scanned.max(1).values))[:, None]
    local = block.local.mix(over(block.local.conv, x))
    maps = torch.stack([local.mean(2), local.max(2).values], 1).view(2, 2, *grid)
    places = torch.sigmoid(block.local.attention(maps)).flatten(2).transpose(1, 2)
    both = scanned * channels + local * places
    up = x + block.fuse_mix(block.fuse_norm(over(block.fuse, both)))
    hidden = block.ffn.narrow(up)
    out = up + block.ffn.widen(F.gelu(over(block.ffn.conv3, hidden) + over(block.ffn.conv5, hidden)))
    assert torch.allclose(block(x, view, False)[0], out, atol=1e-5)


@torch.inference_mode()
def test_pairs_have_a_skip_around_them_and_odd_blocks_have_none() -> None:
    model, images = small(), torch.randn(1, 3, 24, 40)
    places = [[block.place for block in stage] for stage in model.stages]
    assert places == [[0, 1], [0, 1, None], [0, 1], [None]]
    x, view = model.begin(images)
    first, second = model.stages[0]
    inner = first(x, view, False)[0]
    assert torch.equal(inner[..., 16:], x)
    around = second(inner, view, False)[0]
    second.place = None
    assert torch.allclose(around, second(inner[..., :16], view, False)[0] + x)


@torch.inference_mode()
def test_a_token_that_is_gone_gets_what_a_frozen_one_gets() -> None:
    """The skip around a pair, and nothing of its blocks."""
    torch.manual_seed(0)
    fates = [["kept", "freeze", "kept", "freeze", "kept", "kept"]]
    for place, width in ((0, 16), (1, 32), (None, 16)):
        block, x = CVSSBlock(CONFIG, 16, place, 0.0).eval(), torch.randn(1, 6, width)
        view = view_of(fates)
        object.__setattr__(view, "grid", (2, 3))
        after = block(x, view, False)[0]
        assert torch.allclose(after[:, [1, 3]], block.pass_by(x)[:, [1, 3]])
        assert not torch.allclose(after[:, [0]], block.pass_by(x)[:, [0]])


@torch.inference_mode()
def test_skips_and_decoder_get_whole_grids() -> None:
    """Of every stage, also where most of its tokens were pruned; grids that cannot be halved are met again."""
    model = small((20, 36))
    model.set_schedule(PruningSchedule.parse("1:0.2,3:0.3,4:0.5,6:0.4"))
    images = torch.randn(2, 3, 20, 36)
    assert [(s.height, s.width) for s in model.layout.stages] == [(5, 9), (3, 5), (3, 5), (5, 9)]
    x, view, kept = model.run_blocks(images)
    assert [k.shape[1] for k in kept] == [9, 5, 3, 6]
    assert x.shape == (2, 45, 16) and view.sets.travelling_idx is None
    assert [skip.shape for skip in view.aside] == [(2, 45, 16)]
    assert torch.equal(view.aside[0], model.embed(images))
    assert model(images).shape == (2, 3, 20, 36)


@torch.inference_mode()
def test_images_that_the_patches_do_not_fill() -> None:
    """What is left at the far edges has the answers beside it."""
    model, whole = small((23, 42)), small((20, 40))
    images = torch.randn(2, 3, 23, 42)
    found = model(images)
    assert found.shape == (2, 3, 23, 42)
    assert torch.equal(found[:, :, :20, :40], whole(images[:, :, :20, :40]))
    assert torch.equal(found[:, :, 20:, :40], found[:, :, 19:20, :40].expand(-1, -1, 3, -1))
    with pytest.raises(UsageError, match="smaller than a patch of 4"):
        ssm_models.create_model("cvmh_unet_nano", img_size=3)


@torch.inference_mode()
def test_a_segmenter_adds_up_the_logits_of_all_grids() -> None:
    model = ssm_models.create_model("vmamba_nano_segmenter", 3, 32).eval()
    images = pictures(model, 2)
    with torch.no_grad():
        for head in model.heads[:-1]:
            head[1].weight.zero_()
            head[1].bias.fill_(1.0)
    x = model.run_blocks(images)[0]
    last = as_grid(model.heads[-1](x), (2, 2)) + 3.0
    expected = F.interpolate(F.interpolate(last, (8, 8), mode="bilinear"), (32, 32), mode="bilinear")
    assert torch.allclose(model(images), expected, atol=1e-5)
