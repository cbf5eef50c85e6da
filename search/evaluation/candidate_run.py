"""One candidate on its way through the batches: what has been counted of it so far."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.data.task import Tally, Task
from search.evaluation.metrics import Metrics
from search.evaluation.prefix_cache import Branch
from search.evaluation.race import Entry
from spaces.errors import NonFiniteError


@dataclass
class CandidateRun:
    """How far one candidate is.

    Attributes:
        entry: the candidate.
        path: where its forward pass branches off from others.
        tally: of its answers.
        images: that it has run.
        agreeing: of these, how many it answered as the dense model does.
        seconds: spent on it.
        forward_seconds: of these, in forward passes.
        answers: a batch each; kept for the dense model alone.
        outcomes: (B,) bool a batch; empty where an image is more than right or wrong.
        stopped: whether it lost a race.
        lost_to: the candidate that stopped it; None if its bar did.
        error: why it runs no further.
    """

    entry: Entry
    path: list[Branch]
    tally: Tally
    images: int = 0
    agreeing: float = 0.0
    seconds: float = 0.0
    forward_seconds: float = 0.0
    answers: list[Tensor] = field(default_factory=list)
    outcomes: list[NDArray[np.bool_]] = field(default_factory=list)
    stopped: bool = False
    lost_to: "CandidateRun | None" = None
    error: Exception | None = None

    @property
    def live(self) -> bool:
        """Whether it runs the next batch."""
        return self.error is None and not self.stopped

    @property
    def raced_outcomes(self) -> NDArray[np.bool_] | None:
        """(images,) bool, its outcomes so far; None if it cannot race."""
        return None if self.error or not self.outcomes else np.concatenate(self.outcomes)

    def add(self, task: Task, logits: Tensor, targets: Tensor, dense: Tensor | None, *, agreement: bool) -> None:
        """Count a batch.

        Args:
            task: the model's.
            logits: (B, classes, …) on the CPU.
            targets: (B, …), the task's.
            dense: (B, …), the dense model's answers; None if this is the dense model.
            agreement: whether an outcome is agreement with the dense model instead of a right answer.

        Raises:
            NonFiniteError: a logit is NaN or infinite.
        """
        finite = torch.isfinite(logits).flatten(1).all(1)
        if not finite.all():
            first = self.images + int((~finite).nonzero()[0])
            raise NonFiniteError(
                f"schedule {self.entry.schedule.text or 'dense'!r}: {int((~finite).sum())} of {len(targets)} images "
                f"in a batch have logits that are NaN or infinite; the first is image {first}"
            )
        answers = task.answers(logits)
        self.tally.add(logits, targets)
        self.images += len(targets)
        if dense is None:
            self.answers.append(answers)
        expected = answers if dense is None else dense
        self.agreeing += float(task.agreement(answers, expected).sum())
        right = task.right(answers, expected if agreement else targets)
        if right is not None:
            self.outcomes.append(right.numpy())

    def metrics(self, dense: Metrics | None) -> Metrics:
        """Return what was measured; `dense` are the dense model's metrics, which a stopped candidate needs."""
        outcomes = np.concatenate(self.outcomes) if self.outcomes else None
        estimate = None
        if self.stopped:
            assert dense is not None and dense.outcomes is not None and outcomes is not None  # a race needs them
            whole = dense.outcomes
            estimate = float(np.clip(whole.mean() + outcomes.mean() - whole[: self.images].mean(), 0.0, 1.0))
        return Metrics(
            top1=self.tally.score,
            loss=self.tally.loss,
            agreement=self.agreeing / self.images,
            images=self.images,
            outcomes=outcomes,
            stopped=self.stopped,
            estimate=estimate,
            seconds=self.seconds,
            forward_seconds=self.forward_seconds,
            tally=self.tally,
        )
