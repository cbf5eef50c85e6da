"""VSSD: the authors' logits, and what pruning does to a sum that has no order."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ssm_models
from ssm_models.families.vssd import Attention, VSSDConfig, VSSDMixer, order_free
from tests.ssm_models.conftest import NESTED, fates_of_a_batch, places, view_of

SIZES = {  # parameters, keys and GFLOPs of the authors' models
    "vssd_micro": (13_512_964, 379, 2.39),
    "vssd_tiny": (24_270_724, 421, 4.66),
    "vssd_small": (40_075_650, 730, 7.71),
    "vssd_base": (88_823_151, 730, 16.65),
}


def test_logits_are_the_authors(reference: Path) -> None:
    from seeded_weights import image, tensor_for

    known = json.loads((reference / "parity" / "vssd_micro.json").read_text())["tensors"]
    state = {name: tensor_for(name, tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in known.items()}
    model = ssm_models.create_model("vssd_micro").eval()
    ssm_models.load_checkpoint(model, {"model": state})
    expected = np.load(reference / "parity" / "vssd_micro.npz")["logits"]
    with torch.inference_mode():
        found = model(image((1, 3, 224, 224)))
    assert np.abs(found.numpy() - expected).max() <= 1e-5


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_authors(name: str) -> None:
    with torch.device("meta"):
        model = ssm_models.create_model(name)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == SIZES[name][:2]
    assert [stage.tokens for stage in model.layout.stages] == [56**2, 28**2, 14**2, 7**2]


def test_flops() -> None:
    """What runs; by how much the published count is lower is said at the head of the module."""
    model = ssm_models.create_model("vssd_micro").eval()
    assert ssm_models.cost_table(model).dense / 1e9 == pytest.approx(SIZES["vssd_micro"][2], abs=0.005)


@given(st.data())
@settings(max_examples=40)
def test_to_drop_a_token_is_to_set_its_weight_to_zero(data: st.DataObject) -> None:
    """For any kept set, of any values, in any order: there is nothing for alignment to put right."""
    length = data.draw(st.integers(1, 12))
    keep = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1)))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    u, m = torch.randn(2, length, 8).double(), torch.rand(2, length, 4).double()
    B, C = torch.randn(2, length, 3).double(), torch.randn(2, length, 3).double()
    masked = torch.zeros_like(m)
    masked[:, keep] = m[:, keep]
    whole = order_free(u, masked, B, C)
    assert torch.allclose(order_free(u[:, keep], m[:, keep], B[:, keep], C[:, keep]), whole[:, keep], atol=1e-12)
    order = data.draw(st.permutations(keep))
    assert torch.allclose(order_free(u[:, order], m[:, order], B[:, order], C[:, order]), whole[:, order], atol=1e-12)


def shaken_mixer(mixer: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return mixer.eval()


def slow(mixer: VSSDMixer, x: Tensor, fates: list[str], height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """One image by the definition, token by token; returns Δ, the gated output and the change of the kept."""
    travels, seen, kept = (places(fates, *members) for members in NESTED)
    inner, states, heads = mixer.inner, mixer.states, len(mixer.A_log)
    z, xbc, dt = F.linear(x, mixer.in_proj.weight).split([inner, inner + 2 * states, heads], -1)
    grid = torch.where(torch.tensor([t in travels for t in range(len(x))])[:, None], xbc, 0).T
    u, B, C = F.silu(mixer.conv2d(grid.reshape(1, -1, height, width))[0].flatten(1).T).split(
        [inner, states, states], -1
    )
    delta = F.softplus(dt + mixer.dt_bias)
    m = delta * mixer.A_log.exp()
    outputs = []
    for t in kept:
        y = torch.cat([
            sum(C[t] @ B[s] * m[s, h] * part for s, part in zip(seen, values, strict=True)) + mixer.D[h] * own
            for h, (values, own) in enumerate(zip(u[seen].chunk(heads, -1), u[t].chunk(heads), strict=True))
        ])  # fmt: skip
        outputs.append(mixer.norm(y) * z[t])
    return delta[kept], torch.stack(outputs), mixer.out_proj(torch.stack(outputs))


@settings(max_examples=30)
@given(st.data())
def test_a_pruned_mixer_is_the_sum_over_what_the_state_sees(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    contexts = data.draw(st.sampled_from([("drop",), ("conv",), ("freeze",), ("drop", "conv", "freeze")]))
    fates = data.draw(fates_of_a_batch(2, height * width, *contexts))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    mixer = shaken_mixer(VSSDMixer(VSSDConfig(8, (1,), (2,), states=4), 8, 2))
    view = replace(view_of(fates), grid=(height, width))
    full = torch.randn(2, height * width, 8)
    x = torch.stack([full[b, places(image, *NESTED[0])] for b, image in enumerate(fates)])
    with torch.inference_mode():
        found, signals = mixer(x, view, True)
        for b, image in enumerate(fates):
            delta, y, change = slow(mixer, full[b], image, height, width)
            assert torch.allclose(signals.deltas()[0][b], delta, atol=1e-5)
            assert torch.allclose(signals.y[b], y, atol=1e-4)
            assert torch.allclose(found[b], change, atol=1e-4 * max(1.0, change.abs().max().item()))


@settings(max_examples=20)
@given(st.data())
def test_pruned_attention_is_that_of_the_kept_to_what_would_be_seen(data: st.DataObject) -> None:
    fates = data.draw(fates_of_a_batch(2, 9, "drop", "conv", "freeze"))
    torch.manual_seed(0)
    mixer, full = shaken_mixer(Attention(8, 2)), torch.randn(2, 9, 8)
    x = torch.stack([full[b, places(image, *NESTED[0])] for b, image in enumerate(fates)])
    with torch.inference_mode():
        found, signals = mixer(x, view_of(fates), True)
        for b, image in enumerate(fates):
            _, seen, kept = (places(image, *members) for members in NESTED)
            q, k, v = (part.view(9, 2, 4).transpose(0, 1) for part in mixer.to_qkv(full[b]).chunk(3, -1))
            y = F.scaled_dot_product_attention(q[:, kept], k[:, seen], v[:, seen]).transpose(0, 1).flatten(1)
            assert torch.allclose(signals.y[b], y, atol=1e-5) and torch.allclose(found[b], mixer.to_out(y), atol=1e-5)
            share = (q[:, kept] @ k[:, seen].transpose(1, 2) / 2).softmax(-1).mean(1).T
            assert torch.allclose(signals.deltas()[0][b], share[[seen.index(t) for t in kept]], atol=1e-5)
