"""Models as timm creates them: every one under its own name in timm, with the weights that `pretrained` asks for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import register_model

from spaces import PruningSchedule
from spaces.paths import is_folder
from ssm_models import bundle
from ssm_models.base import PrunableModel
from ssm_models.checkpoints import load_checkpoint
from ssm_models.registry import ModelInfo, instantiate, list_models, model_info, shipped_weights

_REGISTERED = set[str]()


def register_models() -> None:
    """Make every model of the registry known to timm; those that timm has already are left alone."""
    for name in list_models():
        if name not in _REGISTERED:
            _register(model_info(name))
            _REGISTERED.add(name)


def create_model(
    name: str,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    *,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    schedule: PruningSchedule | str | None = None,
    **options: Any,
) -> PrunableModel:
    """Build a model as `timm.create_model` does: in training mode, with random weights unless `pretrained`.

    Args:
        name: one of `list_models()`.
        num_classes: outputs; the model's own number (1000 for ImageNet's) if not given; 0 for features (b, width).
        img_size: pixels, (height, width) or one number; the model's own size if not given.
        pretrained: load the weights of the file that the configuration names, or those that the package ships.
        pretrained_cfg, pretrained_cfg_overlay: timm's: `file`, a file of weights or the folder of a bundle, and the
            preprocessing `mean`, `std`, `interpolation` and `crop_pct`. What else they hold is not used.
        schedule: what the model obeys, or its text; dense if not given.
        options: `drop_path_rate`, `drop_rate`, `global_pool`, `in_chans` and the family's own; see
            `registry.instantiate`. timm's `cache_dir` and `pretrained_model_args` have no effect.

    Raises:
        UnknownNameError: there is no model of that name.
        UsageError: an option makes no sense, or the model ships no weights and no file is named.
        CheckpointError: the weights cannot be read, or belong to another model.
        ScheduleError: the schedule does not fit the model.

    >>> model = create_model("vim_nano", pretrained=True, schedule="4:0.7,8:0.5")
    >>> model.schedule.text, model.num_classes
    ('4:0.7,8:0.5', 10)
    """
    info = model_info(name)
    for ignored in ("cache_dir", "pretrained_model_args"):
        options.pop(ignored, None)
    model = instantiate(name, num_classes, img_size, **options)
    model.set_schedule(schedule)
    named = {**(pretrained_cfg if isinstance(pretrained_cfg, dict) else {}), **(pretrained_cfg_overlay or {})}
    given = {key: named[key] for key in ("mean", "std", "interpolation", "crop_pct") if key in named}
    model.pretrained_cfg |= {key: tuple(x) if isinstance(x, list) else x for key, x in given.items()}
    if pretrained:
        load_checkpoint(model, weights_file(info, named.get("file")), new_head=True)
    return model


def _register(info: ModelInfo) -> None:
    def entry(pretrained: bool = False, **options: Any) -> PrunableModel:
        return create_model(info.name, pretrained=pretrained, **options)

    # timm files an entry point under its function's name and module.
    entry.__name__ = entry.__qualname__ = info.name
    entry.__module__ = info.family.__module__
    entry.__doc__ = info.description
    register_model(entry)


def weights_file(info: ModelInfo, named: str | None = None) -> Path:
    """Return the file with a model's weights: the one that timm's `file` names, or the shipped one.

    Args:
        info: the model.
        named: a file, or the folder of a bundle, whose digests are checked; None is the shipped weights.

    Raises:
        UsageError: no file is named, and the model ships no weights.
        ExportError: the folder is not a bundle, or is damaged.
    """
    if named is None:
        return shipped_weights(info)
    path = Path(named)
    if not is_folder(path):
        return path
    bundle.check_bundle(path)
    return path / bundle.WEIGHTS
