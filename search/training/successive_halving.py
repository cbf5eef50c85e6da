"""Fine-tuning several schedules of a study by successive halving (Jamieson and Talwalkar, arXiv:1502.07943).

The ranking of schedules before fine-tuning is not their ranking after it, so schedules a little behind the front take
part as well. All follow the learning rates of a whole training and pause where a rung ends. Those that are promoted
resume exactly from their checkpoints.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from results import Evaluation
from results.files import write_json, write_whole
from results.intervals import wilson_interval
from results.metrics import METRICS
from results.pareto import pareto_front
from search.training.checkpoint import CHECKPOINT, PLAN, WEIGHTS
from search.training.finetune import FINETUNE_RECORD, FineTuneResult
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

    They are ranked by top-1 (the confirmed one if there is one), then by cost: a user who sets a limit wants the best
    model within it. A schedule is left out if one that costs no more is significantly better, that is, if its 95 %
    interval ends below the other's top-1; fine-tuning may reverse any other order. A score without an interval, such
    as mIoU, excludes nothing.

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
        return wilson_interval(_top1(e), e.reported.images)[1] >= best

    return sorted(filter(may_be_best, within), key=lambda e: (-_top1(e), e.flops, e.hash))[:count]


def _top1(evaluation: Evaluation) -> float:
    return evaluation.reported.top1 or 0.0


@dataclass
class Contender:
    """A schedule that takes part in a halving.

    Attributes:
        evaluation: its evaluation in the study.
        before: top-1 before fine-tuning, on the images that all are evaluated on.
        rungs: top-1 after each rung that it reached.
        result: the result of the last rung that it reached.
    """

    evaluation: Evaluation
    before: float = 0.0
    rungs: list[float] = field(default_factory=list)
    result: FineTuneResult | None = None

    @property
    def sort_key(self) -> tuple[int, float, int, str]:
        """Sort key, best first: most rungs reached, then highest top-1 there, then lowest cost."""
        return -len(self.rungs), -self.rungs[-1], self.evaluation.flops, self.evaluation.hash


Train = Callable[[Evaluation, int], FineTuneResult]
"""(schedule, epoch to train up to) → result. Epochs that are done already are not repeated."""


@dataclass(frozen=True)
class Halving:
    """The outcome of a successive halving.

    Attributes:
        contenders: all that began, best first.
        rungs: the rungs, first to last.
        correlation: Kendall's τ-b between top-1 before fine-tuning and after the first rung, over all contenders;
            None if it is undefined: with a single contender, or if all are equal.
        finished_correlation: the same for top-1 after all epochs, over those that finished.
    """

    contenders: list[Contender]
    rungs: list[Rung]
    correlation: float | None
    finished_correlation: float | None

    def rows(self) -> list[dict[str, Any]]:
        """Return one plain object per contender, best first; `top1` is None unless it finished all epochs."""
        rows = []
        for contender in self.contenders:
            e, reached = contender.evaluation, len(contender.rungs)
            ends = [*contender.rungs, *[None] * (len(self.rungs) - reached)]
            finished = reached == len(self.rungs)
            result = contender.result
            row: dict[str, Any] = {"schedule": e.schedule.text, "hash": e.hash, "flops": e.flops}
            row |= {"flops_ratio": e.flops_ratio, "before_top1": contender.before}
            row |= {f"epoch_{rung.epochs}": top1 for rung, top1 in zip(self.rungs[:-1], ends, strict=False)}
            row |= {"top1": ends[-1]}
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
            "kendall_tau_first_rung": self.correlation,
            "kendall_tau_finished": self.finished_correlation,
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
    """

    study: str
    top: int
    eta: int
    max_flops: int | None
    epochs: int

    @property
    def settings(self) -> dict[str, Any]:
        """The plan as a plain object."""
        return asdict(self)

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
        write_json(path, {"settings": self.settings, "schedules": hashes})
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
        write_json(out / "halving.json", {**self.settings, **halving.summary()})

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
    candidates: Sequence[Evaluation], rungs: Sequence[Rung], train: Train, finished: Callable[[FineTuneResult], None]
) -> Halving:
    """Train the candidates rung by rung, one after the other, and promote the best of each rung.

    Args:
        candidates: best first, as many as the first rung takes.
        rungs: from `make_rungs`.
        train: trains one schedule.
        finished: called with the result of each that finishes all epochs.
    """
    contenders = [Contender(candidate) for candidate in candidates]
    for number, rung in enumerate(rungs):
        for contender in sorted(contenders, key=lambda c: c.sort_key)[: rung.candidates] if number else contenders:
            result = train(contender.evaluation, rung.epochs)
            contender.before, contender.result = result.before[0], result
            contender.rungs.append(result.fit.top1)
            if number + 1 == len(rungs):
                finished(result)
    contenders.sort(key=lambda c: c.sort_key)
    done = [c for c in contenders if len(c.rungs) == len(rungs)]
    return Halving(contenders, list(rungs), _correlation(contenders, 0), _correlation(done, -1))


def _correlation(contenders: Sequence[Contender], rung: int) -> float | None:
    from scipy.stats import kendalltau

    if len(contenders) < 2:
        return None
    tau = float(kendalltau([c.before for c in contenders], [c.rungs[rung] for c in contenders]).statistic)
    return tau if math.isfinite(tau) else None
