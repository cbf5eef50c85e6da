"""PlainMamba: the authors' logits, and what pruning does to its zigzag scans."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
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
from spaces.schedule import ALIGNMENT
from ssm_models.families.plain_mamba import PlainMambaConfig, PlainMambaMixer, zigzag
from tests.ssm_models.conftest import KEPT, NESTED, fates_of_a_batch, gap_sums, pictures, places, shaken, view_of

SIZES = {  # parameters and keys of the authors' models
    "plain_mamba_l1": (7_551_656, 361),
    "plain_mamba_l2": (26_145_832, 361),
    "plain_mamba_l3": (50_956_456, 529),
}


@pytest.mark.parametrize(("size", "batch", "seed", "key"), [
    ((224, 224), 2, 1234, "logits"), ((192, 256), 1, 1235, "logits_192x256"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*resized")
def test_logits_are_the_authors(reference: Path, size: tuple[int, int], batch: int, seed: int, key: str) -> None:
    from seeded_weights import image, tensor_for

    known = json.loads((reference / "parity" / "plainmamba_l1.json").read_text())["tensors"]
    state = {name: tensor_for(name, tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in known.items()}
    model = ssm_models.create_model("plain_mamba_l1", img_size=size).eval()
    ssm_models.load_checkpoint(model, {"state_dict": state})
    expected = np.load(reference / "parity" / "plainmamba_l1.npz")[key]
    with torch.inference_mode():
        found = model(image((batch, 3, *size), seed))
    assert np.abs(found.numpy() - expected).max() <= 1e-5


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_authors(name: str) -> None:
    with torch.device("meta"):
        model = ssm_models.create_model(name)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == SIZES[name]
    assert model.layout.stages[0].tokens == 196 and model.protected == ()


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 2), (5, 4), (1, 6)])
def test_zigzag_is_a_walk(shape: tuple[int, int]) -> None:
    height, width = shape
    tokens, moves = zigzag(height, width)
    steps = {0: None, 1: (0, 1), 2: (0, -1), 3: (-1, 0), 4: (1, 0)}
    for way, move in zip(tokens.tolist(), moves.tolist(), strict=True):
        assert sorted(way) == list(range(height * width)) and move[0] == 0
        for before, after, m in zip(way, way[1:], move[1:], strict=False):
            row, column = divmod(before, width)
            assert steps[m] == (after // width - row, after % width - column)
    assert tokens[0, 0] == tokens[2, 0] == 0
    assert (tokens[1] == tokens[0, ::-1]).all() and (tokens[3] == tokens[2, ::-1]).all()
    if min(shape) > 1:
        assert tokens[0, 1] == 1 and tokens[2, 1] == width


def mixer_on(height: int, width: int) -> PlainMambaMixer:
    torch.manual_seed(0)
    mixer = PlainMambaMixer(PlainMambaConfig(8, 1, states=4, conv=3), (height, width))
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return mixer.eval()


def slow(
    mixer: PlainMambaMixer, x: Tensor, fates: Sequence[str], policy: str, past: Tensor
) -> tuple[Tensor, dict[int, Tensor]]:
    """One image by the definition: x (L, dim) has the features of all raster tokens.

    `past` is the Δ (L, D) that each token had when it was pruned, for the policy `hold`. Returns Δ (L, D), where a
    token has one, and the changes of the kept.
    """
    height, width = mixer.grid
    length, rank, states, channels = height * width, mixer.rank, mixer.states, mixer.in_proj.out_features // 2
    zero = torch.zeros(channels, dtype=mixer.D.dtype)
    travels, seen, kept = (places(fates, *members) for members in NESTED)
    before = [mixer.in_proj(x[t])[:channels] if t in travels else zero for t in range(length)]
    grid = torch.stack(before).T.reshape(1, channels, height, width)
    u = F.silu(mixer.conv2d(grid)[0].flatten(1).T)
    dt_r, B, C = mixer.x_proj(u).split([rank, states, states], -1)
    bias = mixer.dt_proj.bias
    delta = F.softplus(mixer.dt_proj(dt_r) + bias)
    A, total = -mixer.A_log.exp(), torch.zeros(length, channels, dtype=mixer.D.dtype)
    tokens, moves = zigzag(height, width)
    for way, move in zip(tokens.tolist(), moves.tolist(), strict=True):
        visited = [(token, m) for token, m in zip(way, move, strict=True) if token in seen]
        h, j = torch.zeros(channels, states, dtype=mixer.D.dtype), 0
        for t in range(length):  # over all raster positions, whether the state sees something there or not
            if t not in seen:
                around = [
                    max((s for s in seen if s < t), default=None),
                    min((s for s in seen if s > t), default=None),
                ]
                near = torch.stack([delta[s] for s in around if s is not None])
                idle = {"on": F.softplus(2 * bias), "off": zero, "hold": past[t], "neighbour": near.mean(0)}[policy]
                h = torch.exp(idle[:, None] * A) * h
                continue
            token, m = visited[j]
            j += 1
            drive = (delta[t] * u[token])[:, None] * (B[t] + mixer.direction_Bs[m])
            h = torch.exp(delta[t][:, None] * A) * h + drive
            total[token] += h @ C[t] + mixer.D * u[token]
    return delta, {t: mixer.out_proj(total[t] * F.silu(mixer.in_proj(x[t])[channels:])) for t in kept}


@settings(max_examples=40)
@given(st.data())
def test_a_pruned_mixer_is_the_recurrence_over_the_whole_grid(data: st.DataObject) -> None:
    """Whatever became of each token, kept, frozen, convolved and gone ones side by side."""
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    policy = data.draw(st.sampled_from(ALIGNMENT))
    contexts = data.draw(st.sampled_from([("drop",), ("conv",), ("freeze",), ("drop", "conv", "freeze")]))
    fates = data.draw(fates_of_a_batch(2, height * width, *contexts))
    mixer = mixer_on(height, width)
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    full, past = torch.randn(2, height * width, 8), torch.rand(2, height * width, 16)
    view = view_of(fates, alignment=policy)
    if view.sets.scanned_positions is not None:
        held = torch.stack([gap_sums(past[b], places(fates[b], *NESTED[1]), False) for b in range(2)])
        view = replace(view, gap_sums=(held,))
    x = torch.stack([full[b, places(image, *NESTED[0])] for b, image in enumerate(fates)])
    with torch.inference_mode():
        found, signals = mixer(x, view, True)
        for b, image in enumerate(fates):
            delta, changes = slow(mixer, full[b], image, policy, past[b])
            expected = torch.stack(list(changes.values()))
            assert torch.allclose(found[b], expected, atol=1e-5 * max(1.0, expected.abs().max().item()))
            assert torch.allclose(signals.deltas()[0][b], delta[list(changes)], atol=1e-5)
    assert signals.y.shape == (2, len(places(fates[0], KEPT)), 16)


@torch.inference_mode()
@pytest.mark.parametrize("policy", ALIGNMENT)
@pytest.mark.parametrize("contexts", ["freeze conv drop", "drop freeze conv", "conv drop freeze"])
def test_a_model_with_mixed_contexts_written_out(contexts: str, policy: str) -> None:
    torch.manual_seed(0)
    model = shaken(ssm_models.create_model("plain_mamba_nano"))
    text = ",".join(f"{after}:0.7:{c}" for after, c in zip((1, 3, 4), contexts.split(), strict=True))
    schedule = PruningSchedule.parse(f"{text};alignment={policy}")
    model.set_schedule(schedule)
    image = pictures(model, 1)
    _, _, kept = model.run_blocks(image)
    x, fates, past = model.embed(image)[0], [KEPT] * 49, torch.zeros(49, 128)
    pruned = dict(
        zip((step.after for step in schedule.steps), zip(schedule.contexts, kept, strict=True), strict=True)
    )
    for index, block in enumerate(model.blocks):
        delta, changes = slow(block.mamba, block.norm(x), fates, policy, past)
        for t, change in changes.items():
            x[t] += change
        if index + 1 in pruned:
            context, positions = pruned[index + 1]
            for t in set(changes) - set(positions[0].tolist()):
                fates[t], past[t] = context, delta[t]
    expected = model.head(model.backbone.ln1(x[places(fates, *NESTED[1])]).mean(0))
    assert torch.allclose(model(image)[0], expected, atol=1e-4 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("pruned", [["drop"] * 3, ["conv"] * 3, ["freeze"] * 3, ["conv", "freeze", "drop"]])
def test_gradients_through_a_pruned_mixer(pruned: list[str]) -> None:
    torch.manual_seed(0)
    mixer = PlainMambaMixer(PlainMambaConfig(4, 1, states=2, conv=3), (2, 3)).double()
    a, b, c = pruned
    fates = [[KEPT, a, KEPT, KEPT, b, c], [b, KEPT, c, a, KEPT, KEPT]]
    x = torch.randn(2, len(places(fates[0], *NESTED[0])), 4, dtype=torch.float64, requires_grad=True)
    view = view_of(fates)
    names = [name for name, _ in mixer.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, weights, strict=True)), (x, view, False))[0]

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()))


@torch.inference_mode()
def test_the_convolution_of_l1_s_first_block_replaces_what_comes_out() -> None:
    torch.manual_seed(0)
    model = shaken(ssm_models.create_model("plain_mamba_l1", img_size=64))
    block = model.blocks[0]
    images = pictures(model, 2)
    x, view = model.embed(images), model.first_view(images)
    change, _ = block.mamba(block.norm(x), view, False)
    grid = (x + change).transpose(1, 2).unflatten(2, (4, 4))
    expected = F.gelu(block.dw[1](block.dw[0](grid))).flatten(2).transpose(1, 2)
    assert torch.allclose(block(x, view, False)[0], expected, atol=1e-5)
    kept = torch.tensor([[1, 6, 15], [0, 3, 9]])
    rows = torch.arange(2)[:, None]
    for contexts in (["drop"], ["conv"], ["freeze"], ["freeze", "drop", "conv", "drop"]):
        # Pruned, the kept tokens have it, with zeros where nothing is left of a token.
        others = [cycle(contexts) for _ in range(2)]
        fates = [[KEPT if t in kept[b] else next(others[b]) for t in range(16)] for b in range(2)]
        at = torch.tensor([places(image, *NESTED[0]) for image in fates])
        travels, pruned = x[rows, at], view_of(fates)
        change, _ = block.mamba(block.norm(travels), pruned, False)
        full = torch.zeros_like(x)
        full[rows, at] = travels
        full[rows, kept] += change
        after = block.dw(full.transpose(1, 2).unflatten(2, (4, 4))).flatten(2).transpose(1, 2)
        full[rows, kept] = after[rows, kept]
        assert torch.allclose(block(travels, pruned, False)[0], full[rows, at], atol=1e-5)


def test_images_that_are_no_multiple_of_a_patch_are_padded() -> None:
    model = ssm_models.create_model("plain_mamba_nano", img_size=(30, 33)).eval()
    assert (model.layout.stages[0].height, model.layout.stages[0].width) == (8, 9)
    assert model(pictures(model, 2)).isfinite().all()
