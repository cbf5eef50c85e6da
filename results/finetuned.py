"""Fine-tunings of a study, and which of them the fine-tuned score of a schedule is the mean of."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean
from typing import Any

from results.image_sets import images_text


@dataclass(frozen=True)
class FineTune:
    """The outcome of one fine-tuning of a schedule that the study has evaluated.

    Records up to version 0.2 name no split, skip, order and digest: their scores are of the first images of val, in
    the order of the study.

    Attributes:
        schedule_hash: hash of the schedule.
        top1: accuracy in 0..1 after fine-tuning.
        loss: mean cross-entropy after fine-tuning.
        epochs: passes over the training images.
        images: how many images all scores were measured on.
        seconds: how long the fine-tuning took.
        checkpoint: the file that the weights were written to.
        weights_digest: SHA-256 of the weights.
        config: settings of the fine-tuning.
        curve: one JSON object for each epoch.
        versions: versions of prunefront and its main libraries, by name.
        finished_at: in UTC; the store sets it if it is None.
        split: the split of these images.
        skip: how many images of the split are left out before them.
        order: the name of the order that they are in.
        data_digest: SHA-256 of the split.
        before_top1: the accuracy under the schedule before fine-tuning, on the same images.
        dense_top1: the accuracy of the dense model on the same images.
    """

    schedule_hash: str
    top1: float
    loss: float
    epochs: int
    images: int
    seconds: float
    checkpoint: str
    weights_digest: str
    config: Mapping[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)
    finished_at: datetime | None = None
    split: str | None = None
    skip: int | None = None
    order: str | None = None
    data_digest: str | None = None
    before_top1: float | None = None
    dense_top1: float | None = None

    @property
    def scored_on(self) -> str:
        """The images of the scores in a few words, such as `val, 201–1,000`."""
        return images_text(self.split or "val", self.images, self.skip or 0)

    @property
    def group(self) -> tuple[object, ...]:
        """What runs have in common whose scores may be averaged: the recipe but for its seed, and the images."""
        recipe = {name: value for name, value in self.config.items() if name not in ("seed", "workers")}
        other_data = None if self.split in (None, "val") else self.data_digest  # val is the study's
        return json.dumps(recipe, sort_keys=True), self.epochs, self.scored_on, other_data


@dataclass(frozen=True)
class FineTuned:
    """What a schedule reaches after fine-tuning: its runs by one recipe on one set of images, with several seeds.

    Attributes:
        runs: how many.
        top1: their mean accuracy, in 0..1.
        low, high: the lowest and the highest.
        images: how many images the scores are of.
        scored_on: which these are, such as `val, 201–1,000`.
        before_top1: the accuracy before fine-tuning on the same images, if recorded.
        dense_top1: that of the dense model, if recorded.
    """

    runs: int
    top1: float
    low: float
    high: float
    images: int
    scored_on: str
    before_top1: float | None = None
    dense_top1: float | None = None

    @classmethod
    def of(cls, runs: Sequence[FineTune]) -> "FineTuned":
        """Summarise runs of one group.

        >>> runs = [FineTune("h", top1, 0.1, 1, 800, 9.0, "w", "d", split="val", skip=200) for top1 in (0.5, 0.75)]
        >>> FineTuned.of(runs).top1, FineTuned.of(runs).high, FineTuned.of(runs).scored_on
        (0.625, 0.75, 'val, 201–1,000')
        """
        tops = [one.top1 for one in runs]
        last = runs[-1]
        images = (last.images, last.scored_on)
        return cls(len(runs), fmean(tops), min(tops), max(tops), *images, last.before_top1, last.dense_top1)

    @property
    def spread(self) -> str:
        """The range and number of several runs in per cent, such as ` (96.90–97.30, 2 runs)`; empty for one."""
        if self.runs == 1:
            return ""
        return f" ({100 * self.low:.2f}–{100 * self.high:.2f}, {self.runs} runs)"


def latest_runs(finetunes: Iterable[FineTune]) -> dict[str, list[FineTune]]:
    """Return for each schedule, by its hash, the fine-tunings that its fine-tuned score is the mean of, oldest first.

    They are the latest one and those of the same recipe and images, which differ by their seed. Others, of more
    epochs or other images, say something else and are not mixed in.

    Args:
        finetunes: of one study, oldest first.
    """
    schedules: dict[str, list[FineTune]] = {}
    for one in finetunes:
        schedules.setdefault(one.schedule_hash, []).append(one)
    return {schedule: [one for one in many if one.group == many[-1].group] for schedule, many in schedules.items()}
