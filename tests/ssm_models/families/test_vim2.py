"""ViM2 by the formulas that its module states."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ssm_models
from spaces import PruningSchedule
from ssm_models.families.vim2 import ChannelMixer, ViM2, ViM2Config
from ssm_models.token_sets import TokenSets
from tests.ssm_models.conftest import pictures, shaken

CONFIG = ViM2Config(8, (4, 2), patch=2, states=4, group=4)


def small() -> ViM2:
    torch.manual_seed(0)
    model = ViM2(CONFIG, "vim2_small_one", 3, (8, 12))
    shaken(model)
    return model


@pytest.mark.parametrize(
    ("name", "millions", "blocks"), [("tiny", 24.2, 12), ("small", 43.6, 24), ("base", 75.9, 24)]
)
def test_sizes(name: str, millions: float, blocks: int) -> None:
    """The paper says 20, 43 and 74 million, which no one formula gives; small and base are within 3 % of that."""
    with torch.device("meta"):
        model = ssm_models.create_model(f"vim2_{name}")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert model.layout.depth == blocks
    assert [block.mixers for block in model.blocks] == [1, 2] * (blocks // 2)


def test_without_channel_mixers_it_is_vmamba() -> None:
    """At the first averages, each the newest output alone, and with channel mixers that change nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ssm_models.create_model("vim2_tiny", 5, 64).eval()
        vmamba = ssm_models.create_model("vmamba_v0_tiny", 5, 64).eval()
    vmamba.layers[2].blocks = vmamba.layers[2].blocks[:6]
    missing, _ = vmamba.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    with torch.inference_mode():
        for block in model.blocks:
            if block.mixers > 1:
                block.channel_mixer.out_proj.weight.zero_()
        images = pictures(model, 2)
        x = vmamba.embed(images)
        view = vmamba.first_view(images)
        for index, stage in ((i, s) for s, n in enumerate((2, 2, 6, 2)) for i in range(n)):
            x, _ = vmamba.layers[stage].blocks[index](x, view, False)
            if index + 1 == (2, 2, 6, 2)[stage] and stage < 3:
                x = vmamba.downsample(stage, x)
                view = replace(view, sets=TokenSets(x.shape[1]), grid=(view.grid[0] // 2, view.grid[1] // 2))
        assert torch.allclose(model(images), vmamba.classify(x, view), atol=1e-5)


@torch.inference_mode()
def test_mixers_average_all_earlier_outputs_of_their_stage() -> None:
    model, images = small(), torch.randn(2, 3, 8, 12)
    x, view = model.begin(images)
    outputs: list[Tensor] = [x]

    def mean(weights: Tensor) -> Tensor:
        assert len(weights) == len(outputs)
        return sum((w * y for w, y in zip(weights, outputs, strict=True)), torch.zeros(()))

    for block in model.layers[0].blocks:
        x, _ = block(x, view, False)
        start = mean(block.token_weights)
        outputs.append(start + block.op(block.norm(start), view, False)[0])
        if block.mixers > 1:
            start = mean(block.channel_weights)
            outputs.append(start + block.channel_mixer(block.channel_norm(start)))
        assert torch.allclose(x, torch.cat(outputs, -1), atol=1e-5)
    assert torch.allclose(model.leave(0, x), mean(model.layers[0].leaving_weights), atol=1e-5)
    assert len(outputs) == 7
    after, _ = model.end_stage(3, x, view)
    assert after.shape == (2, 6, 16)  # the next stage begins with its input alone


def slow_channel_mixer(mixer: ChannelMixer, x: Tensor) -> Tensor:
    """One token x (D,), step by step along its channels."""
    u, gate = F.linear(x, mixer.in_proj.weight).chunk(2)
    steps, total = u.view(-1, mixer.group), torch.zeros_like(u)
    for k in range(2):
        A = -mixer.A_logs.view(2, mixer.group, -1)[k].exp()
        order = list(range(len(steps)))[:: -1 if k else 1]
        taps = mixer.conv_weight[k, :, 0]
        state, found = torch.zeros_like(A), torch.zeros_like(steps)
        for place, s in enumerate(order):
            before = [steps[order[place - back]] if place >= back else 0 * steps[s] for back in (3, 2, 1, 0)]
            v = F.silu(sum(taps[:, i] * before[i] for i in range(4)) + mixer.conv_bias[k])
            dt, B, C = F.linear(v, mixer.x_proj_weight[k]).split([mixer.rank, mixer.states, mixer.states])
            delta = F.softplus(F.linear(dt, mixer.dt_projs_weight[k]) + mixer.dt_projs_bias[k])
            state = torch.exp(delta[:, None] * A) * state + (delta * v)[:, None] * B
            found[s] = state @ C + mixer.Ds.view(2, -1)[k] * v
        total = total + found.flatten()
    return mixer.out_proj(mixer.out_norm(total) * F.silu(gate))


@torch.inference_mode()
def test_the_channel_mixer_is_its_recurrence_forwards_and_backwards() -> None:
    torch.manual_seed(0)
    mixer = ChannelMixer(CONFIG, 8, 16)
    for parameter in mixer.parameters():
        parameter += 0.3 * torch.randn(parameter.shape)
    x = torch.randn(2, 3, 8)
    found = mixer(x)
    for image in range(2):
        for token in range(3):
            assert torch.allclose(found[image, token], slow_channel_mixer(mixer, x[image, token]), atol=1e-5)


def test_no_weight_depends_on_the_resolution() -> None:
    with torch.device("meta"):
        states = [ssm_models.create_model("vim2_nano", img_size=size).state_dict() for size in (32, 64)]
    shapes = [{key: value.shape for key, value in state.items()} for state in states]
    assert shapes[0] == shapes[1]


@torch.inference_mode()
@pytest.mark.parametrize("context", ["drop", "conv", "freeze"])
def test_a_pruned_token_repeats_its_last_output(context: str) -> None:
    """In the averages and in what leaves the stage, whether it still travels or comes back."""
    model, images = small(), torch.randn(2, 3, 8, 12)
    model.set_schedule(PruningSchedule.parse(f"2:0.5;context={context}"))
    kept = model.kept_patches(images)[0]
    x, view = model.begin(images)
    for index in range(2):
        x, view = model.prune_block(index, x, view, model.schedule.steps[0] if index == 1 else None)
        if index == 1:
            early = view.whole(x)  # (2, 24, 4 · 8): what every token had when some were pruned
    for index in range(2, 4):
        x, view = model.prune_block(index, x, view, None)
    late = view.whole(x)
    assert late.shape[2] == 7 * 8
    pruned = torch.ones(2, 24, dtype=torch.bool).scatter(1, kept, False)
    expected = torch.cat([early, early[..., -8:], early[..., -8:], early[..., -8:]], -1)
    assert torch.equal(late[pruned], expected[pruned])
    assert (late[~pruned] - expected[~pruned]).abs().max() > 1e-3
