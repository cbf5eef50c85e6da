"""Vim: the authors' logits, and what pruning does to a forward pass."""

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
from spaces.schedule import ALIGNMENT
from ssm_models import PrunableModel
from ssm_models.families.vim import VimConfig, VimMixer
from ssm_models.token_sets import TokenSets
from ssm_models.token_view import TokenView
from tests.ssm_models.conftest import KEPT, NESTED, fates_of_a_batch, gap_sums, places, shaken, view_of

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
    view = TokenView(TokenSets(9), torch.zeros(2).long(), PruningSchedule().method)
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


def slow(
    mixer: VimMixer, x: Tensor, fates: Sequence[str], policy: str, past: Tensor
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """One image by the definition, position by position over the whole sequence.

    x (L, dim) has the features of all tokens, and `past` (2, L, inner) the Δ that those no longer seen had when
    they were pruned, for the policy `hold`. Returns each direction's gated outputs (2, L, inner) and Δ (2, L, inner),
    where a token has them, and the changes of the kept.
    """
    length = len(x)
    u, z = mixer.in_proj(x).chunk(2, -1)
    u = torch.where(torch.tensor([fate == "zeros" for fate in fates])[:, None], 0, u)
    convolved, seen, kept = (places(fates, *f) for f in ((*NESTED[0], "zeros"), NESTED[1], NESTED[2]))
    deltas, outputs = (
        torch.zeros(2, length, u.shape[1], dtype=x.dtype),
        torch.zeros(2, length, u.shape[1], dtype=x.dtype),
    )
    for k, (suffix, log_a) in enumerate((("", mixer.A_log), ("_b", mixer.A_b_log))):
        conv, x_proj, dt_proj, D = (getattr(mixer, f"{n}{suffix}") for n in ("conv1d", "x_proj", "dt_proj", "D"))
        order = convolved[:: -1 if suffix else 1]
        v = torch.zeros_like(u)
        v[order] = F.silu(conv(F.pad(u[order].T[None], (3, 0)))[0].T)
        rank, states = dt_proj.in_features, log_a.shape[1]
        raw, B, C = x_proj(v).split([rank, states, states], -1)
        dt = F.softplus(dt_proj(raw))
        h = torch.zeros(u.shape[1], states, dtype=x.dtype)
        for t in reversed(range(length)) if suffix else range(length):
            drive = torch.zeros_like(h)
            if t in seen:
                step = dt[t]
                drive = (dt[t] * v[t])[:, None] * B[t]
            else:
                around = [
                    max((s for s in seen if s < t), default=None),
                    min((s for s in seen if s > t), default=None),
                ]
                step = {
                    "on": F.softplus(dt_proj.bias),
                    "off": torch.zeros_like(dt[t]),
                    "hold": past[k, t],
                    "neighbour": dt[[s for s in around if s is not None]].mean(0),
                }[policy]
            h = torch.exp(step[:, None] * -log_a.exp()) * h + drive
            if t in kept:
                outputs[k, t] = (h @ C[t] + D * v[t]) * F.silu(z[t])
        deltas[k] = dt
    change = mixer.out_proj(outputs.sum(0) / 2)
    return outputs, deltas, {t: change[t] for t in kept}


@settings(max_examples=40)
@given(st.data())
def test_a_pruned_mixer_is_the_full_recurrence_without_input(data: st.DataObject) -> None:
    """Whatever became of each token, kept, frozen, convolved and gone ones side by side."""
    mixer = MIXER.blocks[0].mixer
    length, policy = data.draw(st.integers(2, 20)), data.draw(st.sampled_from(ALIGNMENT))
    contexts = data.draw(st.sampled_from([("drop",), ("zeros",), ("conv",), ("freeze",), ("drop", "conv", "freeze")]))
    fates = data.draw(fates_of_a_batch(2, length, *contexts))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    full, past = torch.randn(2, length, 64), torch.rand(2, 2, length, 128)
    view = view_of(fates, alignment=policy)
    seen = [places(image, *NESTED[1]) for image in fates]
    if view.sets.scanned_positions is not None:
        held = (torch.stack([gap_sums(past[b, k], seen[b], k == 1) for b in range(2)]) for k in range(2))
        view = replace(view, gap_sums=tuple(held))
    x = torch.stack([full[b, places(image, *NESTED[0])] for b, image in enumerate(fates)])
    with torch.inference_mode():
        found, signals = mixer(x, view, True)
        for b, image in enumerate(fates):
            outputs, deltas, changes = slow(mixer, full[b], image, policy, past[b])
            expected = torch.stack(list(changes.values()))
            assert torch.allclose(found[b], expected, atol=1e-5 * max(1.0, expected.abs().max().item()))
            for k in range(2):
                assert torch.allclose(signals.deltas()[k][b], deltas[k, list(changes)], atol=1e-5)
                assert torch.allclose(signals.outputs[k][b], outputs[k, list(changes)], atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("policy", ALIGNMENT)
@pytest.mark.parametrize("contexts", ["freeze conv drop", "drop freeze conv", "conv drop freeze"])
def test_a_model_with_mixed_contexts_written_out(model: PrunableModel, contexts: str, policy: str) -> None:
    text = ",".join(f"{after}:0.7:{c}" for after, c in zip((1, 3, 4), contexts.split(), strict=True))
    schedule = PruningSchedule.parse(f"{text};alignment={policy}")
    model.set_schedule(schedule)
    image = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    _, _, kept = model.run_blocks(image)
    x, fates, past = model.embed(image)[0], [KEPT] * 50, torch.zeros(2, 50, 128)
    pruned = dict(
        zip((step.after for step in schedule.steps), zip(schedule.contexts, kept, strict=True), strict=True)
    )
    for index, block in enumerate(model.blocks):
        _, deltas, changes = slow(block.mixer, block.norm(x), fates, policy, past)
        for t, change in changes.items():
            x[t] += change
        if index + 1 in pruned:
            context, positions = pruned[index + 1]
            for t in set(changes) - set(positions[0].tolist()):
                fates[t], past[:, t] = context, deltas[:, t]
    expected = model.head(model.norm_f(x[model.cls_index]))
    assert torch.allclose(model(image)[0], expected, atol=1e-4 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize(
    "pruned", [["drop"] * 3, ["zeros"] * 3, ["conv"] * 3, ["freeze"] * 3, ["conv", "freeze", "drop"]]
)
def test_gradients_through_a_pruned_mixer(pruned: list[str]) -> None:
    torch.manual_seed(0)
    mixer = VimMixer(VimConfig(8, states=4)).double()
    a, b, c = pruned
    fates = [[KEPT, a, KEPT, KEPT, b, c], [b, KEPT, c, a, KEPT, KEPT]]
    x = torch.randn(2, len(places(fates[0], *NESTED[0])), 8, dtype=torch.float64, requires_grad=True)
    view = view_of(fates)
    names = [name for name, _ in mixer.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, weights, strict=True)), (x, view, False))[0]

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()))
