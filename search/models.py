"""What is searched or evaluated: a model with its weights, on images of the same classes."""

from typing import TYPE_CHECKING

import ssm_models
from search.data.dataset import ImageData
from search.runtime.fingerprint import software
from ssm_models import PrunableModel
from ssm_models.checkpoints import RANDOM, trained_classes

if TYPE_CHECKING:
    from search.data.image_set import ImageSet


def open_model(name: str, checkpoint: str | None, data: ImageData) -> PrunableModel:
    """Build a model with the weights that the user asked for, for the classes of `data`.

    Args:
        name: registered name.
        checkpoint: file, `random`, or None for the weights that the package ships.
        data: gives the number of classes of random weights, and must have those of the others.

    Raises:
        UnknownNameError, UsageError: no such model, or it ships no weights.
        CheckpointError: weights that cannot be read or belong to another model.
        DataError: the classes differ in number, one is known to be another output, or the data is for another task.
    """
    classes = data.num_classes if checkpoint == RANDOM else None
    model = ssm_models.build(name, checkpoint, num_classes=classes)
    data.check_model(model)
    trained = trained_classes(name, checkpoint) if checkpoint != RANDOM else None
    data.check_order(trained or [], str(checkpoint or f"the weights of {name}"))
    return model


def evaluation_fingerprint(model: PrunableModel, data: ImageData, confirm: "ImageSet") -> dict[str, str]:
    """Return what a worker must share with the driver: versions, and digests of weights and images.

    Args:
        model: as it was opened.
        data: whose `val` candidates are evaluated on.
        confirm: what the front is confirmed on; its split counts if it has images.
    """
    splits = ["val", *([confirm.split] if confirm.images and confirm.split != "val" else [])]
    images = {f"data ({split})": data.digest(split) for split in splits}
    return {**software(), "weights": ssm_models.weights_digest(model), **images}


def training_fingerprint(model: PrunableModel, data: ImageData) -> dict[str, str]:
    """Return what a worker must share with the driver: versions, and digests of weights and images."""
    images = {f"data ({split})": data.digest(split) for split in ("train", "val")}
    return {**software(), "weights": ssm_models.weights_digest(model), **images}
