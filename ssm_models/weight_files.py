"""What files of weights hold: those of torch, safetensors, shards with an index. No code in a pickle is ever run."""

import argparse
import json
import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spaces.errors import CheckpointError
from spaces.paths import is_file

INDEX = ".index.json"  # ends the name of an index
_LARGEST_INDEX = 50_000_000  # bytes; guards against hostile files


def read_file(path: Path) -> tuple[object, dict[str, str]]:
    """Return what a file holds and its metadata (safetensors only, else empty).

    Args:
        path: a safetensors file, a file of `torch.save`, or the index of several of one kind, which lie beside it.

    Raises:
        CheckpointError: the file is missing, truncated, or holds code.
    """
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"checkpoint {path}: not a whole safetensors file: {error}") from None
    return _unpickled(path), {}


def _unpickled(path: Path) -> object:
    try:
        # Files carry their training's settings: Vim's and DeiT's a Namespace, VMamba's, VSSD's and GroupMamba's a
        # CfgNode of yacs, which is a dictionary and read as one. Both are plain data.
        data: list[Any] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]
        with torch.serialization.safe_globals(data), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of old pickle protocols; what matters raises
            content: object = torch.load(path, map_location="cpu", weights_only=True)
            return content
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"it would run {found[1]}, and nothing of a pickle is run"
            if found
            else "it holds more than weights, or is no checkpoint"
        )
        raise CheckpointError(f"checkpoint {path}: refused: {reason}; convert it to safetensors") from None
    except Exception as error:  # torch has no base class for what a damaged file makes it raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"checkpoint {path}: truncated or not a checkpoint: {reason}") from None


def _read_shards(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights that an index names, and the metadata of its files."""
    state: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name, keys in shards(path).items():
        shard = path.with_name(name)
        if not is_file(shard):
            raise CheckpointError(f"checkpoint {path}: {name} is missing beside it")
        content, more = read_file(shard)
        metadata |= more
        for key in keys:
            value = content.get(key) if isinstance(content, dict) else None
            if not isinstance(value, Tensor):
                raise CheckpointError(f"checkpoint {path}: {name} holds no {key}")
            state[key] = value
    return state, metadata


def shards(path: Path) -> dict[str, list[str]]:
    """Return the keys in each file that an index names."""
    try:
        if path.stat().st_size > _LARGEST_INDEX:
            raise CheckpointError(f"checkpoint {path}: larger than {_LARGEST_INDEX} bytes")
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError, KeyError, TypeError):
        raise CheckpointError(f"checkpoint {path}: no index of weights: expected JSON with a weight_map") from None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"checkpoint {path}: its weight_map names no weights")
    found: dict[str, list[str]] = {}
    for key, name in places.items():
        if (
            not isinstance(name, str)
            or name in ("", ".", "..")
            or "/" in name
            or "\\" in name
            or name.endswith(INDEX)
        ):
            raise CheckpointError(f"checkpoint {path}: {name!r} is not the name of a file beside it")
        found.setdefault(name, []).append(key)
    return found
