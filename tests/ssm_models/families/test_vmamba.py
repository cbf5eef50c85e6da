"""VMamba: the authors' logits, and what pruning does to its cross-scan and its stages."""

import json
from collections.abc import Sequence
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
from spaces import PruningSchedule
from spaces.ratios import canonical
from spaces.schedule import ALIGNMENT
from ssm_models.families.vmamba import SS2D, VMamba, VMambaConfig
from tests.ssm_models.conftest import (
    KEPT,
    NESTED,
    fates_of_a_batch,
    gap_sums_along_the_paths,
    pictures,
    places,
    shaken,
    view_of,
)

SIZES = {  # parameters and keys of the authors' models
    "vmamba_tiny_s1l8": (30_249_064, 276),
    "vmamba_tiny_s2l5": (30_705_832, 222),
    "vmamba_small_s2l15": (50_147_752, 402),
    "vmamba_v0_tiny": (22_893_448, 212),
}


def test_logits_are_the_authors(reference: Path) -> None:
    from seeded_weights import image, tensor_for

    known = json.loads((reference / "parity" / "vmamba_tiny_s1l8.json").read_text())["tensors"]
    state = {name: tensor_for(name, tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in known.items()}
    model = ssm_models.create_model("vmamba_tiny_s1l8").eval()
    ssm_models.load_checkpoint(model, {"model": state})
    expected = np.load(reference / "parity" / "vmamba_tiny_s1l8.npz")["logits"]
    with torch.inference_mode():
        found = model(image((1, 3, 224, 224)))
    assert np.abs(found.numpy() - expected).max() <= 1e-5


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_authors(name: str) -> None:
    with torch.device("meta"):
        model = ssm_models.create_model(name)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == SIZES[name]
    assert [stage.tokens for stage in model.layout.stages] == [56**2, 28**2, 14**2, 7**2]


def test_names_of_the_first_release_and_convolutions_as_linear_layers_load() -> None:
    model, other = (VMamba(VMambaConfig(8, (1, 1), expand=2, mlp=0, v0=True), "small", 3, (8, 8)) for _ in range(2))
    old = {}
    for key, value in model.state_dict().items():
        key = key.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        key = key.replace(".blocks.0.norm.", ".blocks.0.ln_1.").replace(".op.", ".self_attention.")
        value = value[..., None, None] if key.endswith("in_proj.weight") else value
        old[key.removeprefix("classifier.")] = value.clone()
    ssm_models.load_checkpoint(other, {"model": old})
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def shaken_mixer(v0: bool) -> SS2D:
    torch.manual_seed(0)
    mixer = SS2D(VMambaConfig(8, (1,), expand=2, states=4, v0=v0), 8)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return mixer.eval()


def slow(
    mixer: SS2D, grid: tuple[int, int], x: Tensor, fates: Sequence[str], policy: str, past: Tensor
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """One image by the definition: x (L, dim) has the features of all raster tokens.

    `past` (4, L, D) is the Δ that each token had when it was pruned, by direction, for the policy `hold`. Returns Δ
    (4, L, D) and each direction's output (4, L, D), where a token has them, and the changes of the kept.
    """
    (height, width), inner, rank, states = grid, mixer.inner, mixer.rank, mixer.states
    length, raster = height * width, torch.arange(height * width)
    travels, seen, kept = (places(fates, *members) for members in NESTED)
    uz = F.linear(x, mixer.in_proj.weight)
    u = torch.where(torch.tensor([t in travels for t in range(length)])[:, None], uz[:, :inner], 0)
    u = F.silu(mixer.conv2d(u.T.reshape(1, inner, height, width))[0].flatten(1).T)
    columns = raster.view(height, width).T.flatten()
    deltas, outputs = torch.zeros_like(past), torch.zeros_like(past)
    for k, order in enumerate((raster, columns, raster.flip(0), columns.flip(0))):
        A = -mixer.A_logs.view(4, inner, states)[k].exp()
        dt, B, C = F.linear(u, mixer.x_proj_weight[k]).split([rank, states, states], -1)
        bias = mixer.dt_projs_bias[k]
        delta = F.softplus(F.linear(dt, mixer.dt_projs_weight[k]) + bias)
        way, h = order.tolist(), torch.zeros(inner, states, dtype=x.dtype)
        for step, t in enumerate(way):
            if t in seen:
                deltas[k, t] = delta[t]
                h = torch.exp(delta[t][:, None] * A) * h + (delta[t] * u[t])[:, None] * B[t]
                outputs[k, t] = h @ C[t] + mixer.Ds.view(4, inner)[k] * u[t]
                continue
            around = [next((s for s in part if s in seen), None) for part in (way[step::-1], way[step:])]
            near = torch.stack([delta[s] for s in around if s is not None]).mean(0)
            idle = {"on": F.softplus(bias), "off": torch.zeros_like(bias), "hold": past[k, t], "neighbour": near}
            h = torch.exp(idle[policy][:, None] * A) * h
    y = mixer.out_norm(outputs.sum(0))
    if mixer.gated:
        y = y * F.silu(uz[:, inner:])
    return deltas, outputs, {t: mixer.out_proj(y[t]) for t in kept}


@settings(max_examples=40)
@given(st.data())
def test_a_pruned_mixer_is_the_recurrence_over_the_whole_grid(data: st.DataObject) -> None:
    """In each of the four orders, whatever became of each token, with fates side by side."""
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    policy = data.draw(st.sampled_from(ALIGNMENT))
    contexts = data.draw(st.sampled_from([("drop",), ("conv",), ("freeze",), ("drop", "conv", "freeze")]))
    fates = data.draw(fates_of_a_batch(2, height * width, *contexts))
    mixer = shaken_mixer(data.draw(st.booleans()))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    full, past = torch.randn(2, height * width, 8), torch.rand(2, 4, height * width, 16)
    view = replace(view_of(fates, alignment=policy), grid=(height, width))
    if view.sets.scanned_positions is not None:
        sums = [gap_sums_along_the_paths(past[b], fates[b], height, width) for b in range(2)]
        view = replace(view, gap_sums=tuple(torch.stack(pair) for pair in zip(*sums, strict=True)))
    x = torch.stack([full[b, places(image, *NESTED[0])] for b, image in enumerate(fates)])
    with torch.inference_mode():
        found, signals = mixer(x, view, True)
        for b, image in enumerate(fates):
            deltas, outputs, changes = slow(mixer, (height, width), full[b], image, policy, past[b])
            expected, kept = torch.stack(list(changes.values())), list(changes)
            assert torch.allclose(found[b], expected, atol=1e-4 * max(1.0, expected.abs().max().item()))
            assert torch.allclose(signals.y[b], outputs.sum(0)[kept], atol=1e-4)
            for k in range(4):
                assert torch.allclose(signals.deltas()[k][b], deltas[k, kept], atol=1e-5)
                assert torch.allclose(signals.outputs[k][b], outputs[k, kept], atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("policy", ALIGNMENT)
@pytest.mark.parametrize("contexts", ["drop drop drop", "freeze conv drop", "drop conv freeze"])
def test_a_model_with_stages_written_out(contexts: str, policy: str) -> None:
    """Two steps in one stage, one in the next: what is gone comes back as it last was, and alignment starts anew."""
    torch.manual_seed(0)
    model = shaken(ssm_models.create_model("vmamba_nano", img_size=16))
    text = ",".join(f"{after}:0.6:{c}" for after, c in zip((3, 5, 9), contexts.split(), strict=True))
    schedule = PruningSchedule.parse(f"{text};alignment={policy}")
    model.set_schedule(schedule)
    image = pictures(model, 1)
    kept_by_step = model.run_blocks(image)[2]
    pruned = {
        s.after: (c, kept[0].tolist())
        for s, c, kept in zip(schedule.steps, schedule.contexts, kept_by_step, strict=True)
    }
    x, stage = model.embed(image)[0], 0
    fates, past = [KEPT] * len(x), torch.zeros(4, len(x), model.scan_channels(0)[0])
    for index, block in enumerate(model.blocks):
        here = model.layout.stages[stage]
        deltas, _, changes = slow(block.op, (here.height, here.width), block.norm(x), fates, policy, past)
        for t, change in changes.items():
            x[t] += change
            x[t] += block.mlp(block.norm2(x[t]))
        if index + 1 in pruned:
            context, kept = pruned[index + 1]
            for t in set(changes) - set(kept):
                fates[t], past[:, t] = context, deltas[:, t]
        if index + 1 in model.layout.ends[:-1]:
            x, stage = model.downsample(stage, x[None])[0], stage + 1
            fates, past = [KEPT] * len(x), torch.zeros(4, len(x), model.scan_channels(index + 1)[0])
    expected = model.classifier.head(model.classifier.norm(x).mean(0))
    assert torch.allclose(model(image)[0], expected, atol=1e-4 * max(1.0, expected.abs().max().item()))


@torch.inference_mode()
def test_a_step_at_the_end_of_a_stage_changes_nothing() -> None:
    model = shaken(ssm_models.create_model("vmamba_nano"))
    images = pictures(model, 2)
    with_it, without = (PruningSchedule.parse(text) for text in ("3:0.5,8:0.5,12:0.1", "3:0.5"))
    assert canonical(with_it, model.layout) == without
    model.set_schedule(with_it)
    found, (_, at_the_end, _) = model(images), model.kept_patches(images)
    model.set_schedule(without)
    assert torch.equal(found, model(images)) and torch.equal(at_the_end, model.kept_patches(images)[0])
    assert ssm_models.cost_table(model).flops(with_it) == ssm_models.count_flops(model, without)


@pytest.mark.parametrize("pruned", [["drop"] * 3, ["conv"] * 3, ["freeze"] * 3, ["conv", "freeze", "drop"]])
def test_gradients_through_a_pruned_mixer(pruned: list[str]) -> None:
    mixer = shaken_mixer(v0=True).double()
    a, b, c = pruned
    fates = [[KEPT, a, KEPT, KEPT, b, c], [b, KEPT, c, a, KEPT, KEPT]]
    x = torch.randn(2, len(places(fates[0], *NESTED[0])), 8, dtype=torch.float64, requires_grad=True)
    view = replace(view_of(fates), grid=(2, 3))
    names = [name for name, _ in mixer.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, weights, strict=True)), (x, view, False))[0]

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()), fast_mode=True)
