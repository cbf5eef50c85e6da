"""Weights in and out, and what is refused."""

import argparse
import json
import pickle
from pathlib import Path

import pytest
import torch
from yacs.config import CfgNode

import ssm_models
from spaces.errors import CheckpointError, UnknownNameError, UsageError
from ssm_models import PrunableModel


def test_round_trip(model: PrunableModel, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "model.safetensors"
    ssm_models.save_checkpoint(model, file, {"model": "vim_nano", "img_size": "[28, 28]"})
    again = ssm_models.build("vim_nano", file)
    assert ssm_models.weights_digest(again) == ssm_models.weights_digest(model)
    assert not again.training
    assert [path.name for path in file.parent.iterdir()] == ["model.safetensors"]


FORMS = {
    "plain": lambda state: state,
    "vim": lambda state: {"model": state, "args": argparse.Namespace(lr=1.0)},
    "vmamba": lambda state: {"model": state, "config": CfgNode({"TRAIN": CfgNode({"LR": 1.0})}), "epoch": 3},
    "parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_that_authors_publish(model: PrunableModel, tmp_path: Path, form: str) -> None:
    file = tmp_path / "model.pth"
    torch.save(FORMS[form](model.state_dict()), file)
    again = ssm_models.build("vim_nano", file)
    assert ssm_models.weights_digest(again) == ssm_models.weights_digest(model)


def test_ema_leftovers_are_dropped(model: PrunableModel) -> None:
    other = ssm_models.create_model("vim_nano")
    ssm_models.load_checkpoint(other, {"state_dict": {**model.state_dict(), "ema_head_weight": torch.zeros(1)}})
    assert ssm_models.weights_digest(other) == ssm_models.weights_digest(model)


@pytest.mark.parametrize("size", [(40, 40), (32, 72), (24, 32), (8, 12)])
@pytest.mark.parametrize("name", ["vim_nano", "plain_mamba_nano"])
def test_position_embeddings_do_not_tell_the_size_of_images(
    name: str, size: tuple[int, int], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A number of patches is that of many rectangles: none is guessed, not even a square."""
    model, file = ssm_models.create_model(name, num_classes=7, img_size=size), tmp_path / "m.pth"
    torch.save(model.state_dict(), file)
    patches = model.layout.stages[0].tokens
    message = f"its {patches} position embeddings are not for images of .*: say the images' size, --img-size HxW"
    for wrong in (None, 28, (20, 16)):
        with pytest.raises(CheckpointError, match=message):
            ssm_models.build(name, file, img_size=wrong)
    again = ssm_models.build(name, file, img_size=size)
    assert (again.num_classes, again.img_size) == (7, size)
    assert ssm_models.weights_digest(again) == ssm_models.weights_digest(model)
    ssm_models.save_checkpoint(model, tmp_path / "m.safetensors", {"img_size": json.dumps(size)})
    assert ssm_models.build(name, tmp_path / "m.safetensors").img_size == size
    assert not recwarn.list


def test_weights_of_as_many_patches_as_the_published_ones_are_of_that_size(tmp_path: Path) -> None:
    file = tmp_path / "m.pth"
    torch.save(ssm_models.create_model("vim_tiny", num_classes=3).state_dict(), file)
    assert ssm_models.build("vim_tiny", file).img_size == (224, 224)
    with pytest.warns(UserWarning, match=r"pos_embed resized for images of \(160, 192\)"):
        assert ssm_models.build("vim_tiny", file, img_size=(160, 192)).layout.stages[0].tokens == 120
    with pytest.warns(UserWarning, match="196 position embeddings are taken for images of 112×448 pixels, as asked"):
        wide = ssm_models.build("vim_tiny", file, img_size=(112, 448))
    assert torch.equal(wide.state_dict()["pos_embed"], torch.load(file)["pos_embed"])


def test_position_embeddings_are_resized_with_the_cls_token_in_the_middle(
    model: PrunableModel, tmp_path: Path
) -> None:
    with torch.no_grad():
        model.pos_embed[:] = 1.0
        model.pos_embed[:, 24] = 5.0
    torch.save(model.state_dict(), tmp_path / "m.pth")
    with pytest.warns(UserWarning, match="pos_embed resized"):
        larger = ssm_models.build("vim_nano", tmp_path / "m.pth", img_size=(32, 40))
    assert larger.layout.stages[0].tokens == 80
    assert torch.allclose(larger.pos_embed[:, 40], torch.tensor(5.0))
    rest = torch.cat([larger.pos_embed[:, :40], larger.pos_embed[:, 41:]], 1)
    assert torch.allclose(rest, torch.tensor(1.0), atol=1e-5)


def test_of_several_weights_in_a_file_one_is_named(model: PrunableModel, tmp_path: Path) -> None:
    state, file = model.state_dict(), tmp_path / "best.pth"
    averaged = {key: value + 1 for key, value in state.items()}
    torch.save({"model": state, "model_ema": averaged}, file)
    with pytest.warns(UserWarning, match=r"model is taken of model, model_ema; name .*best\.pth#model_ema"):
        plain = ssm_models.build("vim_nano", file)
    assert torch.equal(plain.state_dict()["norm_f.weight"], state["norm_f.weight"])
    other = ssm_models.build("vim_nano", f"{file}#model_ema")
    assert torch.equal(other.state_dict()["norm_f.weight"], averaged["norm_f.weight"])
    with pytest.raises(CheckpointError, match=r"has no 'state_dict'; there is model, model_ema"):
        ssm_models.build("vim_nano", f"{file}#state_dict")


@pytest.mark.parametrize("name", ["vim_nano", "plain_mamba_nano"])
def test_position_embeddings_of_a_rectangle_are_read_as_one(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide, file = ssm_models.create_model(name, img_size=(12, 48)), tmp_path / "wide.safetensors"
    with torch.no_grad():
        for key, value in wide.named_parameters():
            if "pos_embed" in key:
                value.normal_()
    ssm_models.save_checkpoint(wide, file, {"model": name, "img_size": "[12, 48]"})
    key = next(key for key in wide.state_dict() if "pos_embed" in key)
    again = ssm_models.build(name, file)
    assert again.img_size == (12, 48)
    assert torch.equal(again.state_dict()[key], wide.state_dict()[key])
    with pytest.warns(UserWarning, match="resized"):
        square = ssm_models.build(name, file, img_size=24)  # as many tokens, at other places
    assert square.state_dict()[key].shape == wide.state_dict()[key].shape
    assert not torch.allclose(square.state_dict()[key], wide.state_dict()[key])


@pytest.mark.parametrize("size", ["28", "null", '["a", 28]', "[28.0, 28.0]", "[28]", "[0, 28]", "[1000000, 28]", "x"])
def test_a_size_that_makes_no_sense(model: PrunableModel, tmp_path: Path, size: str) -> None:
    file = tmp_path / "m.safetensors"
    ssm_models.save_checkpoint(model, file, {"img_size": size})
    with pytest.raises(CheckpointError, match=r"img_size is '.*', expected \[height, width\]"):
        ssm_models.build("vim_nano", file)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_of_a_pickle_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    plain, zipped = tmp_path / "plain.pth", tmp_path / "zipped.pth"
    plain.write_bytes(pickle.dumps({"model": Bomb(mark)}))
    torch.save({"model": Bomb(mark)}, zipped)
    for file in (plain, zipped):
        with pytest.raises(CheckpointError, match=f"{file.name}: (refused|truncated)") as caught:
            ssm_models.build("vim_nano", file)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(model: PrunableModel, tmp_path: Path, suffix: str, share: float) -> None:
    file = tmp_path / f"m{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), file)
    else:
        ssm_models.save_checkpoint(model, file, {})
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=file.name) as caught:
        ssm_models.build("vim_nano", file)
    assert "\n" not in str(caught.value)


def test_another_model_s_weights_are_named(model: PrunableModel, tmp_path: Path) -> None:
    tiny = ssm_models.create_model("vim_tiny")
    torch.save(tiny.state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(CheckpointError, match=r"not for vim_small.*misshapen.*looks like vim_tiny"):
        ssm_models.build("vim_small", tmp_path / "tiny.pth")
    before = ssm_models.weights_digest(model)
    with pytest.raises(CheckpointError, match=r"not for vim_nano: .*extra"):
        ssm_models.load_checkpoint(model, tiny.state_dict())
    assert ssm_models.weights_digest(model) == before


def test_missing_and_extra_keys_are_named(model: PrunableModel) -> None:
    state = model.state_dict()
    state["head.wheel"] = state.pop("head.weight")
    with pytest.raises(CheckpointError, match=r"1 keys missing \(head.weight\); 1 keys extra \(head.wheel\)"):
        ssm_models.load_checkpoint(model, state)


@pytest.mark.parametrize("content", [[], {}, {"model": {}}, {"epoch": 3}, 3])
def test_files_without_weights(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="holds"):
        ssm_models.build("vim_nano", tmp_path / "m.pth")


def test_names_and_files_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'vim_tiny'"):
        ssm_models.build("vim_tinny", "random")
    with pytest.raises(CheckpointError, match="no such file"):
        ssm_models.build("vim_nano", tmp_path / "none.pth")
    with pytest.raises(UsageError, match="--checkpoint"):
        ssm_models.build("vim_small")


def test_random_weights_come_from_the_seed() -> None:
    digests = [ssm_models.weights_digest(ssm_models.build("vim_nano", "random", seed=seed)) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_the_shipped_weights_are_what_their_record_says() -> None:
    info = ssm_models.model_info("vim_nano")
    assert info.weights is not None and info.weights.stat().st_size <= 4 * 2**20
    record = json.loads(info.weights.with_suffix(".json").read_text())
    assert ssm_models.weights_digest(ssm_models.build("vim_nano")) == record["weights_digest"]
    assert record["top1"] >= 0.97
