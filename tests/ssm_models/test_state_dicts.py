"""Which weights are taken from a file, by which names, and what is said of it."""

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import ssm_models
from spaces.errors import CheckpointError
from ssm_models import PrunableModel

State = dict[str, Tensor]


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + key: value for key, value in state.items()}


def averaged(state: State) -> State:
    return {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}


def opened(path: Path | str, name: str = "vim_nano") -> State:
    """Return the weights of a file; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ssm_models.build(name, path).state_dict()


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1}]}
FORMS: dict[str, Any] = {
    "timm": lambda state: {"epoch": 3, "arch": "vim_nano", "state_dict": state, "optimizer": OPTIMIZER},
    "only an average": lambda state: {"state_dict_ema": state},
    "lightning": lambda state: {
        "epoch": 1,
        "state_dict": {**under("model.", state), "criterion.weight": torch.ones(3)},
        "optimizer_states": [OPTIMIZER],
        "callbacks": {"EarlyStopping": {"best_score": torch.tensor(0.5)}},
    },
    "deepspeed": lambda state: {"module": state, "param_shapes": [OrderedDict(a=torch.Size([1]))], "optimizer": None},
    "optimizer by name": lambda state: {
        "model": state,
        "optimizer": {"exp_avg": {key: value * 0 for key, value in state.items()}},
    },
    "loop": lambda state: {"epoch": 1, "model_state_dict": state, "optimizer_state_dict": OPTIMIZER},
    "net": lambda state: {"net": state, "acc": 90.0},
    "ema": lambda state: {"ema": under("module.", state), "updates": torch.tensor(10)},
    "unknown name": lambda state: {"my_weights": state, "loss": torch.tensor(1.5)},
    "nested": lambda state: {"checkpoint": {"states": {"model": state}}},
    "parallel": lambda state: under("module.", state),
    "compiled": lambda state: under("_orig_mod.", state),
    "compiled, parallel": lambda state: under("module._orig_mod.", state),
    "parallel, compiled": lambda state: under("_orig_mod.module.", state),
    "compiled blocks": lambda state: {
        key.replace("layers.3.", "layers.3._orig_mod.").replace("mixer.", "_checkpoint_wrapped_module.mixer."): value
        for key, value in state.items()
    },
    "backbone": lambda state: under("backbone.", state),
    "student": lambda state: {"state_dict": under("student.", state)},
    "any order": lambda state: under("model.module.backbone._orig_mod.", state),
    "a name of one's own": lambda state: under("encoder.trunk.", state),
    "with a loss": lambda state: {**under("net.", state), "loss.weight": torch.ones(10)},
}


@pytest.mark.parametrize("form", FORMS)
def test_one_set_of_weights_opens_without_a_word(model: PrunableModel, tmp_path: Path, form: str) -> None:
    content = FORMS[form](model.state_dict())
    torch.save(content, tmp_path / "m.pth")
    assert same(opened(tmp_path / "m.pth"), model.state_dict())
    other = ssm_models.create_model("vim_nano")
    ssm_models.load_checkpoint(other, content)
    assert same(other.state_dict(), model.state_dict())
    if all(isinstance(value, Tensor) for value in content.values()):
        save_file({key: value.contiguous() for key, value in content.items()}, tmp_path / "m.safetensors")
        assert same(opened(tmp_path / "m.safetensors"), model.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod."])
def test_every_family_opens_under_a_prefix(any_model: PrunableModel, tmp_path: Path, prefix: str) -> None:
    torch.save({"state_dict": under(prefix, any_model.state_dict())}, tmp_path / "m.pth")
    assert same(opened(tmp_path / "m.pth", any_model.model_name), any_model.state_dict())


SEVERAL = [  # the sets in a file; the first one is taken
    ("state_dict", "state_dict_ema"),
    ("model", "model_ema"),
    ("model_state_dict", "ema_state_dict"),
    ("net", "ema"),
    ("student", "teacher"),
    ("model", "state_dict"),
    ("module", "averaged.module"),
]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("names", SEVERAL)
def test_of_several_sets_one_is_taken_and_said(
    model: PrunableModel, tmp_path: Path, names: tuple[str, str], wrapped: bool
) -> None:
    raw = model.state_dict()
    average, file = averaged(raw), tmp_path / "timm.pth.tar"
    states = [under("module.", state) if wrapped else state for state in (raw, average)]
    content: dict[str, Any] = {"epoch": 3}
    for name, state in zip(reversed(names), reversed(states), strict=True):  # the order in the file does not matter
        content |= under(f"{name}.", state) if "." in name else {name: state}
    torch.save(content, file)
    inside = [f"{name}.module" if wrapped else name for name in names]
    with pytest.warns(UserWarning, match=rf"{inside[0]} is taken of {inside[0]}, {inside[1]}; name .*#{inside[1]}"):
        assert same(ssm_models.build("vim_nano", file).state_dict(), raw)
    for name, state in zip(names, (raw, average), strict=True):
        assert same(opened(f"{file}#{name}"), state)
    with pytest.raises(CheckpointError, match=rf"has no 'best'; there is .*{names[1]}"):
        ssm_models.build("vim_nano", f"{file}#best")


def test_sets_that_nothing_puts_in_order_are_refused(model: PrunableModel, tmp_path: Path) -> None:
    raw, file = model.state_dict(), tmp_path / "m.pth"
    torch.save({"ema": raw, "swa": averaged(raw)}, file)
    with pytest.raises(CheckpointError, match=r"several sets of weights, ema, swa: name one, such as .*m\.pth#ema"):
        ssm_models.build("vim_nano", file)
    assert same(opened(f"{file}#swa"), averaged(raw))
    with pytest.raises(CheckpointError, match="several sets"):
        ssm_models.read_checkpoint(file)
    assert same(ssm_models.read_checkpoint(f"{file}#ema")[0], raw)


def test_weights_at_the_top_come_before_those_in_a_dictionary(model: PrunableModel, tmp_path: Path) -> None:
    raw, file = model.state_dict(), tmp_path / "m.pth"
    torch.save({**raw, "ema": averaged(raw)}, file)
    with pytest.warns(UserWarning, match="the top level is taken of the top level, ema"):
        assert same(ssm_models.build("vim_nano", file).state_dict(), raw)
    assert same(opened(f"{file}#ema"), averaged(raw))


def test_weights_of_another_model_beside_are_no_choice(model: PrunableModel, tmp_path: Path) -> None:
    teacher = ssm_models.create_model("vmamba_nano").state_dict()
    torch.save({"model": teacher, "ema": model.state_dict()}, tmp_path / "m.pth")
    assert same(opened(tmp_path / "m.pth"), model.state_dict())


def test_a_name_for_the_only_set(model: PrunableModel, tmp_path: Path) -> None:
    torch.save({"state_dict": under("model.", model.state_dict())}, tmp_path / "m.pth")
    assert same(opened(f"{tmp_path}/m.pth#state_dict"), model.state_dict())
    with pytest.raises(CheckpointError, match="holds one set of weights; leave #ema out"):
        ssm_models.build("vim_nano", f"{tmp_path}/m.pth#ema")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_with_an_index(model: PrunableModel, tmp_path: Path, kind: str) -> None:
    state = under("model.", model.state_dict())
    names = list(state)
    shards = {f"m-{i}.{kind}": {key: state[key].contiguous() for key in names[i::2]} for i in (0, 1)}
    for name, part in shards.items():
        if kind == "bin":
            torch.save(part, tmp_path / name)
        else:
            save_file(part, tmp_path / name)
    places = {key: name for name, part in shards.items() for key in part}
    index = tmp_path / f"m.{kind}.index.json"

    def write(content: object) -> None:
        index.write_text(json.dumps(content))

    write({"metadata": {"total_size": 1}, "weight_map": places})
    assert same(opened(index), model.state_dict())
    (tmp_path / f"m-1.{kind}").rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=rf"m-1\.{kind} is missing beside it"):
        ssm_models.build("vim_nano", index)
    for content, message in (
        ({"weight_map": {**places, names[0]: f"../m-0.{kind}"}}, "is not the name of a file beside it"),
        ({"weight_map": {**places, names[0]: 3}}, "is not the name of a file beside it"),
        ({"weight_map": {"x": f"m-0.{kind}"}}, "holds no x"),
        ({"weight_map": {}}, "names no weights"),
        ([], "no index of weights"),
    ):
        write(content)
        with pytest.raises(CheckpointError, match=message):
            ssm_models.build("vim_nano", index)


def test_compiled_models_write_plain_names(model: PrunableModel, tmp_path: Path) -> None:
    for index, wrapped in enumerate((torch.compile(model, backend="eager"), torch.nn.DataParallel(model))):
        file = tmp_path / f"{index}.safetensors"
        ssm_models.save_checkpoint(wrapped, file, {"model": "vim_nano"})
        assert set(ssm_models.read_checkpoint(file)[0]) == set(model.state_dict())
        assert same(opened(file), model.state_dict())
        assert ssm_models.weights_digest(wrapped) == ssm_models.weights_digest(model)


def test_whole_numbers_are_no_weights(model: PrunableModel, tmp_path: Path) -> None:
    state = model.state_dict()
    with pytest.raises(CheckpointError, match=r"head.weight is int8, and such tensors are no weights"):
        ssm_models.load_checkpoint(model, {**state, "head.weight": state["head.weight"].to(torch.int8)})
    torch.save({"model": {key: value.long() for key, value in state.items()}}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="holds no tensors of weights"):
        ssm_models.build("vim_nano", tmp_path / "m.pth")
    ssm_models.load_checkpoint(model, {key: value.half() for key, value in state.items()})


def test_a_file_without_the_keys_says_what_it_has_and_what_is_missing(model: PrunableModel, tmp_path: Path) -> None:
    torch.save({"state_dict": {f"encoder.{i}.weight": torch.ones(1) for i in range(30)}}, tmp_path / "m.pth")
    for load in (
        lambda path: ssm_models.build("vim_nano", path),
        lambda path: ssm_models.load_checkpoint(model, path),
    ):
        with pytest.raises(
            CheckpointError,
            match=r"vim_nano: its 30 keys look like state_dict\.encoder\.0\.weight, .*; missing are cls_token",
        ):
            load(tmp_path / "m.pth")
    other = ssm_models.create_model("vmamba_nano").state_dict()
    torch.save({"state_dict": under("model.", other)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="it looks like vmamba_nano"):
        ssm_models.build("vim_nano", tmp_path / "m.pth")


def test_the_same_weight_twice_is_refused(model: PrunableModel) -> None:
    state = model.state_dict()
    with pytest.raises(CheckpointError, match=r"two weights are called head\.bias"):
        ssm_models.load_checkpoint(model, {**state, "_orig_mod.head.bias": state["head.bias"]})


def test_a_file_that_contains_itself(model: PrunableModel) -> None:
    content: dict[str, Any] = {"model": model.state_dict()}
    content["content"] = content
    with pytest.warns(UserWarning, match="model is taken of model, content"):
        ssm_models.load_checkpoint(model, content)


def test_a_set_that_comes_first_is_not_passed_over_for_lacking_keys() -> None:
    """Weights that are cut short are refused; their average is not taken in their place without a word."""
    state = ssm_models.create_model("vim_nano").state_dict()
    cut = dict(list(state.items())[: int(0.8 * len(state))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CheckpointError, match="missing"):
            ssm_models.load_checkpoint(ssm_models.create_model("vim_nano"), {"model": cut, "model_ema": state})


def test_a_head_that_lacks_a_part_is_not_begun_anew() -> None:
    model = ssm_models.create_model("group_mamba_nano")
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(model.class_layers[-1])}
    assert 0 < len(model.state_dict()) - len(state) <= 2
    with pytest.raises(CheckpointError, match="missing"):
        ssm_models.load_checkpoint(model, state, new_head=True)


@pytest.mark.parametrize("change", [lambda value: value.to_sparse(), lambda value: value.to("meta")])
def test_weights_without_values_in_memory_are_refused(change: Callable[[Tensor], Tensor]) -> None:
    model = ssm_models.create_model("vim_nano")
    before = ssm_models.weights_digest(model)
    state = dict(model.state_dict())
    state["norm_f.weight"] = change(state["norm_f.weight"])
    with pytest.raises(CheckpointError, match=r"norm_f\.weight is a sparse or empty"):
        ssm_models.load_checkpoint(model, state)
    assert ssm_models.weights_digest(model) == before
