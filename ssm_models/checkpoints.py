"""Weights into models and out of them: the authors' files, safetensors, plain dicts."""

import hashlib
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from spaces.errors import CheckpointError, CheckpointNotFoundError
from spaces.paths import exists, is_file
from ssm_models.base import PrunableModel
from ssm_models.hub import downloaded, on_hub
from ssm_models.registry import (
    LONGEST_SIDE,
    ModelInfo,
    authors_weights,
    instantiate,
    list_models,
    model_info,
    shipped_weights,
)
from ssm_models.state_dicts import Weights, plain_names
from ssm_models.weight_files import read_file

_POSITIONS = "pos_embed"  # in the names of position embeddings
# Names of no file:
RANDOM = "random"  # weights drawn from a seed, for speed and FLOPs
AUTHORS = "authors"  # those that the authors have on the Hugging Face hub


def is_path(checkpoint: str) -> bool:
    """Return whether a checkpoint is named by a path, which depends on the working directory.

    >>> is_path("vim.pth"), is_path("random"), is_path("authors"), is_path("hf:hustvl/Vim-tiny-midclstok")
    (True, False, False, False)
    """
    return checkpoint not in (RANDOM, AUTHORS) and not on_hub(checkpoint)


def located(info: ModelInfo, checkpoint: str | Path | None) -> str | Path:
    """Return the file of a checkpoint, or its place on the hub: `authors` and None depend on the model.

    Raises:
        UsageError: the model ships no weights, or its authors have none on the hub.
    """
    if checkpoint is None:
        return shipped_weights(info)
    return authors_weights(info) if checkpoint == AUTHORS else checkpoint


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights of a file and its metadata (safetensors only, else empty).

    Args:
        path: a file, the index of several (`model.safetensors.index.json`), or a file on the Hugging Face hub
            (`hf:OWNER/REPO[/FILE][@REVISION]`); of a file with several sets of weights `FILE#model_ema` names one.

    Raises:
        CheckpointError: the file is missing, truncated, holds code, or holds no weights; or it has several sets of
            weights, and no name that comes first (`state_dicts.FIRST`).
    """
    content, metadata, file, chosen = _content(path)
    return Weights(content, file).taken(chosen) or {}, metadata


def _content(path: str | Path) -> tuple[object, dict[str, str], str, str | None]:
    """Return what a file holds, its metadata, its name, and the name of the weights in it, if one is given."""
    if isinstance(path, str) and on_hub(path):
        shown, mark, name = path.partition("#")
        return *read_file(downloaded(shown)), shown, name if mark else None
    path, chosen = Path(path), None
    if not exists(path) and "#" in path.name:
        name, _, chosen = path.name.rpartition("#")
        path = path.with_name(name)
    if not is_file(path):
        raise CheckpointNotFoundError(f"checkpoint {path}: no such file")
    return *read_file(path), str(path), chosen


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a file of weights; empty for files that have none. Arguments as of `read_checkpoint`."""
    return _content(path)[1]


def load_checkpoint(model: PrunableModel, source: str | Path | Mapping[str, Any], *, new_head: bool = False) -> None:
    """Load weights strictly: from the authors' file, safetensors, or a state dict.

    Position embeddings of another image size are resized, with a warning. Without metadata, they are for the model's
    size, if they are as many as its patches, or else for the size that the model is registered with.

    Args:
        model: changed in place.
        source: a file, as for `read_checkpoint`, or a state dict with the authors' keys, whatever prefixes wrappers
            gave them.
        new_head: keep the model's own head, with a warning, if the weights have one of other classes, or none; also
            adapt weights for colours to the model's number of channels, as timm does.

    Raises:
        CheckpointError: the weights cannot be read, or belong to another model; the model is unchanged.

    >>> import ssm_models
    >>> model, other = (ssm_models.create_model("vim_nano") for _ in range(2))
    >>> load_checkpoint(model, other.state_dict())
    >>> weights_digest(model) == weights_digest(other)
    True
    """
    if isinstance(source, Mapping):
        _load(model, _weights(model, source), "state dict", None, new_head)
        return
    content, metadata, file, chosen = _content(source)
    where = f"checkpoint {file}"
    _load(model, _weights(model, content, file, chosen), where, _size(metadata, where), new_head)


