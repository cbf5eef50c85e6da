"""Bundles: a folder with a finished model's weights, schedule and preprocessing, and their digests.

    model.safetensors     weights
    schedule.json         the schedule under which they run, as `export` writes it
    preprocessing.json    the images that the model expects, in timm's terms
    config.json           timm's: `timm.create_model("local-dir:DIR", pretrained=True)`
    README.md             the model card, which people may edit
    bundle.json           the format, and the SHA-256 of every other file; an edited model card is not an error

Digests detect damaged and mixed-up files. They do not prove who wrote them.
"""

import ctypes
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from spaces import PruningSchedule
from spaces.errors import ExportError
from spaces.json_files import read_object
from spaces.paths import is_file
from ssm_models.base import PrunableModel
from ssm_models.checkpoints import load_checkpoint, save_checkpoint
from ssm_models.registry import LONGEST_SIDE, instantiate

FORMAT = "prunefront.bundle"
VERSION = 1
MANIFEST = "bundle.json"
WEIGHTS, SCHEDULE, PREPROCESSING, CONFIG, CARD = (
    "model.safetensors",
    "schedule.json",
    "preprocessing.json",
    "config.json",
    "README.md",
)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")  # Pillow's
CROP_MODES = ("center", "squash", "border")  # timm's
_MOST_CROP = 10.0
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextmanager
def building(directory: str | Path) -> Iterator[Path]:
    """Yield a folder to fill. On success it gets its digests and appears whole as `directory`.

    Raises:
        ExportError: `directory` holds something other than an older bundle, which is replaced, or cannot be written.
    """
    target = Path(directory).resolve()
    check_replaceable(target)
    folder = target.with_name(f".{target.name[:40]}.{uuid4().hex[:8]}.part")
    with _writing(directory):
        folder.mkdir()
        try:
            yield folder
            _write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, "files": _digests(folder)})
            check_replaceable(target)
            _put(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what is left there: nothing, or the older bundle


@contextmanager
def _writing(directory: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(f"bundle {directory}: cannot be written: {error.strerror or error}") from None


def _put(folder: Path, target: Path) -> None:
    """Rename a folder to `target`; an older folder of that name is swapped with it."""
    if not target.exists():
        folder.replace(target)
    elif not _exchanged(folder, target):
        old = folder.with_suffix(".old")
        target.replace(old)
        try:
            folder.replace(target)
        except OSError:
            old.replace(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Swap the names of two folders atomically. Return False, with nothing changed, where the system cannot."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "renameat2"):  # Linux alone has it
        return False
    done: int = libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return done == 0


def write_parts(folder: Path, model: PrunableModel, schedule: Mapping[str, Any]) -> None:
    """Write weights, schedule, preprocessing and timm's configuration into the folder that `building` yields.

    Args:
        folder: the one that `building` yields.
        model: with its weights and its schedule.
        schedule: the JSON form of that schedule, with whatever else `export` writes beside it.

    Raises:
        CheckpointError: the weights cannot be written.
    """
    height, width = model.img_size
    assert PruningSchedule.from_dict(dict(schedule)) == model.schedule
    save_checkpoint(model, folder / WEIGHTS, {"model": model.model_name, "img_size": json.dumps([height, width])})
    _write_json(folder / SCHEDULE, schedule)
    _write_json(folder / PREPROCESSING, model.pretrained_cfg)
    sizes = {"num_classes": model.num_classes, "img_size": [height, width]}
    if model.in_chans != PrunableModel.in_chans:
        sizes["in_chans"] = model.in_chans
    _write_json(
        folder / CONFIG,
        {
            "architecture": model.model_name,
            "num_classes": model.num_classes,
            "model_args": {**sizes, "schedule": model.schedule.text},
            "pretrained_cfg": {name: value for name, value in model.pretrained_cfg.items() if name != "architecture"},
        },
    )


def load_bundle(directory: str | Path) -> PrunableModel:
    """Return the model of a bundle with its weights and its schedule, in evaluation mode.

    `model.pretrained_cfg` says how to prepare images.

    Raises:
        ExportError: the folder is not a bundle, or a file is missing, damaged or of another format.
        ScheduleError, UnknownNameError, CheckpointError: the parts do not fit one another, or this version.

    >>> import tempfile, ssm_models
    >>> model = ssm_models.build("vim_nano")
    >>> model.set_schedule(PruningSchedule.parse("4:0.7"))
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with building(f"{parent}/bundle") as folder:
    ...         write_parts(folder, model, model.schedule.as_dict())
    ...     load_bundle(f"{parent}/bundle").schedule.text
    '4:0.7'
    """
    folder = Path(directory)
    check_bundle(folder)
    config = read_object(folder / CONFIG, ExportError)
    args = config.get("model_args")
    name = config.get("architecture")
    if not isinstance(name, str) or not isinstance(args, dict):
        raise ExportError(f"bundle {folder}: {CONFIG} names no architecture and model_args")
    height, width = _sides(args.get("img_size"), folder)
    classes = args.get("num_classes")
    if type(classes) is not int or not 0 < classes <= 1_000_000:
        raise ExportError(f"bundle {folder}: {CONFIG}: num_classes is {classes!r}")
    channels = args.get("in_chans", PrunableModel.in_chans)
    if type(channels) is not int or not 0 < channels <= 10_000:
        raise ExportError(f"bundle {folder}: {CONFIG}: in_chans is {channels!r}")
    model = instantiate(name, classes, (height, width), in_chans=channels)
    load_checkpoint(model, folder / WEIGHTS)
    model.set_schedule(PruningSchedule.from_file(folder / SCHEDULE))
    model.pretrained_cfg = _preprocessing(folder)
    return model.eval()


def check_bundle(folder: Path) -> None:
    """Compare every file with its digest.

    Raises:
        ExportError: the folder is not a bundle, the bundle is newer than this version, or a file is missing or
        changed.
    """
    if not is_file(folder / MANIFEST):
        raise ExportError(f"bundle {folder}: no {MANIFEST} in it: not a bundle, or not a whole one")
    files = _files(read_object(folder / MANIFEST, ExportError), folder)
    for needed in (WEIGHTS, SCHEDULE, PREPROCESSING, CONFIG):
        if needed not in files:
            raise ExportError(f"bundle {folder}: {MANIFEST} does not list {needed}")
    for name, digest in files.items():
        if name == CARD:
            continue
        path = folder / name
        if not is_file(path):
            raise ExportError(f"bundle {folder}: {name} is missing")
        if _sha256(path) != digest:
            raise ExportError(f"bundle {folder}: {name} is not what was written: its SHA-256 differs")


def _files(manifest: Mapping[str, Any], folder: Path) -> dict[str, str]:
    if manifest.get("format") != FORMAT:
        raise ExportError(f"bundle {folder}: format is {manifest.get('format')!r}, expected {FORMAT!r}")
    version = manifest.get("version")
    if type(version) is not int or version < 1:
        raise ExportError(f"bundle {folder}: version is {version!r}, expected {VERSION}")
    if version > VERSION:
        raise ExportError(f"bundle {folder}: version {version} is newer than {VERSION}; upgrade prunefront")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise ExportError(f"bundle {folder}: {MANIFEST} lists no files")
    for name in files:
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ExportError(f"bundle {folder}: {MANIFEST} lists {name!r}, which is not the name of a file in it")
    return files


def check_replaceable(directory: str | Path) -> None:
    """Raise an ExportError if replacing `directory` by a bundle would lose anything."""
    with _writing(directory):
        _check_replaceable(Path(directory).resolve())


def _check_replaceable(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ExportError(f"bundle {target}: is a file; name a folder")
    found = {path.name for path in target.iterdir()}
    if not found:
        return
    files = _files(read_object(target / MANIFEST, ExportError), target) if MANIFEST in found else {}
    if others := sorted(found - files.keys() - ({MANIFEST, CARD} if files else set())):
        raise ExportError(f"bundle {target}: holds {others[0]!r}, which is of no bundle; name a new folder")
    if CARD in found and files.get(CARD, "") != _sha256(target / CARD):
        raise ExportError(f"bundle {target}: its {CARD} was edited; move it away, or name a new folder")


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Return timm's `pretrained_cfg` of a bundle; ExportError if images could not be prepared by it."""
    given = read_object(folder / PREPROCESSING, ExportError)
    checks: dict[str, Callable[[Any], bool]] = {
        "mean": lambda value: _three(value, -math.inf),
        "std": lambda value: _three(value, 0.0),
        "interpolation": lambda value: value in INTERPOLATIONS,
        "crop_pct": lambda value: _finite(value) and 0 < value <= _MOST_CROP,
        "crop_mode": lambda value: value in CROP_MODES,
    }
    needed = ("mean", "std")
    for name, fits in checks.items():
        if not (fits(given[name]) if name in given else name not in needed):
            raise ExportError(f"bundle {folder}: {PREPROCESSING}: {name} is {given.get(name)!r}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def _three(value: object, above: float) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_finite(one) and one > above for one in value)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6  # no NaN either


def _sides(size: object, folder: Path) -> tuple[int, int]:
    if (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and 0 < side <= LONGEST_SIDE for side in size)
    ):
        return size[0], size[1]
    raise ExportError(f"bundle {folder}: {CONFIG}: img_size is {size!r}, expected [height, width]")


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: _sha256(path) for path in sorted(folder.iterdir())}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
