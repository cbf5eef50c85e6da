"""Fine-tuning several schedules of a study by successive halving (Jamieson and Talwalkar, arXiv:1502.07943).

The ranking of schedules before fine-tuning is not their ranking after it, so schedules a little behind the front take
part as well. All follow the learning rates of a whole training and pause where a rung ends. Those that are promoted
resume exactly from their checkpoints.

Rungs are decided on one set of images, and what is reported is measured on another one, which no rung has seen: the
best of several is otherwise better on the images that chose it than on any others.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from results import Evaluation
from results.files import write_json, write_whole
from results.intervals import wilson_interval
from results.metrics import METRICS
from results.pareto import pareto_front
from results.rank_correlation import RankCorrelation, split_half_correlation
from search.data.image_set import ImageSet
from search.training.checkpoint import CHECKPOINT, PLAN, WEIGHTS
from search.training.finetune import FINETUNE_RECORD, FineTuneResult
from search.training.halving_images import HalvingImages
from search.training.held_out import HeldOutScore
from search.training.run_folder import make_folder
from spaces.errors import CheckpointError, UsageError


@dataclass(frozen=True)
class Rung:
    """A stage of the halving: `candidates` schedules are trained up to epoch `epochs`."""

    candidates: int
    epochs: int


def make_rungs(candidates: int, epochs: int, eta: int) -> list[Rung]:
    """Return the rungs: each keeps one in `eta` of the candidates and trains them for `eta` times as many epochs.

    The last rung has all epochs. The first has as few as this number of candidates requires, but at least one.

    Args:
        candidates: number of schedules that begin.
        epochs: of a whole training.
        eta: the reduction factor.

    Raises:
        UsageError: fewer than one candidate or epoch, or an eta below 2.

    >>> [(rung.candidates, rung.epochs) for rung in make_rungs(8, 8, eta=2)]
    [(8, 1), (4, 2), (2, 4), (1, 8)]
    """
    for name, value, least in (("top", candidates, 1), ("epochs", epochs, 1), ("eta", eta, 2)):
        if value < least:
            raise UsageError(f"{name}={value}: expected at least {least}")
    steps = 0
    while eta ** (steps + 1) <= min(candidates, epochs):
        steps += 1
    return [
        Rung(math.ceil(candidates / eta**i), max(1, round(epochs / eta ** (steps - i)))) for i in range(steps + 1)
    ]


def promising(evaluations: Iterable[Evaluation], count: int, max_flops: int | None = None) -> list[Evaluation]:
    """Return the `count` most promising schedules within a FLOPs limit, best first.

    They are ranked by top-1 in the search, then by cost: a user who sets a limit wants the best model within it.
    Confirmed scores do not choose, because fine-tuned ones are reported on the same images. A schedule is left out if
    one that costs no more is significantly better, that is, if its 95 % interval ends below the other's top-1;
    fine-tuning may reverse any other order. A score without an interval, such as mIoU, excludes nothing.

    Args:
        evaluations: of a study; only finished ones of pruned schedules count.
        count: maximum number of schedules.
        max_flops: the FLOPs limit; None for no limit.

    Raises:
        UsageError: there is no such schedule.
    """
    within = [
        e
        for e in evaluations
        if e.state == "done" and e.schedule.steps and (max_flops is None or e.flops <= max_flops)
    ]
    if not within:
        raise UsageError("no schedule within the bounds to fine-tune: search more, or raise --max-flops")
    front = [within[i] for i in pareto_front([(e.flops, _top1(e)) for e in within])]

    def may_be_best(e: Evaluation) -> bool:
        if not METRICS[e.metric].of_images:  # the score has no interval
            return True
        best = max((_top1(other) for other in front if other.flops <= e.flops), default=0.0)
        return wilson_interval(_top1(e), e.images)[1] >= best

    return sorted(filter(may_be_best, within), key=lambda e: (-_top1(e), e.flops, e.hash))[:count]


def _top1(evaluation: Evaluation) -> float:
    return evaluation.top1 or 0.0


@dataclass
class Contender:
    """A schedule that takes part in a halving.

    Attributes:
        evaluation: its evaluation in the study.
        rungs: top-1 after each rung that it reached, on the images that choose.
        result: the result of the last rung that it reached.
        before: its score before fine-tuning, on the images of the report.
        scores: the score after each rung that it reached, on the images of the report; None if it was not measured
            before the training went on.
    """

    evaluation: Evaluation
    rungs: list[float] = field(default_factory=list)
    result: FineTuneResult | None = None
    before: HeldOutScore | None = None
    scores: list[HeldOutScore | None] = field(default_factory=list)

    @property
    def sort_key(self) -> tuple[int, float, int, str]:
        """Sort key, best first: most rungs reached, then highest top-1 there, then lowest cost."""
        return -len(self.rungs), -self.rungs[-1], self.evaluation.flops, self.evaluation.hash


@dataclass(frozen=True)
class Trained:
    """A schedule after a rung.

    Attributes:
        result: of the training; after all epochs, with the scores of the report.
        chosen_top1: top-1 on the images that choose.
        before, after: the scores on the images of the report before fine-tuning and now; see `Contender`.
    """

    result: FineTuneResult
    chosen_top1: float
    before: HeldOutScore
    after: HeldOutScore | None


Train = Callable[[Evaluation, int], Trained]
"""(schedule, epoch to train up to) → outcome. Epochs that are done already are not repeated."""


@dataclass(frozen=True)
class Halving:
    """The outcome of a successive halving.

    Attributes:
        contenders: all that began, best first by the images that choose.
        rungs: the rungs, first to last.
        images: the images of the report.
        correlation: Kendall's τ-b between the scores before fine-tuning and after the first rung, over all
            contenders and by disjoint halves of the images of the report; None for a single contender or image, or if
            a score was not measured.
        finished_correlation: the same after all epochs, over those that finished.
    """

    contenders: list[Contender]
    rungs: list[Rung]
    images: ImageSet
    correlation: RankCorrelation | None
    finished_correlation: RankCorrelation | None

    def rows(self) -> list[dict[str, Any]]:
        """Return one plain object per contender, best first.

        `before_top1` and `top1` are of the images of the report; `top1` is None unless it finished all epochs. The
        scores after each rung, `epoch_N`, are of the images that choose.
        """
        rows = []
        for contender in self.contenders:
            e, reached = contender.evaluation, len(contender.rungs)
            ends = [*contender.rungs, *[None] * (len(self.rungs) - reached)]
            finished = reached == len(self.rungs)
            result = contender.result
            row: dict[str, Any] = {"schedule": e.schedule.text, "hash": e.hash, "flops": e.flops}
            row |= {"flops_ratio": e.flops_ratio, "before_top1": contender.before and contender.before.top1}
            row |= {f"epoch_{rung.epochs}": top1 for rung, top1 in zip(self.rungs, ends, strict=True)}
            row |= {"top1": result.fit.top1 if finished and result else None, "images": self.images.images}
            row |= {"scored_on": self.images.text}
            row |= {"checkpoint": str(result.checkpoint) if finished and result else None}
            rows.append(row)
        return rows

    def summary(self) -> dict[str, Any]:
        """Return the outcome as one plain object, with each weights file's path relative to the run's folder."""
        rows = self.rows()
        for row in rows:
            if row["checkpoint"] is not None:
                row["checkpoint"] = "/".join(Path(row["checkpoint"]).parts[-2:])
        return {
            "rungs": [asdict(rung) for rung in self.rungs],
            "kendall_tau_first_rung": self.correlation and asdict(self.correlation),
            "kendall_tau_finished": self.finished_correlation and asdict(self.finished_correlation),
            "schedules": rows,
        }


@dataclass(frozen=True)
class HalvingPlan:
    """The settings of a halving, and the schedules that began it.

    A run that is resumed must not choose its schedules again, because the study may have grown meanwhile.

    Attributes:
        study: name of the study.
        top: number of schedules to begin with.
        eta: as for `make_rungs`.
        max_flops: as for `promising`.
        epochs: of a whole training.
        images: on which rungs are decided and scores reported.
    """

    study: str
    top: int
    eta: int
    max_flops: int | None
    epochs: int
    images: HalvingImages | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The plan without its images, as a plain object."""
        return {name: value for name, value in asdict(self).items() if name != "images"}

    def schedules(self, out: Path, choose: Callable[[], list[str]]) -> list[str]:
        """Return the hashes of the schedules that began in the folder `out`; if none did, choose and write them.

        Raises:
            UsageError: the folder holds a halving of other settings, or another training.
            CheckpointError: its plan is broken.
            TrainingError: the folder cannot be made.
        """
        path = out / PLAN
        if path.exists():
            return self._read(path)
        for name in (CHECKPOINT, WEIGHTS):
            if (out / name).exists():
                raise UsageError(f"{out} holds the {name} of another training; choose another folder")
        hashes = choose()
        make_folder(out)
        images = {} if self.images is None else {"images": asdict(self.images)}
        write_json(path, {"settings": self.settings, "schedules": hashes, **images})
        return hashes

    def candidates(self, out: Path, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Return the evaluations that began in the folder `out`, best first; if none did, choose the most promising.

        Args:
            out: folder of the halving.
            evaluations: of the study.

        Raises:
            UsageError: as `schedules` and `promising`, or the study lacks an evaluation that began.
        """
        known = {evaluation.hash: evaluation for evaluation in evaluations}
        hashes = self.schedules(out, lambda: [e.hash for e in promising(evaluations, self.top, self.max_flops)])
        if missing := [name for name in hashes if name not in known]:
            raise UsageError(
                f"{out} holds a fine-tuning of schedules that study {self.study!r} does not have, {missing[0]} among "
                "them: name the study and database that it began with, or choose another folder"
            )
        return [known[name] for name in hashes]

    def write_outcome(self, out: Path, halving: Halving) -> None:
        """Write OUT/halving.json, and copy the weights and the record of the best schedule to OUT."""
        best = halving.contenders[0].evaluation.hash
        for name in (WEIGHTS, FINETUNE_RECORD):
            write_whole(out / name, (out / best / name).read_bytes())
        images = {} if self.images is None else asdict(self.images)
        write_json(out / "halving.json", {**self.settings, **images, **halving.summary()})

    def _read(self, path: Path) -> list[str]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            saved, hashes = dict(content["settings"]), list(content["schedules"])
            if not hashes or not all(isinstance(name, str) for name in hashes):
                raise ValueError("no schedules")
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise CheckpointError(f"{path}: not the plan of a fine-tuning; remove it to start again") from None
        differences = [
            f"{k} {saved.get(k)!r} there, {v!r} now" for k, v in self.settings.items() if saved.get(k) != v
        ]
        if differences:
            raise UsageError(
                f"{path.parent} holds a fine-tuning of other settings: {'; '.join(differences)}; "
                "choose another folder"
            )
        return hashes


def halve(
    candidates: Sequence[Evaluation],
    rungs: Sequence[Rung],
    images: ImageSet,
    train: Train,
    finished: Callable[[FineTuneResult], None],
) -> Halving:
    """Train the candidates rung by rung, one after the other, and promote the best of each rung.

    Args:
        candidates: best first, as many as the first rung takes.
        rungs: from `make_rungs`.
        images: the images of the report.
        train: trains one schedule.
        finished: called with the result of each that finishes all epochs.
    """
    contenders = [Contender(candidate) for candidate in candidates]
    for number, rung in enumerate(rungs):
        for contender in sorted(contenders, key=lambda c: c.sort_key)[: rung.candidates] if number else contenders:
            trained = train(contender.evaluation, rung.epochs)
            contender.result, contender.before = trained.result, trained.before
            contender.rungs.append(trained.chosen_top1)
            contender.scores.append(trained.after)
            if number + 1 == len(rungs):
                finished(trained.result)
    contenders.sort(key=lambda c: c.sort_key)
    done = [c for c in contenders if len(c.rungs) == len(rungs)]
    correlations = (_correlation(some, rung, images.images) for some, rung in ((contenders, 0), (done, -1)))
    return Halving(contenders, list(rungs), images, *correlations)


def _correlation(contenders: Sequence[Contender], rung: int, images: int) -> RankCorrelation | None:
    pairs = [(c.before, c.scores[rung]) for c in contenders]
    before = [one for one, _ in pairs if one is not None and one.halves is not None]
    after = [other for _, other in pairs if other is not None and other.halves is not None]
    if len(pairs) < 2 or not len(before) == len(after) == len(pairs):
        return None
    outcomes = None
    if all(score.outcomes is not None for score in (*before, *after)):
        outcomes = (np.stack([s.right(images) for s in before]), np.stack([s.right(images) for s in after]))
    first, then = ([score.halves for score in some if score.halves is not None] for some in (before, after))
    return split_half_correlation(first, then, images, outcomes)
