"""Knowledge distillation: the pruned student learns the dense teacher's logits and features of the kept tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from search.data.classification import CLASSIFICATION
from search.data.task import Task
from search.data.tasks import task_named
from spaces.errors import UsageError
from ssm_models import PrunableModel
from ssm_models.gather import take


@dataclass(frozen=True)
class Distillation:
    """The weights of the terms of the loss. The labels get what the two shares leave.

    Attributes:
        share: weight of the distance to the teacher's logits (Hinton et al., arXiv:1503.02531).
        temperature: both models' logits are divided by it before they are compared.
        features: weight of the distance to the teacher's features (as in DynamicViT, arXiv:2106.02034).

    Raises:
        UsageError: a share is outside [0, 1], they add up to more than 1, or the temperature is not above 0.

    >>> Distillation(share=0.4, features=0.2).temperature
    2.0
    """

    share: float = 0.5
    temperature: float = 2.0
    features: float = 0.0

    def __post_init__(self) -> None:
        for name in ("share", "features"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"distillation {name}={value!r}: expected a value from 0 to 1")
        if self.share + self.features > 1:
            raise UsageError(
                f"distillation share={self.share:g}, features={self.features:g}: together more than the whole loss"
            )
        if not 0 < self.temperature < 1000:
            raise UsageError(f"distillation temperature={self.temperature!r}: expected a value above 0")

    def loss(
        self,
        student: Tensor,
        teacher: Tensor,
        targets: Tensor,
        label_smoothing: float,
        distance: Tensor | float = 0.0,
        task: Task = CLASSIFICATION,
    ) -> Tensor:
        """Return the loss of a batch.

        Args:
            student, teacher: logits, (B, C, …) each.
            targets: the task's targets.
            label_smoothing: share of a label that is spread over all classes.
            distance: between the features, from `feature_distance`.
            task: the task of both models.
        """
        t = self.temperature
        student, teacher = student.float(), teacher.float()
        divergence = task.divergence(student, teacher, t)
        labels = task.loss(student, targets, label_smoothing)
        rest = 1 - self.share - self.features
        # t² keeps the scale of the gradient independent of the temperature (Hinton et al., arXiv:1503.02531)
        return self.share * t * t * divergence + rest * labels + self.features * distance

    def of(self, teacher: PrunableModel, label_smoothing: float) -> Callable[[PrunableModel, Tensor, Tensor], Tensor]:
        """Return the loss of a student, as `TrainingJob` takes it.

        The teacher runs once per batch, for logits and features together, without a graph.

        Args:
            teacher: dense, in evaluation mode and on the student's device.
            label_smoothing: as for `loss`.
        """
        task = task_named(teacher.task)

        def logits_loss(model: PrunableModel, images: Tensor, targets: Tensor) -> Tensor:
            with torch.no_grad():
                dense = teacher(images)
            return self.loss(model(images), dense, targets, label_smoothing, task=task)

        def logits_and_features_loss(model: PrunableModel, images: Tensor, targets: Tensor) -> Tensor:
            student = observe(model, images)
            with torch.no_grad():
                dense = observe(teacher, images)
                target_tokens = take(dense.tokens, student.positions)
            distance = feature_distance(student.tokens, target_tokens)
            return self.loss(student.logits, dense.logits, targets, label_smoothing, distance, task)

        return logits_and_features_loss if self.features else logits_loss


@dataclass(frozen=True)
class Observed:
    """The logits of a forward pass, and the output of its last block.

    Attributes:
        logits: (b, classes, …).
        tokens: (b, K, D) features of the tokens that the last block keeps, protected ones included.
        positions: (b, K) int64, their positions in the sequence of the last stage.
    """

    logits: Tensor
    tokens: Tensor
    positions: Tensor


def observe(model: PrunableModel, images: Tensor) -> Observed:
    """Run a model on images (b, 3, H, W) and return its logits and the tokens after its last block.

    In models where pruned tokens come back at the end of a stage, the tokens of the last stage are taken before they
    do, because the last blocks did not update those that come back.
    """
    steps = {step.after: step for step in model.schedule.steps}
    x, view = model.begin(images)
    tokens, positions = x, view.all_positions()
    for index in range(len(model.blocks)):
        x, view = model.prune_block(index, x, view, steps.get(index + 1))
        if index + 1 == len(model.blocks):
            tokens, positions = view.kept(x), view.all_positions()
        x, view = model.end_stage(index, x, view)
    return Observed(model.classify(x, view), tokens, positions)


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of features, (b, K, D) each, after normalising each token.

    With each token at mean 0 and variance 1, the distance is 0 for equal and near 2 for unrelated features, whatever
    the scale of a model's residual stream. A weight in the loss therefore means the same for every model.
    """
    student, teacher = student.float(), teacher.float()
    width = student.shape[-1:]
    return F.mse_loss(F.layer_norm(student, width), F.layer_norm(teacher, width))
