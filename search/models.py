"""Opening models for a data set, and the fingerprints by which drivers and workers compare what they opened."""

from typing import TYPE_CHECKING

import ssm_models
from search.data.dataset import ImageData
from search.runtime.fingerprint import software
from ssm_models import PrunableModel
from ssm_models.checkpoints import RANDOM, build_with_metadata, trained_classes

if TYPE_CHECKING:
    from search.data.image_set import ImageSet


def open_model(
    name: str, checkpoint: str | None, data: ImageData, img_size: tuple[int, int] | None = None
) -> PrunableModel:
    """Build a model with the given weights for the classes of a data set, in evaluation mode.

    Args:
        name: name of a registered model.
        checkpoint: a file; `random`; or None for the weights that the package ships.
        data: gives the number of classes of random weights, and must have the classes of all others. Their order is
            settled by the weights if it was open.
        img_size: (height, width) of the images in pixels; None is what the weights or the model say.

    Raises:
        UnknownNameError, UsageError: there is no such model, or it ships no weights.
        CheckpointError: the weights cannot be read, or belong to another model.
        DataError: number or order of the classes differ, or the data is for another task.
    """
    classes = data.num_classes if checkpoint == RANDOM else None
    model, metadata = build_with_metadata(name, checkpoint, num_classes=classes, img_size=img_size)
    data.check_model(model)
    weights = None if checkpoint == RANDOM else str(checkpoint or f"the weights of {name}")
    data.settle_order(trained_classes(metadata), weights)
    return model


def evaluation_fingerprint(model: PrunableModel, data: ImageData, confirm: "ImageSet") -> dict[str, str]:
    """Return what a worker of a search must have in common with its driver: versions, weights and images, as digests.

    Args:
        model: with the weights that candidates are evaluated with.
        data: candidates are evaluated on its split val.
        confirm: the images for confirming the front; their split is included if there are any.
    """
    splits = ["val", *([confirm.split] if confirm.images and confirm.split != "val" else [])]
    images = {f"data ({split})": data.digest(split) for split in splits}
    return {**software(), "weights": ssm_models.weights_digest(model), **images}


def training_fingerprint(model: PrunableModel, data: ImageData, scored: str = "val") -> dict[str, str]:
    """Return what a worker of a training must have in common with its driver; see `evaluation_fingerprint`.

    `scored` is the split that the model is scored on.
    """
    images = {f"data ({split})": data.digest(split) for split in ("train", scored)}
    return {**software(), "weights": ssm_models.weights_digest(model), **images}
