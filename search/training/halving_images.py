"""Which images decide the rungs of a successive halving, and which ones its scores are of."""

import json
from dataclasses import dataclass
from pathlib import Path

from search.data.dataset import ImageData
from search.data.image_set import ImageChoice, ImageSet, StudyImages
from search.training.checkpoint import PLAN
from spaces.errors import CheckpointError, UsageError


@dataclass(frozen=True)
class HalvingImages:
    """The images of a halving.

    Attributes:
        chosen_on: on which rungs are decided.
        reported_on: on which scores before and after fine-tuning are measured.
    """

    chosen_on: ImageSet
    reported_on: ImageSet

    @classmethod
    def of(cls, study: StudyImages, data: ImageData, asked: ImageChoice) -> "HalvingImages":
        """Choose on the searched images, and report on those that are asked for, by default the confirming ones.

        If nothing is asked for and the two overlap, the report leaves out the searched images; if none are left,
        rungs are decided on one half of them and the other half is reported.

        Raises:
            UsageError: the images that are asked for include some that choose, or there are too few.
            DataError: their split is missing.
        """
        searched = study.searched
        if asked.given:
            reported = asked.image_set_of(data, study)
            if reported.overlap(searched):
                raise UsageError(
                    f"the scores of --top cannot be of {reported.text}: rungs are decided on {searched.text}; name "
                    "others, with --split rest or --split test"
                )
            return cls(searched, reported)
        confirming = study.score_images(data)
        reported_rest = confirming.after(searched)
        if reported_rest is not None:
            return cls(searched, reported_rest)
        if confirming.images < 2:
            raise UsageError(f"{confirming.text}: too few images to choose on some and report on others")
        return cls(*confirming.halves())

    @classmethod
    def begun(cls, out: Path, study: StudyImages, data: ImageData) -> "HalvingImages | None":
        """Return the images of the halving that began in a folder; None if none did.

        Version 0.2 wrote none: its rungs are decided on the searched images. What is left is reported, or else these.
        """
        try:
            content = json.loads((out / PLAN).read_text(encoding="utf-8"))
            if "images" in content:
                return cls(*(ImageSet(**content["images"][name]) for name in ("chosen_on", "reported_on")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{out / PLAN}: not the plan of a fine-tuning; remove it to start again") from None
        return cls(study.searched, study.score_images(data).after(study.searched) or study.searched)
