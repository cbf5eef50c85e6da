"""The settings of a training: what decides the weights that come out."""

import hashlib
import math
from dataclasses import dataclass

import torch

from spaces.errors import UnknownNameError, UsageError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """Settings of a training; the defaults train a small model from scratch.

    Attributes:
        epochs: passes over the training images.
        seed: of the order and the augmentation of images and of everything random in the model.
        lr: learning rate at its highest, for AdamW.
        batch_size: images in a step.
        weight_decay: for all weights but norms, biases and those of `search.training.checkpoint.NO_DECAY`.
        warmup: share of all steps over which the learning rate rises; after it, it falls as a cosine.
        label_smoothing: share of a label that is spread over all classes.
        clip: largest norm of a step's gradient; 0 for none.
        ema: decay of the moving average of the weights, which is what is kept; 0 for none.
        mixup: strength of mixing pairs of images, as timm's; 0 for none. So is `cutmix`.
        cutmix: strength of pasting parts of images into others.
        amp: the precision of matrix products in the forward pass, a name of `PRECISIONS`: fp32, or bf16 or fp16
            by torch's autocast; the weights stay fp32, and fp16 scales its loss.

    Raises:
        UsageError: a value that makes no sense.
    """

    epochs: int
    seed: int = 0
    lr: float = 2e-3
    batch_size: int = 64
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    clip: float = 1.0
    ema: float = 0.995
    mixup: float = 0.0
    cutmix: float = 0.0
    amp: str = "fp32"

    def __post_init__(self) -> None:
        bounds = {
            "epochs": (1, 1_000_000),
            "seed": (0, 2**63 - 1),
            "lr": (0.0, 1e3),
            "batch_size": (1, 1_000_000),
            "weight_decay": (0.0, 10.0),
            "warmup": (0.0, 1.0),
            "label_smoothing": (0.0, 0.99),
            "clip": (0.0, 1e9),
            "ema": (0.0, 0.999999),
            "mixup": (0.0, 100.0),
            "cutmix": (0.0, 100.0),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:  # also false for NaN
                raise UsageError(f"{name}={getattr(self, name)!r}: expected a value from {low:g} to {high:g}")
        if self.amp not in PRECISIONS:
            raise UnknownNameError("precision", self.amp, PRECISIONS)


@dataclass(frozen=True)
class Pace:
    """How a training is run: nothing of it changes the weights that come out, but for rounding and batch norms.

    Attributes:
        accumulate: parts that a step's images are run in, one after the other, where memory is short.
        eval_every: epochs from one look at val to the next; the last epoch is always looked at.
        until: stop after so many of the recipe's epochs, to go on another time; None for all.

    Raises:
        UsageError: a value below 1.
    """

    accumulate: int = 1
    eval_every: int = 1
    until: int | None = None

    def __post_init__(self) -> None:
        for name in ("accumulate", "eval_every", "until"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: expected at least 1")

    def last(self, recipe: Recipe) -> int:
        """Return the epoch, from 1, that it stops after."""
        return recipe.epochs if self.until is None else min(self.until, recipe.epochs)

    def looks(self, epoch: int, recipe: Recipe) -> bool:
        """Whether val is looked at after epoch `epoch`, from 1."""
        return epoch % self.eval_every == 0 or epoch == self.last(recipe)


def learning_rate(step: int, total: int, recipe: Recipe) -> float:
    """Return the rate of a step from 0: a rise over `warmup`, then a cosine to a hundredth of the highest."""
    rising = recipe.warmup * total
    if step < rising:
        return recipe.lr * (step + 1) / (rising + 1)
    progress = (step - rising) / max(1.0, total - rising)
    return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch, unlike that of any other epoch or seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}".encode()).digest()[:7])
