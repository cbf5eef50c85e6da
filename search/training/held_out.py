"""Scores on images that chose nothing: of the whole, of its two halves, and of each image.

They are kept in a file beside the checkpoint, since a training that goes on overwrites the weights they are of.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from results.files import write_json
from results.rank_correlation import Halves
from search.data.dataset import ImageData
from search.data.image_set import ImageSet
from search.data.tasks import task_named
from ssm_models import PrunableModel

HELD_OUT = "held_out.json"  # in the folder of a training


@dataclass(frozen=True)
class HeldOutScore:
    """The score of a model on a set of images.

    Attributes:
        top1: the task's score on all of them, in 0..1.
        loss: mean cross-entropy.
        halves: the scores on the two sets of `ImageSet.halves`; None for a single image.
        outcomes: hexadecimal `numpy.packbits` of one bit per image, in order: whether it is right; None if images are
            not simply right or wrong.
    """

    top1: float
    loss: float
    halves: Halves | None
    outcomes: str | None

    def right(self, images: int) -> NDArray[np.bool_]:
        """Return which images are right, (images,)."""
        packed = np.frombuffer(bytes.fromhex(self.outcomes or ""), dtype=np.uint8)
        return np.unpackbits(packed, count=images).astype(bool)


@torch.inference_mode()
def score_held_out(model: PrunableModel, data: ImageData, images: ImageSet) -> HeldOutScore:
    """Score a model on a set of images, by its schedule, in evaluation mode and fp32, on the GPU if there is one.

    The model is left on the CPU. Errors are those of `ImageSet.batches`.
    """
    task, device = task_named(model.task), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    tallies, right = [], []
    for half in images.halves():
        tally = task.tally(model.num_classes)
        for pixels, targets in half.batches(data, model) if half.images else ():
            logits, wanted = model(pixels.to(device)).float(), targets.to(device)
            tally.add(logits, wanted)
            right.append(task.right(task.answers(logits), wanted))
        tallies.append(tally)
    model.to("cpu")
    whole = task.tally(model.num_classes)
    whole.sums = tallies[0].sums + tallies[1].sums
    known = [one.cpu().numpy() for one in right if one is not None]
    return HeldOutScore(
        whole.score,
        whole.loss,
        (tallies[0].score, tallies[1].score) if images.images > 1 else None,
        np.packbits(np.concatenate(known)).tobytes().hex() if len(known) == len(right) else None,
    )


@dataclass(frozen=True)
class HeldOutFile:
    """The scores in one folder on one set of images, by name.

    Attributes:
        folder: of the training.
        images: the set. Scores of another one are not read.
    """

    folder: Path
    images: ImageSet

    def read(self, name: str) -> HeldOutScore | None:
        """Return a score; None if it is not there."""
        try:
            row = self._content()[name]
            halves = None if row["halves"] is None else (float(row["halves"][0]), float(row["halves"][1]))
            return HeldOutScore(float(row["top1"]), float(row["loss"]), halves, row["outcomes"])
        except (KeyError, TypeError, ValueError, IndexError):
            return None

    def measured(self, name: str, measure: Callable[[], HeldOutScore]) -> HeldOutScore:
        """Return a score; if it is not there, measure and write it."""
        if (known := self.read(name)) is not None:
            return known
        score = measure()
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"images": asdict(self.images), "scores": self._content() | {name: asdict(score)}}
        write_json(self.folder / HELD_OUT, content)
        return score

    def _content(self) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / HELD_OUT).read_text(encoding="utf-8"))
            return dict(content["scores"]) if content["images"] == asdict(self.images) else {}
        except (OSError, KeyError, TypeError, ValueError):
            return {}
