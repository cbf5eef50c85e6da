"""What runs in a worker process: a Tune trainable that keeps its model and images between candidates.

A worker never touches the data base. It imports little, so that it starts fast and stays small.
"""

import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ray import tune

from spaces import PruningSchedule
from spaces.errors import CheckpointError, EvaluationError

if TYPE_CHECKING:
    from search.evaluator import Evaluator


@dataclass(frozen=True)
class WorkerSetup:
    """All that a worker needs to evaluate as the driver does.

    Attributes:
        model, checkpoint, data, images, batch_size: as in `SearchConfig`, resolved.
        weights_digest: the weights must have.
        threads: for torch.
        gpu: whether a GPU is leased to each worker.
        folder: that relative paths are meant from.
        dense: metrics of the dense model, by name.
        dense_answers: its answers on the images, (images,) int64; an array, since a tensor would make
            the actor load torch before it has started.
    """

    model: str
    checkpoint: str | None
    data: str
    images: int
    batch_size: int
    weights_digest: str
    threads: int
    gpu: bool
    folder: str
    dense: dict[str, Any]
    dense_answers: NDArray[np.int64]


class EvaluationTrainable(tune.Trainable):
    """One Tune trial is one evaluation, one step long; the actor lives on for the next.

    What goes wrong in an evaluation comes back as a result, so that the actor with its model survives.
    """

    def setup(self, config: dict[str, Any], setup: WorkerSetup) -> None:  # type: ignore[override]
        """Take the candidate; the model waits for the first step, whose errors are results."""
        self._setup = setup
        self._evaluator: Evaluator | None = None
        self._candidate = str(config["schedule"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next candidate."""
        self._candidate = str(new_config["schedule"])
        return True

    def step(self) -> dict[str, Any]:
        """Evaluate the candidate; return its metrics, or why there are none."""
        started = time.perf_counter()
        try:
            if self._evaluator is None:
                self._evaluator = open_evaluator(self._setup)
            metrics = self._evaluator.evaluate(PruningSchedule.parse(self._candidate))
        except Exception as error:
            return {
                "failure": error.failure if isinstance(error, EvaluationError) else "ERROR",
                "error": f"{type(error).__name__}: {first_line(error)}",
                "images": 0,
                "seconds": time.perf_counter() - started,
                "done": True,
            }
        return {**asdict(metrics), "done": True}


def open_evaluator(setup: WorkerSetup) -> "Evaluator":
    """Build the model and open the images; torch and all that hangs on it is imported here.

    Raises:
        CheckpointError: the weights are not those that the search began with.
    """
    import torch

    import ssm_models
    from search.data import open_data
    from search.evaluator import DenseAnswers, Evaluator, Metrics
    from search.subject import open_model

    with suppress(OSError):  # a node of a cluster may lack the folder; absolute paths need none
        os.chdir(setup.folder)
    torch.set_num_threads(setup.threads)
    data = open_data(setup.data)
    model = open_model(setup.model, setup.checkpoint, data)
    if ssm_models.weights_digest(model) != setup.weights_digest:
        raise CheckpointError(f"checkpoint {setup.checkpoint}: has changed since the search began")
    batches = data.batches(model.pretrained_cfg, model.img_size, images=setup.images, batch_size=setup.batch_size)
    device = "cuda" if setup.gpu and torch.cuda.is_available() else "cpu"
    dense = DenseAnswers(Metrics(**setup.dense), torch.from_numpy(setup.dense_answers.copy()))
    return Evaluator(model, batches, device, dense)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut to a length that a table can bear."""
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else "no message"
