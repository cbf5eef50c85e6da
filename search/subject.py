"""What is searched or evaluated: a model with its weights, on images of the same classes."""

import ssm_models
from search.data import ImageData
from ssm_models import PrunableModel
from ssm_models.checkpoints import RANDOM


def open_model(name: str, checkpoint: str | None, data: ImageData) -> PrunableModel:
    """Build a model with the weights that the user asked for, for the classes of `data`.

    Args:
        name: registered name.
        checkpoint: file, `random`, or None for the weights that the package ships.
        data: gives the number of classes of random weights, and must have those of the others.

    Raises:
        UnknownNameError, UsageError: no such model, or it ships no weights.
        CheckpointError: weights that cannot be read or belong to another model.
        DataError: the classes differ in number.
    """
    classes = data.num_classes if checkpoint == RANDOM else None
    model = ssm_models.build(name, checkpoint, num_classes=classes)
    data.check_classes(model.num_classes, name)
    return model
