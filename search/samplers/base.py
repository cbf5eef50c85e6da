"""The driver's interface to a sampler: it proposes points of the search space and is told their results.

The SQL store is the record. What a sampler needs to know of a point beside its values (NSGA-II: its generation) is
stored with the evaluation and comes back by `restore`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from results import Evaluation
from spaces.parameters import Value


@dataclass(frozen=True)
class Draw:
    """A proposed point whose result the sampler waits for.

    Attributes:
        values: of the space's parameters.
        handle: by which the sampler recognises it.
    """

    values: dict[str, Value]
    handle: Any = field(default=None, repr=False)


class Sampler(Protocol):
    """Proposes points and learns from evaluations; for the driver's one thread.

    The same seed, evaluations and results give the same proposals. A point is pending from `ask` until `tell`, and
    proposals made meanwhile take that into account.

    Attributes:
        name: from `search.config.SAMPLERS`.
    """

    name: str

    def restore(self, evaluations: Iterable[Evaluation]) -> None:
        """Learn from recorded evaluations that this sampler did not propose, in the order in which they were made."""

    def ask(self, values: Mapping[str, Value] | None = None) -> Draw:
        """Propose a point; with `values` that very point, as if the sampler had drawn it."""

    def state(self, draw: Draw) -> dict[str, Any]:
        """Return what `restore` needs beside the point itself, as JSON."""

    def tell(self, draw: Draw, evaluation: Evaluation | None) -> None:
        """Report the result of a point; None if it has none."""


def scores(evaluation: Evaluation, objectives: Sequence[str]) -> list[float] | None:
    """Return the objectives' values; None if the evaluation failed or lacks one.

    An evaluation that lost its race counts with the estimate of the raced objective: its top-1, or its agreement
    where top-1 is no objective.

    Example:
        >>> from spaces import PruningSchedule
        >>> done = Evaluation(PruningSchedule.parse("3:0.5"), flops=300, flops_ratio=0.6, top1=0.9, loss=0.2)
        >>> scores(done, ("top1", "flops"))
        [0.9, 300.0]
    """
    measured = {
        "top1": evaluation.top1,
        "flops": float(evaluation.flops),
        "loss": evaluation.loss,
        "agreement": evaluation.agreement,
        "latency": evaluation.latency_ratio,
    }
    if evaluation.state == "stopped":
        measured["top1" if "top1" in objectives else "agreement"] = evaluation.estimate
    elif evaluation.state != "done":
        return None
    found = [measured[name] for name in objectives]
    known = [score for score in found if score is not None]
    return known if len(known) == len(found) else None