def _weights(
    model: PrunableModel, content: object, file: str | None = None, chosen: str | None = None
) -> dict[str, Tensor]:
    """Return the set of weights in a checkpoint that a model takes.

    Raises:
        CheckpointError: there is none.
    """
    own = model.state_dict()
    found = Weights(content, file, own, model.adapt)
    state = found.taken(chosen)
    if state is None:
        where = "state dict" if file is None else f"checkpoint {file}"
        raise CheckpointError(f"{where}: not for {model.model_name}: {_unlike(own, found.tensors)}")
    return state


def _unlike(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Return why no set of weights is for a model: what the keys look like, and which model has them."""
    bare = dict(given)
    while not (likely := _likely_model(bare)):
        firsts = {key.partition(".")[0] for key in bare}
        if len(firsts) > 1 or any("." not in key for key in bare):
            break
        bare = {key.partition(".")[2]: value for key, value in bare.items()}
    hint = f"; it looks like {likely}" if likely else ""
    missing = ", ".join([key for key in own if key not in bare][:3])
    return f"its {len(given)} keys look like {', '.join(list(given)[:3])}, …; missing are {missing}, …{hint}"


def _load(
    model: PrunableModel,
    state: dict[str, Tensor],
    where: str,
    img_size: tuple[int, int] | None,
    new_head: bool = False,
) -> None:
    """Load a set of weights; `img_size` is what their metadata says.

    Raises:
        CheckpointError: they are not for the model, or for images of unknown size; the model is unchanged.
    """
    given = _with_channels(model, _without_head(model, state, where), where) if new_head else state
    _check(model, _adapted(model, given, None), where, positions=False)
    adapted = _adapted(model, given, _weights_size(model, given, where) if img_size is None else img_size)
    _check(model, adapted, where)
    resized = [key for key in given if _POSITIONS in key and adapted[key] is not given[key]]
    if resized:
        warnings.warn(f"{where}: {', '.join(resized)} resized for images of {model.img_size} pixels", stacklevel=3)
    model.load_state_dict(adapted)


def _adapted(model: PrunableModel, state: dict[str, Tensor], img_size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Return weights with the model's keys; None leaves the position embeddings as they are."""
    own = model.state_dict()
    return {  # torch 0.3 wrote scalars as vectors of one element, and torch's own loading still takes them
        key: value[0] if value.shape == (1,) and key in own and own[key].dim() == 0 else value
        for key, value in model.adapt(state, img_size).items()
    }


def _check(model: PrunableModel, adapted: dict[str, Tensor], where: str, *, positions: bool = True) -> None:
    """Raise a CheckpointError unless the weights are the model's, position embeddings among them if asked."""
    own = model.state_dict()
    if odd := [key for key, value in adapted.items() if value.is_meta or value.layout != torch.strided]:
        raise CheckpointError(f"{where}: {odd[0]} is a sparse or empty (meta) tensor; expected dense weights")
    whole = [key for key, value in adapted.items() if key in own and _truncates(value, own[key])]
    if whole:
        kind = str(adapted[whole[0]].dtype).removeprefix("torch.")
        raise CheckpointError(f"{where}: {whole[0]} is {kind}, and such tensors are no weights; expected floats")
    left = {} if positions else {key: own[key] for key in adapted if _POSITIONS in key and key in own}
    if problems := _differences(own, {**adapted, **left}):
        likely = _likely_model(adapted)
        hint = f"; it looks like {likely}" if likely and likely != model.model_name else ""
        raise CheckpointError(f"{where}: not for {model.model_name}: {problems}{hint}")


def _weights_size(model: PrunableModel, state: dict[str, Tensor], where: str) -> tuple[int, int] | None:
    """Return the (height, width) of the images that position embeddings are for; None if there are none.

    They tell the number of patches alone. It is that of the size that the model was opened with, or that of the size
    that it is registered with.

    Raises:
        CheckpointError: it is neither, so that it would have to be guessed.
    """
    patches = model.patches_of(state)
    if patches is None:
        return None
    usual = _registered_size(model.model_name)
    with torch.device("meta"):
        published = None if usual is None else instantiate(model.model_name, img_size=usual).layout.stages[0]
    height, width = model.img_size
    here = model.layout.stages[0]
    if patches == here.tokens:
        if published is not None and published.tokens == patches and published != here:
            warnings.warn(
                f"{where}: its {patches} position embeddings are taken for images of {height}×{width} pixels, as "
                f"asked; images of {usual}×{usual} have as many patches",
                stacklevel=4,
            )
        return height, width
    if usual is not None and published is not None and patches == published.tokens:
        return usual, usual
    grids = [f"{side}×{patches // side}" for side in range(math.isqrt(patches), 0, -1) if patches % side == 0]
    raise CheckpointError(
        f"{where}: its {patches} position embeddings are not for images of {height}×{width} pixels ({here.tokens} "
        f"patches), but for {' or '.join(grids[:3])} patches: say the images' size, --img-size HxW"
    )


def _registered_size(name: str) -> int | None:
    return model_info(name).img_size if name in list_models() else None


def _without_head(model: PrunableModel, state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return weights with the model's own head, if they have none for as many classes, and say so."""
    own, adapted = model.state_dict(), _adapted(model, state, None)
    heads = tuple(f"{head}." for head in model.class_layers)
    keys = [key for key in own if key.startswith(heads)]
    others = [key for key in adapted if key.startswith(heads)]
    if keys == [key for key in own if key in others] and all(adapted[k].shape[:1] == own[k].shape[:1] for k in keys):
        return {key: value for key, value in adapted.items() if key in own or key not in others}
    if any(key in adapted and adapted[key].shape[1:] != own[key].shape[1:] for key in keys):
        return state  # of another width: not this model's
    classes = {len(adapted[key]) for key in others if adapted[key].dim()}
    if model.num_classes in classes:
        return state  # it lacks a part of the head, which the strict check names
    found = f"are for {classes.pop()} classes" if len(classes) == 1 else "have no head"
    warnings.warn(
        f"{where}: the weights {found}, the model has {model.num_classes}: it begins with a new head "
        f"({', '.join(keys)})",
        stacklevel=4,
    )
    return {key: value for key, value in adapted.items() if key not in others} | {key: own[key] for key in keys}


def _with_channels(model: PrunableModel, state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return weights for colours with the model's number of channels, as timm makes them, and say so."""
    own, channels = model.state_dict(), model.in_chans
    first = [
        key
        for key, value in state.items()
        if channels != 3
        and key in own
        and value.dim() == own[key].dim() == 4
        and (value.shape[1], own[key].shape[1]) == (3, channels)
        and value.shape[0] == own[key].shape[0]
    ]
    if first:
        how = "summed" if channels == 1 else "repeated"
        warnings.warn(f"{where}: {', '.join(first)}: its 3 channels are {how} for images of {channels}", stacklevel=4)
    return state | {key: adapt_input_conv(channels, state[key]) for key in first}


def _truncates(given: Tensor, own: Tensor) -> bool:
    return own.is_floating_point() and not given.is_floating_point()


def _differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    groups = {
        "missing": [key for key in own if key not in given],
        "extra": [key for key in given if key not in own],
        "misshapen": [
            f"{key} {tuple(given[key].shape)} for {tuple(own[key].shape)}"
            for key in own
            if key in given and own[key].shape != given[key].shape
        ],
    }
    return "; ".join(
        f"{len(keys)} keys {name} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for name, keys in groups.items()
        if keys
    )


def _likely_model(state: Mapping[str, Tensor]) -> str | None:
    """Return the model whose weights have all these names and mostly these shapes."""
    patterns = _patterns(state)
    for name in list_models():
        outline = _patterns(_shapes(_smallest(model_info(name).family)))
        if len(outline & patterns) < len(outline) / 4:
            continue  # of another family, whose larger models need not be built
        own = _shapes(name)
        if own.keys() == state.keys():
            same = sum(own[key] == state[key].shape for key in own)
            if same >= len(own) - 3:  # head and position embeddings vary with the task
                return name
    return None


def _patterns(keys: Iterable[str]) -> frozenset[str]:
    """Return keys with a sign in place of numbers, which differ with the depth of a model."""
    return frozenset(re.sub(r"\d+", "#", key) for key in keys)


@cache
def _smallest(family: type[PrunableModel]) -> str:
    """Return the name of a family's model that is built fastest."""
    names = [name for name in list_models() if model_info(name).family is family]
    return min(names, key=lambda name: ("nano" not in name, name))


@cache
def _shapes(name: str) -> dict[str, torch.Size]:
    """Return the shapes of a model's weights; cached, because building all models takes seconds."""
    with torch.device("meta"):
        return {key: value.shape for key, value in instantiate(name).state_dict().items()}


def build(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> PrunableModel:
    """Build a model with weights, in evaluation mode.

    Args:
        name: one of `list_models()`.
        checkpoint: a file, as for `read_checkpoint`; `authors` for the authors' weights on the hub, `random` for
            weights drawn from `seed`, None for those that the package ships.
        num_classes: outputs of a model with random weights; a file determines them itself.
        img_size: pixels, (height, width) or one number; None is the size that the weights' metadata names, or the one
            that the model is registered with. Position embeddings for another number of patches need it said.
        seed: of the random weights.

    Raises:
        UnknownNameError: there is no model of that name.
        UsageError: `checkpoint` is None and the model ships no weights, or the images have a size it cannot take.
        CheckpointError: the file cannot be read, or belongs to another model, or does not tell the images' size.

    >>> build("vim_nano", "random", num_classes=3).num_classes
    3
    """
    return build_with_metadata(name, checkpoint, num_classes=num_classes, img_size=img_size, seed=seed)[0]


def build_with_metadata(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> tuple[PrunableModel, dict[str, str]]:
    """As `build`, but also return the metadata of the weights' file, such as for `trained_classes`."""
    info = model_info(name)
    if checkpoint == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return instantiate(name, num_classes, img_size).eval(), {}
    content, metadata, file, chosen = _content(located(info, checkpoint))
    where = f"checkpoint {file}"
    other = metadata.get("model", name) != name
    if other and chosen is None:  # a name that is not in the file is told first
        raise CheckpointError(f"{where}: holds {metadata['model']}, not {name}")
    size = _size(metadata, where)
    with torch.device("meta"):
        outline = instantiate(name)
    state = _weights(outline, content, file, chosen)
    if other:
        raise CheckpointError(f"{where}: holds {metadata['model']}, not {name}")
    model = instantiate(name, _classes(info, outline, state, where), size if img_size is None else img_size)
    _load(model, state, where, size)
    return model.eval(), metadata


def _classes(info: ModelInfo, outline: PrunableModel, state: dict[str, Tensor], where: str) -> int:
    """Return the number of classes that weights are for."""
    try:
        return info.family.settings_of(info.config, state)["num_classes"]
    except (KeyError, IndexError, ValueError):
        problems = _differences(outline.state_dict(), outline.adapt(state))
        raise CheckpointError(f"{where}: not for {info.name}: {problems}") from None


def _size(metadata: Mapping[str, str], where: str) -> tuple[int, int] | None:
    """Return the (height, width) of the images that weights are for, if their metadata says so."""
    if "img_size" not in metadata:
        return None
    try:
        height, width = json.loads(metadata["img_size"])
    except (ValueError, TypeError, RecursionError):
        height = width = None
    if all(type(side) is int and 0 < side <= LONGEST_SIDE for side in (height, width)):
        return height, width
    raise CheckpointError(f"{where}: img_size is {metadata['img_size']!r}, expected [height, width]")


def trained_classes(metadata: Mapping[str, str]) -> list[str] | None:
    """Return the class names that weights were trained on, if their file's metadata lists them."""
    try:
        names = json.loads(metadata.get("classes", "null"))
    except (ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(one, str) for one in names) else None


def save_checkpoint(model: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write weights and string metadata as safetensors; the file appears whole or not at all.

    Args:
        model: any module; weights of a compiled or parallel one get the names that they have without the wrapper.
        path: its folder is made if it is missing.
        metadata: such as `model` and `img_size`, which `build` reads.

    Raises:
        CheckpointError: the file cannot be written.

    >>> model = build("vim_nano")
    >>> save_checkpoint(model, "runs/vim.safetensors", {"model": "vim_nano"})
    >>> weights, metadata = read_checkpoint("runs/vim.safetensors")
    >>> weights.keys() == model.state_dict().keys(), metadata["model"]
    (True, 'vim_nano')
    """
    path = Path(path)
    state = {key: value.detach().cpu().contiguous() for key, value in plain_names(model.state_dict()).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        try:
            save_file(state, temporary, metadata={"format": "pt", **metadata})
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be written: {error}") from None


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 (hex) of all weights, by name, shape, dtype and bytes; wrappers change nothing.

    >>> one, other = build("vim_nano", "random", seed=0), build("vim_nano", "random", seed=1)
    >>> len(weights_digest(one)), weights_digest(one) == weights_digest(other)
    (64, False)
    """
    digest = hashlib.sha256()
    for key, value in sorted(plain_names(model.state_dict()).items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
