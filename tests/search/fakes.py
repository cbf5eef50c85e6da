"""A model's cost and accuracy as plain functions, and a store in memory: searches without torch and Ray."""

from collections.abc import Callable
from typing import Any

from results import Evaluation
from search.samplers import make_sampler
from search.searcher import ScheduleSearcher
from spaces import FlopsBudget, PruningSchedule, Stage, TokenLayout
from spaces.published import published_schedules
from spaces.space import SearchSpace, make_space

LAYOUT = TokenLayout("fake", (28, 28), (Stage(12, 7, 7),), protected=1)


def flops(schedule: PruningSchedule) -> int:
    """A thousand FLOPs for each token that a block works on."""
    after = LAYOUT.tokens(schedule)
    return 1000 * sum([49, *after[:-1]])


def top1(schedule: PruningSchedule) -> float:
    """Early and strong pruning hurts; a dense model is right in 97 %."""
    lost = sum((1 - step.keep) ** 2 / step.after for step in schedule.steps)
    return max(0.0, 0.97 - 0.6 * lost - (0.05 if schedule.method.context == "drop" else 0.0))


def space(text: str = "stages", budget: str = "0.8") -> SearchSpace:
    """A space over the fake model."""
    return make_space(text, LAYOUT, flops, FlopsBudget.parse(budget))


class MemoryRecords:
    """A study's evaluations in a list; `fail_at` numbers are refused by a full disk."""

    def __init__(self, evaluations: list[Evaluation] | None = None) -> None:
        self.evaluations = list(evaluations or [])

    def record(self, evaluation: Evaluation) -> bool:
        """Append it unless its schedule is there."""
        if self.evaluation(evaluation.hash):
            return False
        self.evaluations.append(evaluation)
        return True

    def evaluation(self, schedule_hash: str) -> Evaluation | None:
        """Look it up."""
        return next((e for e in self.evaluations if e.hash == schedule_hash), None)


def searcher(
    records: MemoryRecords,
    *,
    trials: int,
    name: str = "nsga2",
    seed: int = 0,
    over: SearchSpace | None = None,
    published: bool = True,
    **options: Any,
) -> ScheduleSearcher:
    """A searcher over what `records` holds, as the runner makes it."""
    chosen = over or space()
    sampler = make_sampler(
        name, chosen, ("top1", "flops"), seed=seed, trials=trials, recorded=len(records.evaluations)
    )
    sampler.restore(records.evaluations)
    return ScheduleSearcher(
        chosen,
        sampler,
        flops=flops,
        dense_flops=flops(PruningSchedule()),
        trials=trials,
        recorded=list(records.evaluations),
        records=records,
        published=published_schedules(LAYOUT) if published else (),
        seed=seed,
        **options,
    )


def measured(text: str) -> dict[str, Any]:
    """What a worker reports of a schedule."""
    accuracy = top1(PruningSchedule.parse(text))
    return {
        "top1": accuracy,
        "loss": 1 - accuracy,
        "agreement": accuracy,
        "images": 100,
        "latency_ms": 1.0,
        "seconds": 0.1,
        "forward_seconds": 0.0,
        "done": True,
    }


def drive(
    subject: ScheduleSearcher,
    *,
    workers: int = 1,
    result: Callable[[str], dict[str, Any] | None] = measured,
    at_most: int = 10_000,
) -> list[str]:
    """Play Tune: keep `workers` candidates under way, finish the oldest first; return the schedules in order.

    A result of None is a worker that died for good.
    """
    flying: list[tuple[str, str]] = []
    suggested: list[str] = []
    for step in range(at_most):
        over = False
        while len(flying) < workers:
            config = subject.suggest(f"trial-{step}-{len(flying)}-{len(suggested)}")
            if not isinstance(config, dict):
                over = config == "FINISHED"
                break
            suggested.append(config["schedule"])
            flying.append((f"trial-{step}-{len(flying)}-{len(suggested) - 1}", config["schedule"]))
        if not flying:
            if over:
                break
            continue
        trial, text = flying.pop(0)
        outcome = result(text)
        subject.on_trial_complete(trial, result=outcome, error=outcome is None)
    return suggested
