"""What runs on a worker of the cluster: one actor that holds its model and images for a whole search."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from ray.tune import Trainable

from search.data import open_data
from search.evaluator import Evaluator
from spaces import PruningSchedule
from spaces.errors import EvaluationError, SearchError


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker needs to become like the driver; plain data.

    Attributes:
        model, checkpoint, data: as the user named them.
        img_size: (height, width) in pixels.
        num_classes: outputs of random weights.
        seed: of random weights.
        images: how many of the val split are run; None for all.
        batch_size: images in a forward pass.
        threads: CPU threads of torch.
        weights_digest: of the driver's weights; a worker whose weights differ is refused.
        answers: the dense model's classes on these images.
    """

    model: str
    checkpoint: str | None
    data: str
    img_size: tuple[int, int]
    num_classes: int
    seed: int
    images: int | None
    batch_size: int
    threads: int
    weights_digest: str
    answers: list[int]

    def evaluator(self) -> Evaluator:
        """Build the model and read the images.

        Raises:
            PrunefrontError: something cannot be read here, or is not what the driver has.
        """
        import ssm_models

        torch.set_num_threads(self.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = ssm_models.build(
            self.model, self.checkpoint, num_classes=self.num_classes, img_size=self.img_size, seed=self.seed
        )
        digest = ssm_models.weights_digest(model)
        if digest != self.weights_digest:
            raise SearchError(
                f"a worker's weights of {self.model} differ from the driver's ({digest[:12]}, not "
                f"{self.weights_digest[:12]}): give every machine the same files and version"
            )
        data = open_data(self.data)
        batches = data.batches(model.pretrained_cfg, model.img_size, images=self.images, batch_size=self.batch_size)
        if len(self.answers) != batches.images:
            raise SearchError(
                f"a worker finds {batches.images} images in {self.data}, the driver {len(self.answers)}"
            )
        return Evaluator(model, batches, device, torch.tensor(self.answers))


class Evaluation(Trainable):  # type: ignore[misc]
    """One Tune trial is one evaluation; the actor is reused, so that model and images are loaded once.

    Whatever goes wrong inside an evaluation is a result with a `failure`, not an exception: the actor
    and the search go on. Only the death of the process is Tune's to notice.
    """

    def setup(self, config: dict[str, Any], spec: WorkerSpec | None = None) -> None:
        """Become a worker; Tune calls this once per actor."""
        assert spec is not None
        self._schedule = config["schedule"]
        self._evaluator: Evaluator | None = None
        self._spec = spec

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next candidate; Tune calls this instead of building another actor."""
        self._schedule = new_config["schedule"]
        return True

    def step(self) -> dict[str, Any]:
        """Evaluate the candidate; the metrics' names are `Metrics`'."""
        try:
            self._evaluator = self._evaluator or self._spec.evaluator()
            metrics = self._evaluator.evaluate(PruningSchedule.parse(self._schedule))
        except EvaluationError as error:
            return {"failure": error.failure, "error": _first_line(error), "done": True}
        except Exception as error:  # whatever it is, the driver records it by name, and counts
            return {"failure": "ERROR", "error": f"{type(error).__name__}: {_first_line(error)}", "done": True}
        return {**asdict(metrics), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keep nothing: an evaluation that is interrupted starts again."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing; see `save_checkpoint`."""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:500]
