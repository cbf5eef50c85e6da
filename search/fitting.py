"""The one training loop, for training from scratch and for fine-tuning alike.

Every epoch draws its randomness from its own seed, so a run that was killed goes on from its last
epoch as if nothing had happened: the same weights come out, to the last bit, on the same machine.
"""

import hashlib
import io
import json
import math
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.optim._param_groups import param_groups_weight_decay
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from results.export import write_whole
from search.augment import TrainingBatches
from search.data import Batches, ImageData, Preprocessing
from search.epoch_log import TrainingLog
from spaces.errors import CheckpointError, TrainingError, UsageError
from ssm_models import PrunableModel, weights_digest

CHECKPOINT = "last.pt"
# The state-space model's own dynamics and the places of tokens must not be pulled towards zero.
NO_DECAY = ("*A_log*", "*A_b_log*", "*pos_embed*", "*cls_token*", "*direction_Bs*")

Loss = Callable[[PrunableModel, Tensor, Tensor], Tensor]
"""(model, images, targets: labels (B,) or shares of classes (B, C)) → the loss of the batch, a scalar."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training; the defaults train a small model from scratch.

    Attributes:
        epochs: passes over the training images.
        seed: of the order and the augmentation of images and of everything random in the model.
        lr: learning rate at its highest, for AdamW.
        batch_size: images in a step.
        weight_decay: for all weights but norms, biases and those of `NO_DECAY`.
        warmup: share of all steps over which the learning rate rises; after it, it falls as a cosine.
        label_smoothing: share of a label that is spread over all classes.
        clip: largest norm of a step's gradient; 0 for none.
        ema: decay of the moving average of the weights, which is what is kept; 0 for none.
        mixup: strength of mixing pairs of images, as timm's; 0 for none. So is `cutmix`.
        cutmix: strength of pasting parts of images into others.

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

    def __post_init__(self) -> None:
        bounds = {
            "epochs": (1, 1_000_000),
            "seed": (0, 2**63 - 1),
            "lr": (0.0, 1e3),
            "batch_size": (1, 1_000_000),
            "weight_decay": (0.0, 10.0),
            "warmup": (0.0, 1.0),
            "label_smoothing": (0.0, 0.99),
            "clip": (0.0, math.inf),
            "ema": (0.0, 0.999999),
            "mixup": (0.0, 100.0),
            "cutmix": (0.0, 100.0),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:  # also false for NaN
                raise UsageError(f"{name}={getattr(self, name)!r}: expected a value from {low:g} to {high:g}")


@dataclass(frozen=True)
class FitResult:
    """What `fit` leaves behind, beside the trained weights in the model it was given.

    Attributes:
        top1: accuracy in 0..1 on the val images looked at, after the last epoch.
        loss: mean cross-entropy on them.
        images: how many they are.
        best_top1: the highest accuracy after any epoch.
        best_epoch: which epoch that was, from 1.
        seconds: time spent, over all runs if it was resumed.
        curve: an object an epoch: epoch, train_loss, top1, loss, lr, seconds.
    """

    top1: float
    loss: float
    images: int
    best_top1: float
    best_epoch: int
    seconds: float
    curve: list[dict[str, Any]]


def fit(
    model: PrunableModel,
    loss: Loss,
    data: ImageData,
    recipe: Recipe,
    *,
    out: Path,
    identity: Mapping[str, Any],
    resume: bool,
    device: str | torch.device | None,
    log: TrainingLog | None,
    val_images: int | None = None,
) -> FitResult:
    """Minimise `loss` over the train split and leave the trained weights in `model`, on the CPU.

    Args:
        model: changed in place; what it is set to (a schedule) stays as it is.
        loss: see `Loss`; called on the device.
        data: with the splits train and val.
        recipe: the settings.
        out: the folder for the checkpoint of each epoch.
        identity: what, beside model, data and recipe, must be the same for a run to be resumed.
        resume: go on from a checkpoint where there is one.
        device: cuda where there is one if None.
        log: told how far it is.
        val_images: how many of the val split are looked at after each epoch; None for all.

    Raises:
        UsageError, DataError, TrainingError, CheckpointError: as `train_model`; the checkpoint is broken.
    """
    where = best_device(device)
    preprocessing = Preprocessing(model.pretrained_cfg, model.img_size)
    train = TrainingBatches(data, preprocessing, recipe.batch_size)
    val = data.batches(model.pretrained_cfg, model.img_size, images=val_images)
    whole_identity = {
        "model": model.model_name,
        "img_size": list(model.img_size),
        "data": data.digest("train"),
        "weights": weights_digest(model),
        "val_images": val.images,
        **asdict(recipe),
        **identity,
    }
    for batches in (val, train.epoch(0)):
        next(iter(batches))  # what fits in memory is read now: a broken image is found before anything is written
    _make_folder(out)
    model.to(where)
    optimiser = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.lr)
    ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
    mix = _mixer(recipe, train.batch_size, data.num_classes)
    curve = _restore(out / CHECKPOINT, whole_identity, model, ema, optimiser, where) if resume else []
    if log:
        log.start(recipe.epochs, len(train), len(curve))

    total = recipe.epochs * len(train)
    for epoch in range(len(curve), recipe.epochs):
        began = time.perf_counter()
        seed = epoch_seed(recipe.seed, epoch)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # timm's Mixup draws from it
        model.train()
        losses = 0.0
        for index, (images, labels) in enumerate(train.epoch(seed)):
            step = epoch * len(train) + index
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, total, recipe)
            inputs, targets = images.to(where), labels.to(where)
            if mix is not None:
                inputs, targets = mix(inputs, targets)
            value = loss(model, inputs, targets)
            optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip or math.inf)
            if not (math.isfinite(number := value.item()) and math.isfinite(norm.item())):
                raise TrainingError(
                    f"epoch {epoch + 1}, batch {index + 1}: the loss ({number:g}) or its gradient "
                    f"({norm.item():g}) is not finite; start again in another folder, with a learning rate "
                    f"below {recipe.lr:g}"
                )
            optimiser.step()
            if ema is not None:
                ema.update(model, step=step + 1)
            losses += number
            if log:
                log.batch(epoch + 1, number)
        top1, val_loss = accuracy(ema.module if ema is not None else model, val, where)
        row = {"epoch": epoch + 1, "train_loss": losses / len(train), "top1": top1, "loss": val_loss}
        lr = optimiser.param_groups[0]["lr"]
        curve.append({**row, "lr": lr, "seconds": time.perf_counter() - began})
        _keep(out / CHECKPOINT, whole_identity, model, ema, optimiser, curve)
        if log:
            log.epoch(curve[-1])
    if ema is not None:
        model.load_state_dict(ema.module.state_dict())
    model.to("cpu").eval()
    best = max(curve, key=lambda line: line["top1"])
    last = curve[-1]
    seconds = sum(line["seconds"] for line in curve)
    return FitResult(last["top1"], last["loss"], val.images, best["top1"], best["epoch"], seconds, curve)


@torch.inference_mode()
def accuracy(model: PrunableModel, batches: Batches, device: torch.device) -> tuple[float, float]:
    """Return (top-1 in 0..1, mean cross-entropy) over the batches, in evaluation mode."""
    model.eval()
    right, loss = 0, 0.0
    for images, labels in batches:
        logits, targets = model(images.to(device)).float(), labels.to(device)
        right += int((logits.argmax(1) == targets).sum())
        loss += float(F.cross_entropy(logits, targets, reduction="sum"))
    return right / batches.images, loss / batches.images


def best_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for; cuda where there is one if None."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def parameter_groups(model: PrunableModel, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimiser's groups: without decay (norms, biases, `NO_DECAY`), then with it."""
    groups: list[dict[str, Any]] = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=NO_DECAY)
    return groups


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


