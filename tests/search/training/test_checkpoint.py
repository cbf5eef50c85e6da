"""What the optimiser is given; checkpoints themselves are tested with the trainings that write them."""

import pytest

import ssm_models
from search.training.checkpoint import parameter_groups


def test_dynamics_norms_and_positions_do_not_decay() -> None:
    model = ssm_models.create_model("vim_nano")
    spared, decayed = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = {names[id(p)].removeprefix("layers.").partition(".")[2] for p in decayed["params"]}
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    assert {"mixer.in_proj.weight", "mixer.conv1d.weight", "mixer.dt_proj_b.weight"} <= kinds
    left = {names[id(p)] for p in spared["params"]}
    assert {
        "layers.0.mixer.A_log",
        "layers.0.mixer.A_b_log",
        "layers.0.mixer.D",
        "pos_embed",
        "cls_token",
    } <= left
    assert all("weight" not in name or "norm" in name for name in left)


@pytest.mark.parametrize("name", ["vmamba_nano", "group_mamba_nano", "vim2_nano", "cvmh_unet_nano"])
def test_biases_of_any_shape_do_not_decay(name: str) -> None:
    model = ssm_models.create_model(name)
    decayed = {id(p) for p in parameter_groups(model, 0.05)[1]["params"]}
    assert [name for name, p in model.named_parameters() if "bias" in name and id(p) in decayed] == []
