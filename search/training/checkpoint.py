"""What a training changes from step to step, and the checkpoint that it goes on from exactly."""

import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.optim._param_groups import param_groups_weight_decay
from timm.utils.model_ema import ModelEmaV3

from results.files import write_whole
from search.training.recipe import PRECISIONS, Recipe
from spaces.errors import CheckpointError, UsageError
from ssm_models import PrunableModel

CHECKPOINT = "last.pt"
WEIGHTS = "model.safetensors"  # what is left of a training that is done
PLAN = "plan.json"  # of a folder in which several are fine-tuned
# The state-space model's own dynamics, biases of any shape and the places of tokens must not be pulled towards zero.
NO_DECAY = ("*A_log*", "*A_b_log*", "*pos_embed*", "*cls_token*", "*direction_Bs*", "*dt_projs_bias*", "*conv_bias*")

Scores = tuple[float, float]


class TrainingState:
    """A model in training with what goes with it, on one device.

    Attributes:
        model: whose weights are trained.
        optimiser: AdamW.
        ema: the moving average, if the recipe has one.
        scaler: of the loss; it does nothing but for fp16.
        curve: an object an epoch that is done.
        start: scores by name that were measured before the first epoch.
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
        """The model that is looked at and kept: the moving average if there is one."""
        if self.ema is None:
            return self.model
        averaged: PrunableModel = self.ema.module
        return averaged

    def keep(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write the checkpoint of an epoch, whole or not at all."""
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

    def restore(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Go back to the checkpoint, if there is one.

        Raises:
            CheckpointError: it is broken.
            UsageError: it is of a training of another identity.
        """
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
            known = json.loads(state["identity"])
            curve, start = json.loads(state["curve"]), json.loads(state["start"])
            parts = [state[name] for name in ("model", "ema", "optimiser", "scaler")]
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path}: not a checkpoint of a training; remove it to begin anew") from None
        names = [*identity, *(name for name in known if name not in identity)]
        other = [
            f"{k} {known.get(k)!r} there, {identity.get(k)!r} now" for k in names if known.get(k) != identity.get(k)
        ]
        if other:
            raise UsageError(
                f"{path.parent} holds a training of other settings: {'; '.join(other)}; choose another folder"
            )
        weights, averaged, optimiser, scaler = parts
        self.model.load_state_dict(weights)
        if self.ema is not None:
            self.ema.module.load_state_dict(averaged)
        self.optimiser.load_state_dict(optimiser)
        self.scaler.load_state_dict(scaler)
        self.curve, self.start = curve, {name: (scores[0], scores[1]) for name, scores in start.items()}


def parameter_groups(model: PrunableModel, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimiser's groups: without decay (norms, biases, `NO_DECAY`), then with it."""
    groups: list[dict[str, Any]] = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=NO_DECAY)
    return groups
