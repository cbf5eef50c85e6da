"""The settings of a training that decide the resulting weights, and the learning rates and seeds they imply."""

import hashlib
import math
from dataclasses import dataclass

import torch

from spaces.errors import UnknownNameError, UsageError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training. The defaults train a small model from scratch.

    Attributes:
        epochs: passes over the train split.
        seed: of the image order, the augmentation and everything random in the model.
        lr: peak learning rate of AdamW.
        batch_size: images per optimiser step.
        weight_decay: for all weights except norms, biases and those in `search.training.checkpoint.NO_DECAY`.
        warmup: share of all steps over which the learning rate rises linearly; then it falls as a cosine.
        label_smoothing: share of a label that is spread over all classes.
        clip: maximum norm of a step's gradient; 0 disables clipping.
        ema: decay of the moving average of the weights, which is then what is kept; 0 disables it.
        mixup: alpha of timm's mixup; 0 disables it.
        cutmix: alpha of timm's cutmix; 0 disables it.
        amp: precision of the forward pass, a key of `PRECISIONS`: fp32, or bf16 or fp16 through torch's autocast.
            Weights stay fp32; fp16 uses loss scaling.

    Raises:
        UsageError: a value is out of range.

    >>> Recipe(epochs=10, lr=1e-3).batch_size
    64
    >>> Recipe(epochs=0)
    Traceback (most recent call last):
    spaces.errors.UsageError: epochs=0: expected a value from 1 to 1e+06
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


def learning_rate(step: int, total: int, recipe: Recipe) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine down to a hundredth of the peak.

    The cosine is that of SGDR without restarts (Loshchilov and Hutter, arXiv:1608.03983).

    Args:
        step: number of the optimiser step, from 0.
        total: steps of the whole training.
        recipe: gives `lr` and `warmup`.

    >>> recipe = Recipe(epochs=1, lr=1.0, warmup=0.1)
    >>> [round(learning_rate(step, 100, recipe), 3) for step in (0, 9, 10, 55, 99)]
    [0.091, 0.909, 1.0, 0.505, 0.01]
    """
    rising = recipe.warmup * total
    if step < rising:
        return recipe.lr * (step + 1) / (rising + 1)
    progress = (step - rising) / max(1.0, total - rising)
    return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch: the first 56 bits of a hash, so that seeds and epochs do not share streams."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}".encode()).digest()[:7])
