"""One self-contained page that tells a study: its front, its schedules, what they drop, what it cost."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.charts import BlockTokens, FrontChart, spread, tokens_by_block
from results.pages import write_page
from results.pictures import Tile, TokenPicture, tiles
from results.records import Evaluation, Study

__all__ = ["TokenPicture", "reproducing_commands", "write_report"]

MOST_PROFILES = 6


def write_report(
    path: str | Path,
    study: Study,
    evaluations: Sequence[Evaluation],
    pictures: Sequence[TokenPicture] = (),
    *,
    commands: Sequence[str] | None = None,
) -> None:
    """Write the page; it opens offline and needs nothing beside it.

    Args:
        path: where to; the folder must be there.
        study: the study.
        evaluations: all of them, failed ones too.
        pictures: a handful of images with the tokens that a schedule dropped.
        commands: command lines that reproduce the study; made from the study if not given.

    Raises:
        PrunefrontError: the file cannot be written.
    """
    chart = FrontChart.of(study, evaluations)
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
    if spec.checkpoint is not None:
        search["--checkpoint"] = spec.checkpoint
    report = {"--study": spec.name, "--out": "report.html"}
    return [_command("search", search), _command("report", report)]


def _command(name: str, options: Mapping[str, object]) -> str:
    return " ".join(["prunefront", name, *(f"{key} {shlex.quote(str(value))}" for key, value in options.items())])


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
        best: the most accurate point of the front within the budget; None without one.
        near: the cheapest whose top-1 is at most a point below the dense model's; None without one.
        tuned: the evaluation with the best fine-tuned top-1; None without one.
        noise: half of the 95 % interval of the dense top-1, as a share; how far to trust a difference.
    """

    best: Evaluation | None
    near: Evaluation | None
    tuned: Evaluation | None
    noise: float

    @classmethod
    def of(cls, chart: FrontChart) -> "Summary":
        """Choose from what the chart shows."""
        spec = chart.study.spec
        within = [e for e in chart.front if e.flops <= spec.limit]
        close = [e for e in chart.front if (e.top1 or 0.0) >= spec.dense_top1 - 0.01 and not e.schedule.dense]
        return cls(
            best=within[-1] if within else None,
            near=close[0] if close else None,
            tuned=max(chart.tuned, key=lambda e: e.finetuned_top1 or 0.0, default=None),
            noise=_wilson_half_width(spec.dense_top1, spec.images),
        )


def _wilson_half_width(share: float, count: int) -> float:
    z = 1.96
    return z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))


@dataclass(frozen=True)
class Cost:
    """What the search took.

    Attributes:
        evaluations: finished ones, done or failed.
        seconds: all evaluations together.
        median: seconds of the middle one that was done.
        failures: kind, count, and the first message of each kind.
        origins: how many came from whom.
    """

    evaluations: int
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
        ("Budget", f"{spec.budget}: at most {spec.limit:,} of {spec.dense_flops:,} FLOPs"),
        ("Space", spec.space),
        ("Sampler", f"{spec.sampler}, seed {spec.seed}"),
        ("Objectives", ", ".join(spec.objectives)),
        ("Begun", study.created_at.strftime("%Y-%m-%d %H:%M UTC")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in spec.versions.items())),
    ]
    return [(name, str(value)) for name, value in settings]
