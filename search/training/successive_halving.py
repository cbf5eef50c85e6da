"""Which schedules of a study to fine-tune: several begin, and the better ones go on, by successive halving.

The order of schedules before fine-tuning is not their order after it, so some that lie a little behind the front
are tried as well. All learn by the learning rates of a whole training and stop where a rung ends; who goes on,
does so from its checkpoint exactly. (Jamieson and Talwalkar, arXiv:1502.07943.)
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from results import Evaluation
from results.files import write_json
from results.intervals import wilson_interval
from results.metrics import METRICS
from results.pareto import pareto_front
from search.training.checkpoint import CHECKPOINT, PLAN, WEIGHTS
from search.training.finetune import FineTuneResult
from search.training.run_folder import make_folder
from spaces.errors import CheckpointError, UsageError


@dataclass(frozen=True)
class Rung:
    """A step of the halving: so many candidates are trained up to so many epochs."""

    candidates: int
    epochs: int


def make_rungs(candidates: int, epochs: int, eta: int) -> list[Rung]:
    """Return the rungs by which `candidates` become few, each by `eta` times as many epochs as the one before.

    The last rung has all epochs, and the first as few as the halving of so many candidates asks for, but at least
    one: with 8 candidates, 8 epochs and eta 2 these are 8 for 1 epoch, 4 for 2, 2 for 4 and 1 for 8.

    Raises:
        UsageError: fewer than one candidate or epoch, or an eta below 2.
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
    """Return the `count` most promising schedules within a bound of FLOPs, best first.

    Those are the ones of the highest standing top-1, of equal ones the cheaper: a user who names a bound wants the
    best model within it. One is left out where a schedule that costs no more is better beyond doubt, which is to
    say that its 95 % interval ends below the other's top-1; fine-tuning may well turn any other order. A score
    that has no interval, such as mIoU, leaves none out.

    Args:
        evaluations: of a study; only those that are done count, and the dense model's does not.
        count: how many; there may be fewer.
        max_flops: the most that one may cost; None for no bound.

    Raises:
        UsageError: there is none.
    """
    within = [
        e
        for e in evaluations
        if e.state == "done" and e.schedule.steps and (max_flops is None or e.flops <= max_flops)
    ]
    if not within:
        raise UsageError("no schedule within the bounds to fine-tune: search more, or raise --max-flops")
    front = [within[i] for i in pareto_front([(e.flops, _top1(e)) for e in within])]

    def open_to_doubt(e: Evaluation) -> bool:
        if not METRICS[e.metric].of_images:  # no interval says how sure the score is
            return True
        best = max((_top1(other) for other in front if other.flops <= e.flops), default=0.0)
        return wilson_interval(_top1(e), e.reported.images)[1] >= best

    return sorted(filter(open_to_doubt, within), key=lambda e: (-_top1(e), e.flops, e.hash))[:count]


def _top1(evaluation: Evaluation) -> float:
    return evaluation.reported.top1 or 0.0


@dataclass
class Contender:
    """A schedule on its way through the rungs.

    Attributes:
        evaluation: what the search found of it.
        before: top-1 of the weights that all begin with, on the images that all are measured on.
        rungs: top-1 after each rung that it reached.
        result: of the last rung that it reached.
    """

    evaluation: Evaluation
    before: float = 0.0
    rungs: list[float] = field(default_factory=list)
    result: FineTuneResult | None = None

    @property
    def rank(self) -> tuple[int, float, int, str]:
        """What contenders are sorted by, best first: rungs reached, then top-1 there, then the lower cost."""
        return -len(self.rungs), -self.rungs[-1], self.evaluation.flops, self.evaluation.hash


Train = Callable[[Evaluation, int], FineTuneResult]
"""(which schedule, up to which epoch of the whole training) → its result; what is done already is not repeated."""


@dataclass(frozen=True)
class Halving:
    """How a halving ended.

    Attributes:
        contenders: all that began, best first.
        rungs: as they were.
        correlation: Kendall's τ-b between top-1 before and after the first rung, where all were trained alike; None
            where it is not defined: a single contender, or all equal.
        finished_correlation: the same between top-1 before and after all epochs, of those that came so far.
    """

    contenders: list[Contender]
    rungs: list[Rung]
    correlation: float | None
    finished_correlation: float | None

    def rows(self) -> list[dict[str, Any]]:
        """Return a plain object a contender, best first; `top1` only of those that have all epochs behind them."""
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
        """Return all of it as one plain object; paths of weights begin in the folder that holds those of all."""
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
    """What was asked for, and who began: a run that goes on must not choose anew, for its study may have grown.

    Attributes:
        study: its name.
        top: how many schedules were to begin.
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

    def fixed(self, out: Path, choose: Callable[[], list[str]]) -> list[str]:
        """Return the hashes of the schedules that began in the folder `out`; where none did, choose and note them.

        Raises:
            UsageError: the folder holds a halving of other settings, or another training.
            CheckpointError: its note is broken.
            TrainingError: nothing can be written there.
        """
        path = out / PLAN
        if path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                known, hashes = dict(content["settings"]), [str(name) for name in content["schedules"]]
            except (OSError, ValueError, KeyError, TypeError):
                raise CheckpointError(f"{path}: not the plan of a fine-tuning; remove it to begin anew") from None
            other = [f"{k} {known.get(k)!r} there, {v!r} now" for k, v in self.settings.items() if known.get(k) != v]
            if other:
                raise UsageError(
                    f"{out} holds a fine-tuning of other settings: {'; '.join(other)}; choose another folder"
                )
            return hashes
        for name in (CHECKPOINT, WEIGHTS):
            if (out / name).exists():
                raise UsageError(f"{out} holds the {name} of another training; choose another folder")
        hashes = choose()
        make_folder(out)
        write_json(path, {"settings": self.settings, "schedules": hashes})
        return hashes


def halve(
    candidates: Sequence[Evaluation], rungs: Sequence[Rung], train: Train, finished: Callable[[FineTuneResult], None]
) -> Halving:
    """Train the candidates rung by rung, one after the other, and let the best of each rung go on.

    Args:
        candidates: best first, as many as the first rung takes.
        rungs: from `make_rungs`.
        train: trains one.
        finished: told of each that has all epochs behind it.
    """
    contenders = [Contender(candidate) for candidate in candidates]
    for number, rung in enumerate(rungs):
        for contender in sorted(contenders, key=lambda c: c.rank)[: rung.candidates] if number else contenders:
            result = train(contender.evaluation, rung.epochs)
            contender.before, contender.result = result.before[0], result
            contender.rungs.append(result.fit.top1)
            if number + 1 == len(rungs):
                finished(result)
    contenders.sort(key=lambda c: c.rank)
    done = [c for c in contenders if len(c.rungs) == len(rungs)]
    return Halving(contenders, list(rungs), _correlation(contenders, 0), _correlation(done, -1))


def _correlation(contenders: Sequence[Contender], rung: int) -> float | None:
    from scipy.stats import kendalltau

    if len(contenders) < 2:
        return None
    tau = float(kendalltau([c.before for c in contenders], [c.rungs[rung] for c in contenders]).statistic)
    return tau if math.isfinite(tau) else None
