"""What a sampler is: it proposes points of the search space and learns from what became of them.

The SQL store is the truth. What a sampler must remember of a point beside it (NSGA-II: its generation) goes there
with the evaluation and comes back by `restore`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from results import Evaluation
from spaces.parameters import Value


@dataclass(frozen=True)
class Draw:
    """A point that a sampler proposed; it waits to be told what came of it.

    Attributes:
        values: of the space's parameters.
        mark: by which the sampler knows it again.
    """

    values: dict[str, Value]
    mark: Any = field(default=None, repr=False)


class Sampler(Protocol):
    """Proposes points and learns from evaluations; for the driver's one thread.

    The same seed, evaluations and answers give the same proposals. A point that was asked for and not told of is
    under way, and what is proposed meanwhile takes that into account.

    Attributes:
        name: from `search.config.SAMPLERS`.
    """

    name: str

    def restore(self, evaluations: Iterable[Evaluation]) -> None:
        """Take in recorded evaluations that no draw of this sampler stands for, in the order they were made."""

    def ask(self, values: Mapping[str, Value] | None = None) -> Draw:
        """Propose a point; with `values` that very point, as if the sampler had drawn it."""

    def state(self, draw: Draw) -> dict[str, Any]:
        """Return what `restore` needs beside the point itself, as JSON."""

    def tell(self, draw: Draw, evaluation: Evaluation | None) -> None:
        """Say what came of a point; None if nothing did."""


def scores(evaluation: Evaluation, objectives: Sequence[str]) -> list[float] | None:
    """Return the objectives' values; None if the evaluation failed or lacks one.

    One that was stopped counts with the estimate of what it was stopped for: its top-1, or its agreement where top-1
    is no objective.
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
