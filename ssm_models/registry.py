"""The registered models: their names, sizes, preprocessing and shipped weights."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from spaces.errors import UnknownNameError, UsageError
from ssm_models.base import PrunableModel

WEIGHTS = Path(__file__).parent / "weights"
LONGEST_SIDE = 4096  # pixels; the tokens of larger images would exhaust memory first


@dataclass(frozen=True)
class ModelInfo:
    """A model's name, its sizes, and the preprocessing it expects.

    Attributes:
        family: the class; called with (config, name, num_classes, img_size) and the options of `instantiate`.
        config: the family's own sizes, a dataclass with `drop_path` among them.
        img_size: pixels of a side, unless asked otherwise.
        mean, std, interpolation, crop_pct: preprocessing, with timm's meanings.
        description: a few words for `prunefront models`.
        authors: where the authors' weights are on the Hugging Face hub (`hf:OWNER/REPO/FILE`), if they are.
    """

    name: str
    family: type[PrunableModel]
    config: Any
    img_size: int = 224
    num_classes: int = 1000
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    description: str = ""
    authors: str | None = None

    @property
    def weights(self) -> Path | None:
        """The weights that come with the package, if any."""
        path = WEIGHTS / f"{self.name}.safetensors"
        return path if path.exists() else None

    def pretrained_cfg(self, img_size: tuple[int, int], num_classes: int) -> dict[str, Any]:
        """Return the preprocessing in timm's terms, for images of (height, width) pixels."""
        return {
            "architecture": self.name,
            "input_size": (3, *img_size),
            "num_classes": num_classes,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
        }


_MODELS: dict[str, ModelInfo] = {}


def register(info: ModelInfo) -> None:
    """Make a model known by its name. `timm_models.register_models` makes it known to timm."""
    _MODELS[info.name] = info


def list_models() -> list[str]:
    """Return the names of all models, sorted.

    >>> import ssm_models
    >>> [name for name in ssm_models.list_models() if name.startswith("vim_small")]
    ['vim_small', 'vim_small_stride8']
    """
    return sorted(_MODELS)


def model_info(name: str) -> ModelInfo:
    """Return the registration of a model.

    Raises:
        UnknownNameError: there is no model of that name; the message suggests similar ones.

    >>> info = model_info("vim_nano")
    >>> info.img_size, info.num_classes, info.weights is not None
    (28, 10, True)
    """
    if name not in _MODELS:
        raise UnknownNameError("model", name, _MODELS, _advice(name))
    return _MODELS[name]


def _advice(name: str) -> str:
    from timm.models import is_model

    families = "vision state-space models (Vim, PlainMamba, VMamba, VSSD, GroupMamba, ViM2); see `prunefront models`"
    if is_model(name):
        return (
            f"it is a model of timm, but prunefront prunes only {families}. For vision transformers there are "
            "ToMe and DiffRate"
        )
    return f"prunefront prunes {families}"


def shipped_weights(info: ModelInfo) -> Path:
    """Return the weights that come with the package.

    Raises:
        UsageError: none do.
    """
    if info.weights is None:
        raise UsageError(f"model {info.name!r} ships no weights: give --checkpoint FILE, or --checkpoint random")
    return info.weights


def authors_weights(info: ModelInfo) -> str:
    """Return where the authors' weights of a model are on the Hugging Face hub.

    Raises:
        UsageError: they are not there.

    >>> authors_weights(model_info("plain_mamba_l3"))
    'hf:ChenhongyiYang/PlainMamba/l3.pth'
    """
    if info.authors is None:
        raise UsageError(
            f"model {info.name!r}: its authors have no weights on the hub that we know of; see docs/models.md"
        )
    return info.authors


def instantiate(
    name: str,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    drop_path_rate: float | None = None,
    *,
    drop_rate: float = 0.0,
    global_pool: str | None = None,
    features_only: bool = False,
    **options: Any,
) -> PrunableModel:
    """Build a model with random weights, dense and in training mode; `ssm_models.create_model` is what users call.

    Args:
        name: one of `list_models()`.
        num_classes: outputs; the model's own number (1000 for ImageNet's) if not given; 0 for features (b, width).
        img_size: pixels, (height, width) or one number; the model's own size if not given.
        drop_path_rate: highest rate of dropping a block's change in training; the authors' if not given.
        drop_rate: of dropout before the head of a classifier.
        global_pool, features_only: of timm; the model's own, or refused.
        **options: passed to the family, such as `in_chans`.

    Raises:
        UnknownNameError: there is no model of that name.
        UsageError: the images are too small for the model, or larger than `LONGEST_SIDE` pixels a side; or an option
            makes no sense, or is not one of the family.

    >>> model = instantiate("vim_nano", num_classes=7, img_size=(32, 64))
    >>> model.layout.stages[0].tokens  # patches of 4 pixels
    128
    """
    info = model_info(name)
    height, width = sides_of(info.img_size if img_size is None else img_size)
    classes = info.num_classes if num_classes is None else num_classes
    if not _whole(classes, 1 if info.family.task == "segmentation" else 0):
        raise UsageError(f"{name}: num_classes is {classes!r}, expected a number of classes, or 0 for features")
    if not 0 <= drop_rate < 1 or (drop_rate and info.family.task == "segmentation"):
        raise UsageError(f"{name}: drop_rate is {drop_rate!r}, expected a rate from 0 to below 1, of a classifier")
    if features_only:
        raise UsageError(f"{name}: features_only is not supported; forward_features gives the last tokens")
    if drop_path_rate is not None and not 0 <= drop_path_rate < 1:
        raise UsageError(f"{name}: drop_path_rate is {drop_path_rate!r}, expected a rate from 0 to below 1")
    if not _whole(options.get("in_chans", 1), 1):
        raise UsageError(f"{name}: in_chans is {options['in_chans']!r}, expected a number of at least 1")
    family: Callable[..., PrunableModel] = info.family
    _check_options(info, options)
    config = info.config if drop_path_rate is None else replace(info.config, drop_path=drop_path_rate)
    try:
        model = family(config, name, classes or 1, (height, width), **options)
    except ValueError as error:
        raise UsageError(str(error)) from None
    model.check_pool(global_pool)
    model.drop_rate = drop_rate
    if classes == 0:
        model.reset_classifier(0)
    model.in_chans = options.get("in_chans", model.in_chans)
    model.pretrained_cfg = info.pretrained_cfg((height, width), classes)
    model.pretrained_cfg["input_size"] = (model.in_chans, height, width)
    return model


def sides_of(img_size: object) -> tuple[int, int]:
    """Return the (height, width) in pixels of an image size, which is that or one number for both.

    Raises:
        UsageError: it is neither, or a side is larger than `LONGEST_SIDE`.

    >>> sides_of(224), sides_of([32, 72])
    ((224, 224), (32, 72))
    """
    sides: list[Any] = list(img_size) if isinstance(img_size, list | tuple) else [img_size, img_size]
    if len(sides) != 2 or not all(_whole(side, 1) for side in sides):
        raise UsageError(f"img_size is {img_size!r}, expected pixels such as 224, or (height, width)")
    height, width = (int(side) for side in sides)
    if max(height, width) > LONGEST_SIDE:
        raise UsageError(f"images of {height}×{width} pixels: at most {LONGEST_SIDE:,} a side; cut them into tiles")
    return height, width


def _whole(value: Any, least: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def _check_options(info: ModelInfo, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(info.family).parameters.values()
    known = [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            known = ["num_classes", "img_size", "drop_path_rate", "drop_rate", "global_pool", *known]
            raise UnknownNameError(f"option of {info.name}:", option, dict.fromkeys(known))
