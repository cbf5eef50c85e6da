"""Vim: the authors' logits, and what pruning does to a forward pass."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ssm_models
from spaces import PruningSchedule
from spaces.errors import ScheduleError
from ssm_models import PrunableModel
from ssm_models.pruning import TokenView
from tests.ssm_models.conftest import shaken

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
PARAMETERS = {"vim_tiny": 7_148_008, "vim_small": 25_796_584, "vim_base": 97_598_440, "vim_tiny_stride8": 7_250_344}


@pytest.mark.skipif(not REFERENCE.exists(), reason="the parity fixtures are not beside this checkout")
def test_logits_are_the_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REFERENCE))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    from seeded_weights import image, tensor_for

    known = json.loads((REFERENCE / "parity" / "vim_tiny.json").read_text())["tensors"]
    model = ssm_models.create_model("vim_tiny").eval()
    state = {key: tensor_for(key, tuple(shape), torch.float32) for key, (shape, _) in known.items()}
    ssm_models.load_checkpoint(model, {"model": state})
    expected = np.load(REFERENCE / "parity" / "vim_tiny.npz")["logits"]
    with torch.inference_mode():
        found = model(image((2, 3, 224, 224)))
    assert np.abs(found.numpy() - expected).max() <= 1e-4


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
        found, _ = mixer(x, view, False)
        u, z = mixer.in_proj(x).chunk(2, -1)
        total = torch.zeros_like(u)
        for suffix, a_log in (("", mixer.A_log), ("_b", mixer.A_b_log)):
            part = {name: getattr(mixer, name + suffix) for name in ("conv1d", "x_proj", "dt_proj", "D")}
            flow, gate = (u.flip(1), z.flip(1)) if suffix else (u, z)
            padded = torch.nn.functional.pad(flow.transpose(1, 2), (3, 0))
            v = torch.nn.functional.silu(part["conv1d"](padded).transpose(1, 2))
            dt, B, C = part["x_proj"](v).split([4, 16, 16], -1)
            dt = torch.nn.functional.softplus(part["dt_proj"](dt))
            h, ys = torch.zeros(2, 128, 16), []
            for t in range(9):
                h = torch.exp(dt[:, t, :, None] * -a_log.exp()) * h + (dt[:, t] * v[:, t])[..., None] * B[:, t, None]
                ys.append((h * C[:, t, None]).sum(-1) + part["D"] * v[:, t])
            y = torch.stack(ys, 1) * torch.nn.functional.silu(gate)
            total += y.flip(1) if suffix else y
        expected = mixer.out_proj(total / 2)
    assert torch.allclose(found, expected, atol=1e-5)


def test_timm_knows_the_models() -> None:
    model = timm.create_model("vim_nano", num_classes=7, img_size=32)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert {"vim_tiny", "vim_nano"} <= set(timm.list_models("vim_*"))
    shipped = timm.create_model("vim_nano", pretrained=True)
    assert ssm_models.weights_digest(shipped) == ssm_models.weights_digest(ssm_models.build("vim_nano"))
    dropping = timm.create_model("vim_nano", drop_path_rate=0.2)
    assert (
        isinstance(dropping.blocks[0].drop_path, torch.nn.Identity) and dropping.blocks[11].drop_path.drop_prob > 0.1
    )


@torch.inference_mode()
def test_ratio_one_is_dense_to_the_bit(model: PrunableModel, images: Tensor) -> None:
    dense = model(images)
    for text in ("3:1.0,7:1.0", "5:0.999", "12:1;context=freeze"):  # 0.999 of 49 tokens is 49
        model.set_schedule(PruningSchedule.parse(text))
        found = model(images)
        assert torch.equal(found, dense) if "0.999" not in text else torch.allclose(found, dense, atol=1e-5)


@torch.inference_mode()
def test_images_do_not_see_each_other(model: PrunableModel, images: Tensor) -> None:
    for method in (
        "",
        ";context=freeze",
        ";importance=random",
        ";alignment=hold",
        ";alignment=neighbour;importance=delta",
    ):
        model.set_schedule(PruningSchedule.parse("2:0.6,6:0.5,9:0.3" + method))
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
        assert torch.allclose(together, alone, atol=1e-4), method


@torch.inference_mode()
def test_the_kept_tokens_are_the_most_important(model: PrunableModel, images: Tensor) -> None:
    model.set_schedule(PruningSchedule.parse("4:0.5,8:0.25"))
    first, second = model.kept_patches(images)
    assert (first.shape, second.shape) == ((5, 25), (5, 6))  # 24.5 rounds up
    assert not torch.equal(first[0], first[1])  # each image has its own
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        assert a == sorted(set(a)) and set(b) <= set(a) and max(a) < 49


@torch.inference_mode()
@pytest.mark.parametrize("importance", ["clip", "l1", "l2", "sum"])
def test_scores_written_out(model: PrunableModel, images: Tensor, importance: str) -> None:
    model.set_schedule(PruningSchedule.parse(f"1:0.2;importance={importance}"))
    caught = []
    hook = model.blocks[0].mixer.out_proj.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    kept = model.kept_patches(images)[0]
    hook.remove()
    y = torch.cat([caught[0][:, :24], caught[0][:, 25:]], 1)  # the cls token stands at 24
    score = {
        "clip": lambda y: y.clamp(min=0).mean(-1),
        "l1": lambda y: y.abs().mean(-1),
        "l2": lambda y: y.norm(dim=-1),
        "sum": lambda y: y.mean(-1),
    }[importance](y)
    expected = score.topk(10).indices.sort().values
    assert torch.equal(kept, expected)


@torch.inference_mode()
def test_freeze_is_a_dense_pass_whose_pruned_updates_are_masked(model: PrunableModel, images: Tensor) -> None:
    schedule = PruningSchedule.parse("3:0.5,7:0.4;context=freeze")
    model.set_schedule(schedule)
    found, kept = model(images), model.kept_patches(images)
    model.set_schedule(None)
    x, view = model.embed(images), model.first_view(images)
    mask = torch.ones(5, 50, 1)
    for index, block in enumerate(model.blocks):
        x = x + mask * block(x, view, False)[0]
        for step, patches in zip(schedule.steps, kept, strict=True):
            if step.after == index + 1:
                positions = patches + (patches >= 24).long()  # the cls token stands at 24
                mask = torch.zeros(5, 50).scatter(1, positions, 1.0)
                mask[:, 24] = 1.0
                mask = mask[..., None]
    assert torch.allclose(found, model.classify(x, view), atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_aligned_drop_is_the_full_scan_without_input(data: st.DataObject) -> None:
    """One mixer with pruned tokens, against the recurrence over all positions, for the policy `bias`."""
    model = shaken(ssm_models.create_model("vim_nano"))
    mixer = model.blocks[0].mixer
    length = data.draw(st.integers(2, 20))
    count = data.draw(st.integers(1, length))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    positions = torch.stack([torch.randperm(length)[:count].sort().values for _ in range(3)])
    x = torch.randn(3, count, 64)
    method = PruningSchedule.parse("1:0.5").method
    with torch.inference_mode():
        found, _ = mixer(x, TokenView(length, torch.zeros(3).long(), method, positions), False)
        u, z = mixer.in_proj(x).chunk(2, -1)
        total = torch.zeros_like(u)
        for suffix, a_log in (("", mixer.A_log), ("_b", mixer.A_b_log)):
            conv, x_proj, dt_proj, D = (getattr(mixer, f"{n}{suffix}") for n in ("conv1d", "x_proj", "dt_proj", "D"))
            flow = u.flip(1) if suffix else u
            v = conv(torch.nn.functional.pad(flow.transpose(1, 2), (3, 0))).transpose(1, 2)
            v = torch.nn.functional.silu(v.flip(1) if suffix else v)
            raw, B, C = x_proj(v).split([4, 16, 16], -1)
            dt = torch.nn.functional.softplus(dt_proj(raw))
            idle = torch.nn.functional.softplus(dt_proj.bias)
            for b in range(3):
                where = {p: j for j, p in enumerate(positions[b].tolist())}
                h = torch.zeros(128, 16)
                for t in reversed(range(length)) if suffix else range(length):
                    j = where.get(t)
                    h = torch.exp((idle if j is None else dt[b, j])[:, None] * -a_log.exp()) * h
                    if j is not None:
                        h = h + (dt[b, j] * v[b, j])[:, None] * B[b, j]
                        total[b, j] += h @ C[b, j] + D * v[b, j]
        expected = mixer.out_proj(total * torch.nn.functional.silu(z) / 2)
    assert torch.allclose(found, expected, atol=1e-5 * max(1.0, expected.abs().max().item()))


@torch.inference_mode()
def test_alignment_and_method_change_the_logits(model: PrunableModel, images: Tensor) -> None:
    results = []
    for method in (
        "",
        ";alignment=off",
        ";alignment=hold",
        ";alignment=neighbour",
        ";context=freeze",
        ";importance=random",
    ):
        model.set_schedule(PruningSchedule.parse("2:0.5,6:0.5" + method))
        results.append(model(images))
    for i, one in enumerate(results):
        for other in results[i + 1 :]:
            assert not torch.allclose(one, other, atol=1e-4)


@torch.inference_mode()
def test_hold_sums_what_pruned_tokens_had(model: PrunableModel) -> None:
    """Two steps with held Δ give the gaps of a walk over the whole sequence."""
    from ssm_models.scan.alignment import hold

    delta = torch.rand(2, 12, 3)
    for reverse in (False, True):
        first = torch.stack([torch.randperm(12)[:7].sort().values for _ in range(2)])
        gaps = hold(delta, first, None, reverse)
        later = torch.rand(2, 7, 3)
        second = torch.stack([torch.randperm(7)[:4].sort().values for _ in range(2)])
        gaps = hold(later, second, gaps, reverse)
        for b in range(2):
            survivors = first[b][second[b]].tolist()
            held = {t: delta[b, t] for t in range(12) if t not in first[b].tolist()}
            held |= {first[b, j].item(): later[b, j] for j in range(7) if j not in second[b].tolist()}
            for j, t in enumerate(survivors):
                if reverse:
                    between = range(t + 1, survivors[j + 1] if j + 1 < 4 else 12)
                else:
                    between = range(survivors[j - 1] + 1 if j else 0, t)
                expected = sum((held[s] for s in between), torch.zeros(3))
                assert torch.allclose(gaps[b, j], expected, atol=1e-5)


def test_gradients_flow_through_a_pruned_model(model: PrunableModel, images: Tensor) -> None:
    for method in ("", ";context=freeze", ";alignment=hold"):
        model.set_schedule(PruningSchedule.parse("2:0.5,6:0.5" + method))
        model.zero_grad()
        model(images).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_a_schedule_that_does_not_fit_changes_nothing(model: PrunableModel) -> None:
    good = PruningSchedule.parse("2:0.5")
    model.set_schedule(good)
    for text in ("13:0.5", "2:0.5;context=conv", "2:0.5;reduction=merge"):
        with pytest.raises(ScheduleError, match="vim_nano"):
            model.set_schedule(PruningSchedule.parse(text))
        assert model.schedule == good
