"""PlainMamba: the authors' logits, and what pruning does to its zigzag scans."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ssm_models
from spaces.schedule import ALIGNMENT, PruningMethod
from ssm_models.plain_mamba import PlainMambaConfig, PlainMambaMixer, zigzag
from ssm_models.pruning import TokenView
from ssm_models.scan.alignment import hold
from tests.ssm_models.conftest import pictures, shaken

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
    mixer: PlainMambaMixer, x: list[Tensor | None], kept: list[int], policy: str, frozen: bool, past: Tensor
) -> Tensor:
    """One image by the definition: x holds what travels of each raster token. Returns the changes of the kept.

    `past` is the Δ (L, D) that each token had when it was pruned, for the policy `hold`.
    """
    height, width = mixer.grid
    length, rank, states, channels = height * width, mixer.rank, mixer.states, mixer.in_proj.out_features // 2
    zero = torch.zeros(channels, dtype=mixer.D.dtype)
    before = [zero if token is None else mixer.in_proj(token)[:channels] for token in x]
    grid = torch.stack(before).T.reshape(1, channels, height, width)
    u = F.silu(mixer.conv2d(grid)[0].flatten(1).T)
    seen = list(range(length)) if frozen else kept  # raster tokens that the state sees
    dt_r, B, C = mixer.x_proj(u).split([rank, states, states], -1)
    bias = mixer.dt_proj.bias
    delta = F.softplus(mixer.dt_proj(dt_r) + bias)
    A, total = -mixer.A_log.exp(), torch.zeros(length, channels, dtype=mixer.D.dtype)
    tokens, moves = zigzag(height, width)
    for way, move in zip(tokens.tolist(), moves.tolist(), strict=True):
        visited = [(token, m) for token, m in zip(way, move, strict=True) if token in seen]
        h, j = torch.zeros(channels, states, dtype=mixer.D.dtype), 0
        for t in range(length):  # over all raster positions, whether something is left there or not
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
    changes = []
    for token in kept:
        travelling = x[token]
        assert travelling is not None
        changes.append(mixer.out_proj(total[token] * F.silu(mixer.in_proj(travelling)[channels:])))
    return torch.stack(changes)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_pruned_mixer_is_the_recurrence_over_the_whole_grid(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    length = height * width
    count = data.draw(st.integers(1, length))
    context = data.draw(st.sampled_from(["drop", "conv", "freeze"]))
    policy = data.draw(st.sampled_from(ALIGNMENT))
    mixer = mixer_on(height, width)
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    positions = torch.stack([torch.randperm(length)[:count].sort().values for _ in range(2)])
    full = torch.randn(2, length, 8)
    x = full if context != "drop" else full[torch.arange(2)[:, None], positions]
    past = torch.rand(2, length, 16)
    held = (hold(past, positions, None, False),)
    method = PruningMethod(alignment=policy, context=context)
    view = TokenView(length, torch.zeros(2).long(), method, positions, held)
    with torch.inference_mode():
        found, signals = mixer(x, view, True)
        for b in range(2):
            kept = positions[b].tolist()
            travels = [full[b, t] if context != "drop" or t in kept else None for t in range(length)]
            expected = slow(mixer, travels, kept, policy, context == "freeze", past[b])
            assert torch.allclose(found[b], expected, atol=1e-5 * max(1.0, expected.abs().max().item()))
    assert signals is not None and signals.y.shape == (2, count, 16)
    assert [d.shape for d in signals.deltas()] == [(2, count, 16)]


@pytest.mark.parametrize("context", ["drop", "conv", "freeze"])
def test_gradients_through_a_pruned_mixer(context: str) -> None:
    torch.manual_seed(0)
    mixer = PlainMambaMixer(PlainMambaConfig(4, 1, states=2, conv=3), (2, 3)).double()
    positions = torch.tensor([[0, 2, 3], [1, 4, 5]])
    view = TokenView(6, torch.zeros(2).long(), PruningMethod(context=context), positions)
    x = torch.randn(2, 3 if context == "drop" else 6, 4, dtype=torch.float64, requires_grad=True)
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
    for context in (
        "drop",
        "conv",
        "freeze",
    ):  # pruned, the kept tokens have it, and with zeros where nothing is left
        positions = torch.tensor([[1, 6, 15], [0, 3, 9]])
        rows = torch.arange(2)[:, None]
        travels = x[rows, positions] if context == "drop" else x
        pruned = TokenView(16, torch.zeros(2).long(), PruningMethod(context=context), positions)
        change, _ = block.mamba(block.norm(travels), pruned, False)
        full = torch.zeros_like(x) if context == "drop" else x.clone()
        full[rows, positions] = x[rows, positions] + change
        after = block.dw(full.transpose(1, 2).unflatten(2, (4, 4))).flatten(2).transpose(1, 2)
        found = block(travels, pruned, False)[0]
        assert torch.allclose(
            found if context == "drop" else found[rows, positions], after[rows, positions], atol=1e-5
        )
        if context != "drop":
            full[rows, positions] = after[rows, positions]
            assert torch.allclose(found, full, atol=1e-5)


def test_images_that_are_no_multiple_of_a_patch_are_padded() -> None:
    model = ssm_models.create_model("plain_mamba_nano", img_size=(30, 33)).eval()
    assert (model.layout.stages[0].height, model.layout.stages[0].width) == (8, 9)
    assert model(pictures(model, 2)).isfinite().all()
