"""The state of a training, and the checkpoint from which it is resumed exactly."""

import io
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.optim._param_groups import param_groups_weight_decay
from timm.utils.model_ema import ModelEmaV3

from results.files import write_whole
from search.training.recipe import PRECISIONS, Recipe
from spaces.errors import CheckpointError, UsageError
from ssm_models import PrunableModel

CHECKPOINT = "last.pt"  # after each epoch
WEIGHTS = "model.safetensors"  # after the last epoch
PLAN = "plan.json"  # in the folder of a successive halving
# Weight decay must not pull the dynamics of the state-space model, biases or position embeddings towards zero.
NO_DECAY = ("*A_log*", "*A_b_log*", "*pos_embed*", "*cls_token*", "*direction_Bs*", "*dt_projs_bias*", "*conv_bias*")

_NOT_WHOLE = "not the checkpoint of a training; remove it to start again"

Scores = tuple[float, float]
"""(score in 0..1, mean cross-entropy)"""


class TrainingState:
    """Everything that a training changes.

    Args:
        model: the model to train, on `device`.
        recipe: gives the optimiser's settings.
        device: where checkpoints are loaded to.

    Attributes:
        model: the model in training.
        optimiser: AdamW.
        ema: the moving average of the weights, if the recipe has one.
        scaler: the loss scaler; it does nothing except for fp16.
        curve: one object per finished epoch.
        start: scores by name, measured before the first epoch.
    """

    def __init__(self, model: PrunableModel, recipe: Recipe, device: torch.device) -> None:
        self.model = model
        self.optimiser = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.lr)
        self.ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        scaled = PRECISIONS[recipe.amp] is torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.curve: list[dict[str, Any]] = []
        self.start: dict[str, Scores] = {}
        self._device = device

    @property
    def kept(self) -> PrunableModel:
        """The model that is evaluated and kept: the moving average if there is one."""
        if self.ema is None:
            return self.model
        averaged: PrunableModel = self.ema.module
        return averaged

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        rate: float = self.optimiser.param_groups[0]["lr"]
        return rate

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write a checkpoint; the file appears whole or not at all.

        Args:
            path: the file.
            identity: settings that must be equal for the checkpoint to be restored; plain values.
        """
        state = {
            "identity": json.dumps(identity),
            "curve": json.dumps(self.curve),
            "start": json.dumps(self.start),
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(path, buffer.getvalue())

    def restore(
        self, path: Path, identity: Mapping[str, Any], unsaid: Mapping[str, Callable[[], Any]] | None = None
    ) -> None:
        """Load the checkpoint if the file exists.

        Args:
            path: the file.
            identity: as for `save`.
            unsaid: for keys that older checkpoints lack, returns what these stand for.

        Raises:
            CheckpointError: it is broken.
            UsageError: it is of another identity; the message lists the differences.
        """
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
            saved = json.loads(state["identity"])
            curve, start = json.loads(state["curve"]), json.loads(state["start"])
            parts = [state[name] for name in ("model", "ema", "optimiser", "scaler")]
            saved = dict(saved)
        except Exception:  # torch has no base class for what a damaged file makes it raise
            raise CheckpointError(f"{path}: {_NOT_WHOLE}") from None
        missing = {name: value() for name, value in (unsaid or {}).items() if name not in saved}
        if differences := _differences(saved | missing, identity):
            raise UsageError(
                f"{path.parent} holds a training of other settings: {'; '.join(differences)}; choose another folder"
            )
        weights, averaged, optimiser, scaler = parts
        try:
            self.model.load_state_dict(weights)
            if self.ema is not None:
                self.ema.module.load_state_dict(averaged)
            self.optimiser.load_state_dict(optimiser)
            self.scaler.load_state_dict(scaler)
            self.curve = [dict(row) for row in curve]
            self.start = {name: (float(scores[0]), float(scores[1])) for name, scores in start.items()}
        except Exception:  # as above; the identity is right, so what it holds is damaged
            raise CheckpointError(f"{path}: {_NOT_WHOLE}") from None


def read_identity(path: Path) -> dict[str, Any] | None:
    """Return the settings that a checkpoint was written with; None if there is none, or it is broken."""
    try:
        identity = json.loads(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["identity"])
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError):
        return None
    return identity if isinstance(identity, dict) else None


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [*now, *(name for name in saved if name not in now)]
    return [
        f"{name} {saved.get(name)!r} there, {now.get(name)!r} now"
        for name in names
        if saved.get(name) != now.get(name)
    ]


def parameter_groups(model: PrunableModel, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimiser's two groups: without weight decay (norms, biases, `NO_DECAY`) and with it."""
    groups: list[dict[str, Any]] = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=NO_DECAY)
    return groups
