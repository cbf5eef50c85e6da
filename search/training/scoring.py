"""How a model in training is scored on val."""

from collections.abc import Callable

import torch

from search.data.dataset import Batches
from search.data.tasks import task_named
from search.training.checkpoint import Scores
from search.training.data_parallel import SINGLE_PROCESS, DataParallelRank
from ssm_models import PrunableModel

Measure = Callable[[PrunableModel, Batches | None, torch.device, DataParallelRank], Scores]
"""(model, this rank's part of val or None if it has none, device, rank) → (score in 0..1, loss) over all of val."""


@torch.inference_mode()
def task_scores(
    model: PrunableModel, batches: Batches | None, device: torch.device, rank: DataParallelRank = SINGLE_PROCESS
) -> Scores:
    """Return the score of the model's task in 0..1 and the mean cross-entropy, in evaluation mode and fp32.

    Args:
        model: on `device`; left in evaluation mode.
        batches: this rank's part of the images; None if it has none.
        device: where to run.
        rank: the scores are over the batches of all ranks, and each of them must call this.
    """
    model.eval()
    tally = task_named(model.task).tally(model.num_classes)
    for pixels, targets in () if batches is None else batches:
        tally.add(model(pixels.to(device)).float(), targets.to(device))
    tally.sums = torch.tensor(rank.sum(tally.sums.tolist(), device), dtype=torch.float64)
    return tally.score, tally.loss
