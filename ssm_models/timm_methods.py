"""The methods by which users of timm ask a classifier for features and heads."""

from typing import Any, NoReturn

import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from spaces.errors import UsageError


class TimmMethods(nn.Module):
    """Features, heads and dropout, as timm's models have them, under a schedule too.

    `forward(images)` is `forward_head(forward_features(images))`. A family implements `last_tokens`, and `pool` if
    its head does not read the mean of the tokens. What a model cannot do is refused with a UsageError.

    Attributes:
        class_layers: names of the layers whose outputs are the classes; several are averaged.
        drop_rate: of dropout before these layers, in training.
        global_pool: how tokens become features: `avg` or `token`.
        num_classes: outputs; 0 gives the features.
    """

    class_layers: tuple[str, ...] = ("head",)
    drop_rate: float = 0.0
    global_pool: str = "avg"
    task: str
    num_classes: int
    pretrained_cfg: dict[str, Any]
    _width = 0  # of the features, where there is no head that tells it

    @property
    def model_name(self) -> str:
        """The registered name."""
        raise NotImplementedError

    def features_of(self, images: Tensor) -> Tensor:
        """Return the normalised tokens that the head reads (b, T, D)."""
        raise NotImplementedError

    @property
    def num_features(self) -> int:
        """Width of the features that the head reads."""
        layer = self.get_submodule(self.class_layers[0])
        return layer.in_features if isinstance(layer, nn.Linear) else self._width

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the tokens that the head reads (b, T, D) of images (b, in_chans, H, W).

        They are normalised, and those that the schedule left at the end; a cls token stands in their middle.

        >>> import torch, ssm_models
        >>> model = ssm_models.create_model("vmamba_nano").eval()
        >>> tokens = model.forward_features(torch.zeros(2, 3, 32, 32))
        >>> tokens.shape, model.forward_head(tokens).shape, model.forward_head(tokens, pre_logits=True).shape
        (torch.Size([2, 16, 128]), torch.Size([2, 10]), torch.Size([2, 128]))
        """
        if self.task != "classification":
            self._refuse("forward_features")
        return self.features_of(images)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (b, classes) of the tokens of `forward_features`, or the features (b, D) before them."""
        if self.task != "classification":
            self._refuse("forward_head")
        features = self.pool(x)
        if self.drop_rate:
            features = F.dropout(features, self.drop_rate, self.training)
        return features if pre_logits else self.logits(features)

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the features (b, D) of the tokens that the head reads (b, T, D)."""
        return tokens.mean(1)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (b, classes) of features (b, D)."""
        found = [self.get_submodule(name)(features) for name in self.class_layers]
        total: Tensor = sum(found[1:], found[0])
        return total / len(found) if len(found) > 1 else total

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """Return the layer whose outputs are the classes, or all of them if there are several."""
        layers = tuple(self.get_submodule(name) for name in self.class_layers)
        return layers if len(layers) > 1 else layers[0]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one; 0 classes are none, and the model then returns features.

        Raises:
            UsageError: the model is no classifier, or pools in another way.
        """
        if self.task != "classification":
            self._refuse("reset_classifier")
        if not isinstance(num_classes, int) or num_classes < 0:
            raise UsageError(f"{self.model_name}: num_classes is {num_classes!r}, expected a number of at least 0")
        self.check_pool(global_pool)
        width, example = self.num_features, next(self.parameters())
        for name in self.class_layers:
            parent, _, last = name.rpartition(".")
            layer: nn.Module = nn.Linear(width, num_classes) if num_classes else nn.Identity()
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
            setattr(self.get_submodule(parent), last, layer.to(example.device, example.dtype))
        self._width, self.num_classes = width, num_classes
        if hasattr(self, "pretrained_cfg"):
            self.pretrained_cfg = {**self.pretrained_cfg, "num_classes": num_classes}

    def check_pool(self, global_pool: str | None) -> None:
        """Raise a UsageError unless the features are pooled in this way."""
        if global_pool not in (None, self.global_pool):
            raise UsageError(
                f"{self.model_name}: global_pool is {global_pool!r}, and it pools by {self.global_pool!r} alone; "
                "forward_features gives the tokens"
            )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raise a UsageError if asked to recompute blocks in the backward pass, which is not supported."""
        if enable:
            self._refuse("gradient checkpointing")

    def _refuse(self, what: str) -> NoReturn:
        reason = f"a model for {self.task}" if self.task != "classification" else "a model"
        raise UsageError(f"{self.model_name}: {what} is not supported for {reason} of this package")
