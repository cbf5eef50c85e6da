"""Reading and writing weights: the authors' files, safetensors, plain dicts. No code in a pickle is ever run."""

import argparse
import hashlib
import json
import os
import pickle
import re
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spaces.errors import CheckpointError
from ssm_models.base import PrunableModel
from ssm_models.registry import LONGEST_SIDE, ModelInfo, create_model, list_models, model_info, shipped_weights

RANDOM = "random"  # the name of no file: weights drawn from a seed, for speed and FLOPs
_WRAPPERS = ("model", "state_dict", "model_ema")  # where the authors' files keep the weights


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights of a file and its metadata (safetensors only, else empty).

    Args:
        path: a file; of a file with several sets of weights `FILE#model_ema` names one.

    Raises:
        CheckpointError: the file is missing, truncated, holds code, or holds no weights.
    """
    path, chosen = Path(path), None
    if not path.exists() and "#" in path.name:
        name, _, chosen = path.name.rpartition("#")
        path = path.with_name(name)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file")
    if path.suffix == ".safetensors":
        if chosen is not None:
            raise CheckpointError(f"checkpoint {path}: holds one set of weights; leave #{chosen} out")
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"checkpoint {path}: not a whole safetensors file: {error}") from None
    try:
        # Files carry their training's settings: Vim's and DeiT's a Namespace, VMamba's, VSSD's and GroupMamba's a
        # CfgNode of yacs, which is a dictionary and read as one. Both are plain data.
        data: list[Any] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]
        with torch.serialization.safe_globals(data), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of old pickle protocols; what matters raises
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"it would run {found[1]}, and nothing of a pickle is run"
            if found
            else "it holds more than weights, or is no checkpoint"
        )
        raise CheckpointError(f"checkpoint {path}: refused: {reason}; convert it to safetensors") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"checkpoint {path}: truncated or not a checkpoint: {reason}") from None
    return unwrap(content, str(path), chosen), {}


def unwrap(content: object, where: str = "checkpoint", chosen: str | None = None) -> dict[str, Tensor]:
    """Return the state dict in the content of an author's file.

    Of several state dicts it is the one named `chosen`, or the first, with a warning.

    Raises:
        CheckpointError: there is none.
    """
    held = [key for key in _WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
    if chosen is not None and chosen not in held:
        raise CheckpointError(f"{where}: has no {chosen!r}; there is {', '.join(held) or 'a single state dict'}")
    if chosen is None and len(held) > 1:
        others = " or ".join(f"{where}#{key}" for key in held[1:])
        warnings.warn(f"{where}: {held[0]} is taken of {', '.join(held)}; name {others} for another", stacklevel=3)
    if held and isinstance(content, Mapping):
        content = content[chosen or held[0]]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where}: holds {type(content).__name__}, expected a state dict")
    state = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        raise CheckpointError(f"{where}: holds no tensors")
    return {key: value for key, value in state.items() if not key.startswith("ema_")}


def load_checkpoint(model: PrunableModel, source: str | Path | Mapping[str, Any]) -> None:
    """Load weights strictly: from the authors' file, safetensors, or a state dict.

    Position embeddings of another image size are resized, with a warning.

    Args:
        model: changed in place.
        source: a file, or a state dict with the authors' keys.

    Raises:
        CheckpointError: the weights cannot be read, or belong to another model; the model is unchanged.

    >>> import ssm_models
    >>> model, other = (ssm_models.create_model("vim_nano") for _ in range(2))
    >>> load_checkpoint(model, other.state_dict())
    >>> weights_digest(model) == weights_digest(other)
    True
    """
    if isinstance(source, Mapping):
        where, state, size = "state dict", unwrap(source), None
    else:
        where, (state, metadata) = f"checkpoint {source}", read_checkpoint(source)
        size = _size(metadata, where)
    _load(model, state, where, size)


def _load(model: PrunableModel, state: dict[str, Tensor], where: str, img_size: tuple[int, int] | None) -> None:
    own = model.state_dict()
    adapted = {  # torch 0.3 wrote scalars as vectors of one element, and torch's own loading still takes them
        key: value[0] if value.shape == (1,) and key in own and own[key].dim() == 0 else value
        for key, value in model.adapt(state, img_size).items()
    }
    problems = _differences(own, adapted)
    if problems:
        likely = _likely_model(state)
        hint = f"; it looks like {likely}" if likely and likely != model.model_name else ""
        raise CheckpointError(f"{where}: not for {model.model_name}: {problems}{hint}")
    resized = [key for key in state if "pos_embed" in key and adapted[key] is not state[key]]
    if resized:
        warnings.warn(f"{where}: {', '.join(resized)} resized for images of {model.img_size} pixels", stacklevel=3)
    model.load_state_dict(adapted)


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
    for name in list_models():
        with torch.device("meta"):
            own = create_model(name).state_dict()
        if own.keys() == state.keys():
            same = sum(own[key].shape == state[key].shape for key in own)
            if same >= len(own) - 3:  # head and position embeddings vary with the task
                return name
    return None


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
        checkpoint: a file; `random` for weights drawn from `seed`; None for the weights that the package ships.
        num_classes: outputs of a model with random weights; a file determines them itself.
        img_size: pixels, (height, width) or one number; None is the size that the weights are for.
        seed: of the random weights.

    Raises:
        UnknownNameError: there is no model of that name.
        UsageError: `checkpoint` is None and the model ships no weights, or the images have a size it cannot take.
        CheckpointError: the file cannot be read, or belongs to another model.

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
            return create_model(name, num_classes, img_size).eval(), {}
    path = shipped_weights(info) if checkpoint is None else Path(checkpoint)
    state, metadata = read_checkpoint(path)
    settings, size = _settings(info, state, metadata, path), _size(metadata, f"checkpoint {path}")
    model = create_model(name, settings["num_classes"], img_size or size or settings.get("img_size"))
    _load(model, state, f"checkpoint {path}", size)
    return model.eval(), metadata


def _settings(info: ModelInfo, state: dict[str, Tensor], metadata: dict[str, str], path: Path) -> dict[str, Any]:
    if metadata.get("model", info.name) != info.name:
        raise CheckpointError(f"checkpoint {path}: holds {metadata['model']}, not {info.name}")
    try:
        settings: dict[str, Any] = info.family.settings_of(info.config, state)
    except (KeyError, IndexError, ValueError):
        likely = _likely_model(state)
        hint = f"; it looks like {likely}" if likely else ""
        raise CheckpointError(f"checkpoint {path}: not for {info.name}{hint}") from None
    return settings


def _size(metadata: Mapping[str, str], where: str) -> tuple[int, int] | None:
    """Return the (height, width) of the images that weights are for, if their metadata says so."""
    if "img_size" not in metadata:
        return None
    try:
        height, width = json.loads(metadata["img_size"])
    except (ValueError, TypeError):
        height = width = None
    if all(type(side) is int and 0 < side <= LONGEST_SIDE for side in (height, width)):
        return height, width
    raise CheckpointError(f"{where}: img_size is {metadata['img_size']!r}, expected [height, width]")


def trained_classes(metadata: Mapping[str, str]) -> list[str] | None:
    """Return the class names that weights were trained on, if their file's metadata lists them."""
    try:
        names = json.loads(metadata.get("classes", "null"))
    except ValueError:
        return None
    return names if isinstance(names, list) and all(isinstance(one, str) for one in names) else None


def save_checkpoint(model: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write weights and string metadata as safetensors; the file appears whole or not at all.

    Args:
        model: any module.
        path: its folder is made if it is missing.
        metadata: such as `model` and `img_size`, which `build` reads.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
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
    """Return the SHA-256 of all weights, by name, shape, dtype and bytes."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
