"""Every model under its own name in timm, with the weights that timm's `pretrained` asks for."""

from pathlib import Path
from typing import Any

from timm.models import register_model

from spaces import PruningSchedule
from spaces.paths import is_folder
from ssm_models import bundle
from ssm_models.base import PrunableModel
from ssm_models.checkpoints import load_checkpoint
from ssm_models.registry import ModelInfo, create_model, list_models, model_info, shipped_weights

_REGISTERED = set[str]()


def register_models() -> None:
    """Make every model of the registry known to timm; those that timm has already are left alone."""
    for name in list_models():
        if name not in _REGISTERED:
            _register(model_info(name))
            _REGISTERED.add(name)


def _register(info: ModelInfo) -> None:
    def entry(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        schedule: str = "",
        **options: Any,
    ) -> PrunableModel:
        for ignored in ("cache_dir", "pretrained_model_args"):
            options.pop(ignored, None)
        model = create_model(info.name, **options)
        model.set_schedule(PruningSchedule.parse(schedule))
        named = {**(pretrained_cfg if isinstance(pretrained_cfg, dict) else {}), **(pretrained_cfg_overlay or {})}
        given = {key: named[key] for key in ("mean", "std", "interpolation", "crop_pct") if key in named}
        model.pretrained_cfg |= {key: tuple(x) if isinstance(x, list) else x for key, x in given.items()}
        if pretrained:
            load_checkpoint(model, weights_file(info, named.get("file")), new_head=True)
        return model

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
