"""Vim: the authors' logits, and what pruning does to a forward pass."""

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
from spaces import PruningSchedule
from spaces.schedule import ALIGNMENT, PruningMethod
from ssm_models import PrunableModel
from ssm_models.pruning import TokenView
from ssm_models.scan import alignment as alignment_of
from ssm_models.vim import VimConfig, VimMixer
from tests.ssm_models.conftest import shaken

PARAMETERS = {"vim_tiny": 7_148_008, "vim_small": 25_796_584, "vim_base": 97_598_440, "vim_tiny_stride8": 7_250_344}


def test_logits_are_the_authors(reference: Path) -> None:
    from seeded_weights import image, tensor_for

    known = json.loads((reference / "parity" / "vim_tiny.json").read_text())["tensors"]
    model = ssm_models.create_model("vim_tiny").eval()
    state = {key: tensor_for(key, tuple(shape), torch.float32) for key, (shape, _) in known.items()}
    ssm_models.load_checkpoint(model, {"model": state})
    expected = np.load(reference / "parity" / "vim_tiny.npz")["logits"]
    with torch.inference_mode():
        found = model(image((2, 3, 224, 224)))
    assert np.abs(found.numpy() - expected).max() <= 1e-4


MIXER = shaken(ssm_models.create_model("vim_nano"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_authors(name: str) -> None:
    with torch.device("meta"):
        model = ssm_models.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert len(model.state_dict()) == 415
    assert model.layout.stages[0].tokens == (729 if "stride8" in name else 196)
    assert model.protected == ((364,) if "stride8" in name else (98,))


def test_a_block_written_out(model: PrunableModel, images: Tensor) -> None:
    """The mixer equals the two-direction formula, position by position."""
    mixer = model.blocks[3].mixer
    x = torch.randn(2, 9, 64)
    view = TokenView(9, torch.zeros(2).long(), PruningSchedule().method)
    with torch.no_grad():
        found, signals = mixer(x, view, True)
        u, z = mixer.in_proj(x).chunk(2, -1)
        total = torch.zeros_like(u)
        for suffix, a_log in (("", mixer.A_log), ("_b", mixer.A_b_log)):
            part = {name: getattr(mixer, name + suffix) for name in ("conv1d", "x_proj", "dt_proj", "D")}
            flow, gate = (u.flip(1), z.flip(1)) if suffix else (u, z)
            padded = F.pad(flow.transpose(1, 2), (3, 0))
            v = F.silu(part["conv1d"](padded).transpose(1, 2))
            dt, B, C = part["x_proj"](v).split([4, 16, 16], -1)
            dt = F.softplus(part["dt_proj"](dt))
            h, ys = torch.zeros(2, 128, 16), []
            for t in range(9):
                h = torch.exp(dt[:, t, :, None] * -a_log.exp()) * h + (dt[:, t] * v[:, t])[..., None] * B[:, t, None]
                ys.append((h * C[:, t, None]).sum(-1) + part["D"] * v[:, t])
            y = torch.stack(ys, 1) * F.silu(gate)
            total += y.flip(1) if suffix else y
        expected = mixer.out_proj(total / 2)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(signals.y, total, atol=1e-5)  # what the scores see: gated, both directions, in raster order


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_pruned_mixer_is_the_full_recurrence_without_input(data: st.DataObject) -> None:
    """Both directions, position by position over the whole sequence."""
    mixer = MIXER.blocks[0].mixer
    length = data.draw(st.integers(2, 20))
    count = data.draw(st.integers(1, length))
    context, alignment = (
        data.draw(st.sampled_from(["drop", "zeros", "conv"])),
        data.draw(st.sampled_from(ALIGNMENT)),
    )
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    positions = torch.stack([torch.randperm(length)[:count].sort().values for _ in range(3)])
    rows = torch.arange(3)[:, None]
    x = torch.randn(3, length if context == "conv" else count, 64)  # what travels
    past = torch.rand(
        2, 3, length, 128
    )  # with `hold`: the Δ that tokens had, in each direction, when they were pruned
    held = tuple(alignment_of.hold(past[k], positions, None, k == 1) for k in range(2))
    method = PruningMethod(alignment=alignment, context=context)
    view = TokenView(length, torch.zeros(3).long(), method, positions, held)
    with torch.inference_mode():
        found, _ = mixer(x, view, False)
        u, z = mixer.in_proj(x).chunk(2, -1)
        z = z[rows, positions] if context == "conv" else z
        total = torch.zeros(3, count, 128)
        for suffix, log_a in (("", mixer.A_log), ("_b", mixer.A_b_log)):
            conv, x_proj, dt_proj, D = (getattr(mixer, f"{n}{suffix}") for n in ("conv1d", "x_proj", "dt_proj", "D"))
            flow = u
            if context == "zeros":
                flow = torch.zeros(3, length, 128)
                flow[rows, positions] = u
            flow = flow.flip(1) if suffix else flow
            v = conv(F.pad(flow.transpose(1, 2), (3, 0))).transpose(1, 2)
            v = F.silu(v.flip(1) if suffix else v)
            v = v if context == "drop" else v[rows, positions]
            raw, B, C = x_proj(v).split([4, 16, 16], -1)
            dt = F.softplus(dt_proj(raw))
            for b in range(3):
                where = {p: j for j, p in enumerate(positions[b].tolist())}
                h = torch.zeros(128, 16)
                for t in reversed(range(length)) if suffix else range(length):
                    if t in where:
                        j = where[t]
                        h = torch.exp(dt[b, j][:, None] * -log_a.exp()) * h + (dt[b, j] * v[b, j])[:, None] * B[b, j]
                        total[b, j] += h @ C[b, j] + D * v[b, j]
                    else:
                        before = max((p for p in where if p < t), default=None)
                        after = min((p for p in where if p > t), default=None)
                        around = [where[p] for p in (before, after) if p is not None]
                        idle = {
                            "on": F.softplus(dt_proj.bias),
                            "off": torch.zeros(128),
                            "hold": past[int(bool(suffix)), b, t],
                            "neighbour": dt[b, around].mean(0),
                        }[alignment]
                        h = torch.exp(idle[:, None] * -log_a.exp()) * h
        expected = mixer.out_proj(total * F.silu(z) / 2)
    assert torch.allclose(found, expected, atol=1e-5 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("context", ["drop", "zeros", "conv", "freeze"])
def test_gradients_through_a_pruned_mixer(context: str) -> None:
    torch.manual_seed(0)
    mixer = VimMixer(VimConfig(8, states=4)).double()
    positions = torch.tensor([[0, 2, 3], [1, 4, 5]])
    view = TokenView(6, torch.zeros(2).long(), PruningMethod(context=context), positions)
    carries = context in ("conv", "freeze")
    x = torch.randn(2, 6 if carries else 3, 8, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in mixer.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, weights, strict=True)), (x, view, False))[0]

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()))