def _mixer(recipe: Recipe, batch_size: int, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    if not (recipe.mixup or recipe.cutmix):
        return None
    if batch_size % 2:
        raise UsageError(f"batch_size={batch_size}: mixup and cutmix pair images, so it must be even")
    mixing: Callable[..., Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = Mixup  # untyped
    return mixing(recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=classes)  # the loss smooths


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{out}: no folder can be made there ({error.strerror or error})") from None


def _keep(
    path: Path,
    identity: Mapping[str, Any],
    model: PrunableModel,
    ema: ModelEmaV3 | None,
    optimiser: torch.optim.Optimizer,
    curve: list[dict[str, Any]],
) -> None:
    """Write the checkpoint of an epoch, whole or not at all."""
    state = {
        "identity": json.dumps(identity),
        "curve": json.dumps(curve),
        "model": model.state_dict(),
        "ema": ema.module.state_dict() if ema is not None else None,
        "optimiser": optimiser.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())


def _restore(
    path: Path,
    identity: Mapping[str, Any],
    model: PrunableModel,
    ema: ModelEmaV3 | None,
    optimiser: torch.optim.Optimizer,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Load the checkpoint, if there is one, into its owners and return the curve so far."""
    if not path.exists():
        return []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        known = json.loads(state["identity"])
        curve: list[dict[str, Any]] = json.loads(state["curve"])
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: not a checkpoint of a training; remove it to begin anew") from None
    other = [f"{k} {known.get(k)!r} there, {now!r} now" for k, now in identity.items() if known.get(k) != now]
    if other:
        raise UsageError(
            f"{path.parent} holds a training of other settings: {'; '.join(other)}; choose another folder"
        )
    model.load_state_dict(state["model"])
    if ema is not None:
        ema.module.load_state_dict(state["ema"])
    optimiser.load_state_dict(state["optimiser"])
    return curve
