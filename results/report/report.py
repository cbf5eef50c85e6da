"""One self-contained page that tells a study: its front, its schedules, what they drop, what it cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.intervals import wilson_interval
from results.metrics import METRICS
from results.records import Confirmation, Evaluation, FineTune, Study
from results.report.cost import Cost
from results.report.evaluation_table import listing
from results.report.front_chart import BlockTokens, FrontChart, spread, tokens_by_block
from results.report.html import write_page
from results.report.patterns import Patterns, in_words
from results.report.repro_commands import reproducing_commands
from results.report.token_pictures import Tile, TokenPicture, tiles

__all__ = ["TokenPicture", "reproducing_commands", "write_report"]

MOST_PROFILES = 6


def write_report(
    path: str | Path,
    study: Study,
    evaluations: Sequence[Evaluation],
    pictures: Sequence[TokenPicture] = (),
    *,
    dense_confirmed: Confirmation | None = None,
    finetunes: Sequence[FineTune] = (),
    commands: Sequence[str] | None = None,
) -> None:
    """Write the page; it opens offline and needs nothing beside it.

    Args:
        path: where to; the folder must be there.
        study: the study.
        evaluations: all of them, failed and stopped ones too.
        pictures: a handful of images with the tokens that a schedule dropped.
        dense_confirmed: the dense model's confirmed score, if there is one.
        finetunes: all of the study, for the commands that repeat them.
        commands: command lines that reproduce the study; made from the study if not given.

    Raises:
        PrunefrontError: the file cannot be written.
    """
    chart = FrontChart.of(study, evaluations, dense_confirmed)
    layout = study.spec.token_layout
    profiles = [Profile(e, tokens_by_block(layout, e.schedule)) for e in spread(chart.front, MOST_PROFILES)]
    patterns, tuned = Patterns.of(chart), _tuned(evaluations, finetunes)
    cpus = study.spec.config.get("cpus_per_trial", 1)
    write_page(
        path,
        "report.html",
        study=study,
        spec=study.spec,
        score=METRICS[study.spec.metric],
        chart=chart,
        summary=Summary.of(chart),
        cost=Cost.of(evaluations, study.spec.images, cpus),
        patterns=patterns,
        favourites=in_words(patterns.favourites),
        listing=listing(evaluations, {e.hash for e in chart.front}) | {"score": METRICS[study.spec.metric].title},
        profiles=profiles,
        galleries=_galleries(pictures),
        settings=_settings(study),
        commands=list(reproducing_commands(study, len(evaluations), tuned) if commands is None else commands),
    )


def _tuned(evaluations: Sequence[Evaluation], finetunes: Sequence[FineTune]) -> list[tuple[Evaluation, FineTune]]:
    """Return each point that was fine-tuned with its best fine-tuning."""
    best: dict[str, FineTune] = {}
    for record in finetunes:
        if record.schedule_hash not in best or record.top1 > best[record.schedule_hash].top1:
            best[record.schedule_hash] = record
    return [(e, best[e.hash]) for e in evaluations if e.hash in best]


@dataclass(frozen=True)
class Profile:
    """A schedule of the front and the tokens that each block works on under it."""

    evaluation: Evaluation
    blocks: list[BlockTokens]

    @property
    def labelled(self) -> set[int]:
        """The blocks that show their number: where it changes, and there is room for it."""
        room = math.ceil(len(self.blocks) / 12)
        chosen: list[int] = []
        for block in self.blocks:
            if block.first and (not chosen or block.block - chosen[-1] >= room):
                chosen.append(block.block)
        return set(chosen)


@dataclass(frozen=True)
class Gallery:
    """Pictures under one schedule."""

    schedule: str
    pictures: list[tuple[TokenPicture, list[Tile]]]


def _galleries(pictures: Sequence[TokenPicture]) -> list[Gallery]:
    found: dict[str, Gallery] = {}
    for picture in pictures:
        text = picture.schedule.text
        found.setdefault(text, Gallery(text or "dense", [])).pictures.append((picture, tiles(picture)))
    return list(found.values())


@dataclass(frozen=True)
class Summary:
    """The figures that a reader wants first.

    Attributes:
        best: the point of the front with the highest top-1 within the budget; None without one.
        near: the cheapest whose top-1 is at most a point below the dense model's; None without one.
        tuned: the evaluation with the best fine-tuned top-1; None without one.
        images: that the standing scores were measured on.
        noise: half of the 95 % interval of the dense top-1, as a share; how far to trust a difference; None where
            the score is no share of images.
    """

    best: Evaluation | None
    near: Evaluation | None
    tuned: Evaluation | None
    images: int
    noise: float | None

    @classmethod
    def of(cls, chart: FrontChart) -> "Summary":
        """Choose from what the chart shows."""
        spec = chart.study.spec
        within = [e for e in chart.front if e.flops <= spec.limit]
        close = [e for e in chart.front if _top1(e) >= chart.dense_top1 - 0.01 and not e.schedule.dense]
        images = spec.confirm_images if chart.confirming else spec.images
        low, high = wilson_interval(chart.dense_top1, images)
        sure = METRICS[spec.metric].of_images
        return cls(
            best=max(within, key=_top1, default=None),
            near=min(close, key=lambda e: e.flops, default=None),
            tuned=max(chart.tuned, key=lambda e: e.finetuned_top1 or 0.0, default=None),
            images=images,
            noise=(high - low) / 2 if sure else None,
        )


def _top1(evaluation: Evaluation) -> float:
    return evaluation.reported.top1 or 0.0


def _settings(study: Study) -> list[tuple[str, str]]:
    """What decided the result, in the order in which one would ask."""
    spec = study.spec
    height, width = spec.img_size
    settings: list[tuple[str, Any]] = [
        ("Model", f"{spec.model}, {spec.num_classes} classes, {height} × {width} pixels"),
        ("Weights", spec.shown_checkpoint or "shipped with the model"),
        ("Weights SHA-256", spec.weights_digest),
        ("Data", f"{spec.shown_data}, {spec.images:,} images for each evaluation"),
        ("Data SHA-256", spec.data_digest),
        ("Budget", f"{spec.budget}: {spec.least:,} to {spec.limit:,} of {spec.dense_flops:,} FLOPs"),
        ("Space", spec.space),
        ("Sampler", f"{spec.sampler}, seed {spec.seed}"),
        ("Objectives", ", ".join(spec.objectives)),
        ("Begun", study.created_at.strftime("%Y-%m-%d %H:%M UTC")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in spec.versions.items())),
    ]
    if study.confirmed:
        settings[5:5] = [
            ("Confirmed on", f"{spec.confirm_images:,} images of the {spec.confirm_split} split"),
            ("Its SHA-256", spec.confirm_digest),
        ]
    return [(name, str(value)) for name, value in settings]
