"""`prunefront mirror`: copies the evaluations of a study to an Optuna storage."""

from typing import TYPE_CHECKING, Annotated

import typer

from search.commands.options import Database, Study, database
from search.commands.output import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from results.records import Evaluation
    from results.records import Study as StudyRecord


def mirror(
    study: Study,
    to: Annotated[
        str, typer.Option(metavar="URL", help="Address of the Optuna storage: sqlite:///FILE or postgresql://…")
    ],
    db: Database = None,
) -> None:
    """Bring an Optuna storage up to date with a study, for optuna-dashboard."""
    from results.export.optuna_mirror import Mirror
    from results.store.store import Store

    with Store.open(database(db)) as store:
        found = store.study(study)
        evaluations = store.evaluations(found, done_only=False)
    target = Mirror(to)
    added = target.update(found, evaluations)
    say(f"{study}: {added} trials added to {target.where}")


def read_evaluations(url: str, study: "StudyRecord") -> "Sequence[Evaluation]":
    """Return all evaluations of a study, through a new connection."""
    from results.store.store import Store

    with Store.open(url) as store:
        return store.evaluations(study, done_only=False)
