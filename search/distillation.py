"""What a pruned student learns from the dense teacher: its answers, and its features of the tokens that are kept."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from search.tasks import CLASSIFICATION, Task, task_named
from spaces.errors import UsageError
from ssm_models import PrunableModel
from ssm_models.gather import take


@dataclass(frozen=True)
class Distillation:
    """How much the student learns from the teacher; what the two shares leave of the loss is the labels'.

    Attributes:
        share: of the loss that is the distance to the teacher's answers.
        temperature: by which the logits of both are divided before they are compared.
        features: share of the loss that is the distance to the teacher's features.

    Raises:
        UsageError: a share outside [0, 1], shares that are more than 1 together, or a temperature not above 0.
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
            student, teacher: the logits of both, (B, C, …) each.
            targets: of the task.
            label_smoothing: share of a label that is spread over all classes.
            distance: of the features, as `feature_distance` gives it.
            task: of both.
        """
        t = self.temperature
        student, teacher = student.float(), teacher.float()
        divergence = task.divergence(student, teacher, t)
        labels = task.loss(student, targets, label_smoothing)
        rest = 1 - self.share - self.features
        # t² keeps the gradient's size, whatever the temperature (Hinton et al., arXiv:1503.02531)
        return self.share * t * t * divergence + rest * labels + self.features * distance

    def of(self, teacher: PrunableModel, label_smoothing: float) -> Callable[[PrunableModel, Tensor, Tensor], Tensor]:
        """Return the loss of a student as `search.fitting.fit` calls it.

        The teacher runs once a batch, for answers and features alike, and without a graph.

        Args:
            teacher: dense, in eval mode and on the student's device.
            label_smoothing: as for `loss`.
        """
        task = task_named(teacher.task)

        def answers(model: PrunableModel, images: Tensor, targets: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = teacher(images)
            return self.loss(model(images), wanted, targets, label_smoothing, task=task)

        def features_too(model: PrunableModel, images: Tensor, targets: Tensor) -> Tensor:
            student = observe(model, images)
            with torch.no_grad():
                dense = observe(teacher, images)
                wanted = take(dense.tokens, student.positions)
            distance = feature_distance(student.tokens, wanted)
            return self.loss(student.logits, dense.logits, targets, label_smoothing, distance, task)

        return features_too if self.features else answers


@dataclass(frozen=True)
class Observed:
    """A forward pass with what its last block left.

    Attributes:
        logits: (b, classes, …).
        tokens: (b, K, D) features of the tokens that are kept behind the last block, protected ones among them.
        positions: (b, K) where they stand in the sequence of the last stage.
    """

    logits: Tensor
    tokens: Tensor
    positions: Tensor


def observe(model: PrunableModel, images: Tensor) -> Observed:
    """Return what a model answers to images (b, 3, H, W), and the tokens behind its last block.

    Where tokens come back at the end of a stage, those of the last stage are looked at before they do: what
    comes back has not been computed by the last blocks.
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
    """Return the mean squared difference of features, both (b, K, D), each token brought to mean 0 and variance 1.

    So it is 0 for equal features and 2 for unrelated ones, whatever a model's residual stream grows to, and a
    share of the loss means the same for every model.
    """
    student, teacher = student.float(), teacher.float()
    width = student.shape[-1:]
    return F.mse_loss(F.layer_norm(student, width), F.layer_norm(teacher, width))
