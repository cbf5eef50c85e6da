"""One self-contained page that tells a study: its front, its schedules, what they drop, what it cost."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.charts import BlockTokens, FrontChart, spread, tokens_by_block
from results.intervals import wilson_interval
from results.pages import write_page
from results.pictures import Tile, TokenPicture, tiles
from results.records import Confirmation, Evaluation, Study

__all__ = ["TokenPicture", "reproducing_commands", "write_report"]

MOST_PROFILES = 6


def write_report(
    path: str | Path,
    study: Study,
    evaluations: Sequence[Evaluation],
    pictures: Sequence[TokenPicture] = (),
    *,
    dense_confirmed: Confirmation | None = None,
    commands: Sequence[str] | None = None,
) -> None:
    """Write the page; it opens offline and needs nothing beside it.

    Args:
        path: where to; the folder must be there.
        study: the study.
        evaluations: all of them, failed and stopped ones too.
        pictures: a handful of images with the tokens that a schedule dropped.
        dense_confirmed: the dense model's confirmed score, if there is one.
        commands: command lines that reproduce the study; made from the study if not given.

    Raises:
        PrunefrontError: the file cannot be written.
    """
    chart = FrontChart.of(study, evaluations, dense_confirmed)
    layout = study.spec.token_layout
    profiles = [Profile(e, tokens_by_block(layout, e.schedule)) for e in spread(chart.front, MOST_PROFILES)]
    write_page(
        path,
        "report.html",
        study=study,
        spec=study.spec,
        chart=chart,
        summary=Summary.of(chart),
        cost=Cost.of(evaluations),
        profiles=profiles,
        galleries=_galleries(pictures),
        settings=_settings(study),
        commands=list(reproducing_commands(study, len(evaluations)) if commands is None else commands),
    )


def reproducing_commands(study: Study, trials: int) -> list[str]:
    """Return the command lines that search this study again and write this page.

    Args:
        study: the study.
        trials: evaluations recorded in all.
    """
    spec = study.spec
    search: dict[str, object] = {
        "--model": spec.model,
        "--data": spec.data,
        "--flops-budget": spec.budget,
        "--trials": trials,
        "--study": spec.name,
        "--space": spec.space,
        "--sampler": spec.sampler,
        "--images": spec.images,
        "--seed": spec.seed,
    }
    for name in ("race_error", "confirm_images", "confirm_split"):
        if (value := spec.config.get(name)) is not None:
            search[f"--{name.replace('_', '-')}"] = value
    if spec.checkpoint is not None:
        search["--checkpoint"] = spec.checkpoint
    if set(spec.objectives) != {"top1", "flops"}:
        search["--objective"] = spec.objectives
    report: dict[str, object] = {"--study": spec.name, "--out": "report.html"}
    return [_command("search", search), _command("report", report)]


def _command(name: str, options: Mapping[str, object]) -> str:
    words = ["prunefront", name]
    for key, value in options.items():
        for each in value if isinstance(value, tuple) else (value,):
            words += [key, shlex.quote(str(each))]
    return " ".join(words)


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
        noise: half of the 95 % interval of the dense top-1, as a share; how far to trust a difference.
    """

    best: Evaluation | None
    near: Evaluation | None
    tuned: Evaluation | None
    images: int
    noise: float

    @classmethod
    def of(cls, chart: FrontChart) -> "Summary":
        """Choose from what the chart shows."""
        spec = chart.study.spec
        within = [e for e in chart.front if e.flops <= spec.limit]
        close = [e for e in chart.front if _top1(e) >= chart.dense_top1 - 0.01 and not e.schedule.dense]
        images = spec.confirm_images if chart.confirming else spec.images
        low, high = wilson_interval(chart.dense_top1, images)
        return cls(
            best=max(within, key=_top1, default=None),
            near=min(close, key=lambda e: e.flops, default=None),
            tuned=max(chart.tuned, key=lambda e: e.finetuned_top1 or 0.0, default=None),
            images=images,
            noise=(high - low) / 2,
        )


def _top1(evaluation: Evaluation) -> float:
    return evaluation.standing.top1 or 0.0


@dataclass(frozen=True)
class Cost:
    """What the search took.

    Attributes:
        evaluations: recorded ones: done, failed or stopped.
        stopped: how many of them were stopped.
        seconds: all evaluations together.
        median: seconds of the middle one that was done.
        failures: kind, count, and the first message of each kind.
        origins: how many came from whom.
    """

    evaluations: int
    stopped: int
    seconds: float
    median: float | None
    failures: list[tuple[str, int, str]]
    origins: list[tuple[str, int]]

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation]) -> "Cost":
        """Add up."""
        took = sorted(e.seconds for e in evaluations if e.seconds is not None and e.state == "done")
        failed = [e for e in evaluations if e.state == "failed"]
        messages: dict[str, str] = {}
        for e in failed:
            messages.setdefault(e.failure or "ERROR", e.error or "")
        counts = Counter(e.failure or "ERROR" for e in failed)
        return cls(
            evaluations=len(evaluations),
            stopped=sum(e.state == "stopped" for e in evaluations),
            seconds=sum(e.seconds or 0.0 for e in evaluations),
            median=took[len(took) // 2] if took else None,
            failures=[(kind, count, messages[kind]) for kind, count in counts.most_common()],
            origins=Counter(e.origin or "unknown" for e in evaluations).most_common(),
        )


def _settings(study: Study) -> list[tuple[str, str]]:
    """What decided the result, in the order in which one would ask."""
    spec = study.spec
    height, width = spec.img_size
    settings: list[tuple[str, Any]] = [
        ("Model", f"{spec.model}, {spec.num_classes} classes, {height} × {width} pixels"),
        ("Weights", spec.checkpoint or "shipped with the model"),
        ("Weights SHA-256", spec.weights_digest),
        ("Data", f"{spec.data}, {spec.images:,} images for each evaluation"),
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
