"""The report of a study, one self-contained page: its front, its schedules, what they drop, what it cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.finetuned import latest_runs
from results.intervals import wilson_interval
from results.metrics import METRICS
from results.records import Confirmation, Evaluation, FineTune, Study
from results.report.cost import SearchCost
from results.report.evaluation_table import evaluation_columns
from results.report.front_chart import BlockTokens, FrontChart, evenly_spaced, tokens_by_block
from results.report.html import write_page
from results.report.patterns import Patterns, describe_patterns
from results.report.repro_commands import reproducing_commands
from results.report.token_pictures import Thumbnail, TokenPicture, thumbnails

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
    settings: Mapping[str, object] | None = None,
) -> None:
    """Write the report of a study as one HTML page that works offline.

    To write it from a store::

        with Store.open("sqlite:///prunefront.db") as store:
            study = store.study("digits")
            evaluations = store.evaluations(study, done_only=False)
            write_report("report.html", study, evaluations, finetunes=store.finetunes(study))

    Args:
        path: the file to write; its folder must exist.
        study: the study.
        evaluations: all its evaluations, the failed and the stopped ones included.
        pictures: a few images with the patches that a schedule drops.
        dense_confirmed: the dense model's confirmed score, if there is one.
        finetunes: all fine-tunings of the study, for the commands that repeat them.
        commands: command lines that reproduce the study; by default derived from it.
        settings: those that the command of the search repeats, as in `reproducing_commands`.

    Raises:
        PrunefrontError: the file cannot be written.
    """
    chart = FrontChart.of(study, evaluations, dense_confirmed)
    layout = study.spec.token_layout
    profiles = [Profile(e, tokens_by_block(layout, e.schedule)) for e in evenly_spaced(chart.front, MOST_PROFILES)]
    patterns, runs = Patterns.of(chart), latest_runs(finetunes)
    tuned = [(e, run) for e in evaluations for run in runs.get(e.hash, ())]
    score, cpus = METRICS[study.spec.metric], study.spec.config.get("cpus_per_trial", 1)
    if commands is None:
        commands = reproducing_commands(study, len(evaluations), tuned, settings)
    write_page(
        path,
        "report.html",
        study=study,
        spec=study.spec,
        score=score,
        chart=chart,
        summary=Summary.of(chart),
        cost=SearchCost.of(evaluations, study.spec.images, cpus),
        patterns=patterns,
        common_patterns=describe_patterns(patterns.common_blocks),
        columns=evaluation_columns(evaluations, {e.hash for e in chart.front}) | {"score": score.title},
        profiles=profiles,
        galleries=_galleries(pictures),
        settings=_settings(study),
        commands=list(commands),
    )


@dataclass(frozen=True)
class Profile:
    """A schedule of the front, and the tokens that each block processes under it."""

    evaluation: Evaluation
    blocks: list[BlockTokens]

    @property
    def labelled(self) -> set[int]:
        """The blocks whose bar is labelled: the number of tokens changes there, and the label has room."""
        room = math.ceil(len(self.blocks) / 12)
        chosen: list[int] = []
        for block in self.blocks:
            if block.first and (not chosen or block.block - chosen[-1] >= room):
                chosen.append(block.block)
        return set(chosen)


@dataclass(frozen=True)
class Gallery:
    """The pictures of one schedule."""

    schedule: str
    pictures: list[tuple[TokenPicture, list[Thumbnail]]]


def _galleries(pictures: Sequence[TokenPicture]) -> list[Gallery]:
    found: dict[str, Gallery] = {}
    for picture in pictures:
        text = picture.schedule.text
        found.setdefault(text, Gallery(text or "dense", [])).pictures.append((picture, thumbnails(picture)))
    return list(found.values())


@dataclass(frozen=True)
class Summary:
    """The headline figures of the report.

    Attributes:
        best: the point of the front with the highest top-1 in the search within the budget; None if there is none.
        near: the cheapest point of the front whose top-1 in the search is at most one point below the dense model's;
            None if there is none.
        tuned: the evaluation with the highest mean top-1 after fine-tuning; None if there is none.
        images: how many images the reported scores were measured on.
        noise: half the width of the 95 % interval of the dense top-1, in 0..1; None if the metric is not a share of
            images.
    """

    best: Evaluation | None
    near: Evaluation | None
    tuned: Evaluation | None
    images: int
    noise: float | None

    @classmethod
    def of(cls, chart: FrontChart) -> "Summary":
        """Pick the figures from a chart."""
        spec = chart.study.spec
        within = [e for e in chart.front if e.flops <= spec.limit]
        close = [e for e in chart.front if _top1(e) >= spec.dense_top1 - 0.01 and not e.schedule.dense]
        images = spec.confirm_images if chart.confirming else spec.images
        low, high = wilson_interval(chart.dense_top1, images)
        of_images = METRICS[spec.metric].of_images
        return cls(
            best=max(within, key=_top1, default=None),
            near=min(close, key=lambda e: e.flops, default=None),
            tuned=max(chart.tuned, key=lambda e: e.finetuned_top1 or 0.0, default=None),
            images=images,
            noise=(high - low) / 2 if of_images else None,
        )


def _top1(evaluation: Evaluation) -> float:
    """Return the score that picks; the confirmed one, which is shown, would be too high if it did."""
    return evaluation.top1 or 0.0


def _settings(study: Study) -> list[tuple[str, str]]:
    """Return what determined the result, as (name, value) pairs, the most important first."""
    spec = study.spec
    height, width = spec.img_size
    settings: list[tuple[str, Any]] = [
        ("Model", f"{spec.model}, {spec.num_classes} classes, {height} × {width} pixels"),
        ("Weights", spec.shown_checkpoint or "shipped with the model"),
        ("Weights SHA-256", spec.weights_digest),
        ("Data", f"{spec.shown_data}, {spec.images:,} images for each evaluation, {spec.order}"),
        ("Data SHA-256", spec.data_digest),
        ("Budget", f"{spec.budget}: {spec.least:,} to {spec.limit:,} of {spec.dense_flops:,} FLOPs"),
        ("Space", spec.space),
        ("Sampler", f"{spec.sampler}, seed {spec.seed}"),
        ("Objectives", ", ".join(spec.objectives)),
        ("Started", study.created_at.strftime("%Y-%m-%d %H:%M UTC")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in spec.versions.items())),
    ]
    if study.confirmed:
        settings[5:5] = [
            ("Confirmed on", f"{spec.confirm_images:,} images of the {spec.confirm_split} split"),
            ("Split SHA-256", spec.confirm_digest),
        ]
    return [(name, str(value)) for name, value in settings]
