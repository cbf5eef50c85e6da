"""`prunefront search`: runs or resumes a study."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.commands.flags import takes_settings
from search.commands.mirroring import read_evaluations
from search.commands.options import FormatOption, about_front, database, file_path, note_ray_address, print_front
from search.commands.output import Format, say
from search.config import SearchConfig, SearchOutputs
from search.settings import build, given_flags, given_keys
from spaces import PruningSchedule

if TYPE_CHECKING:
    from search.driver.tracking import Tracker

SETTINGS = (SearchConfig, SearchOutputs)


@takes_settings(*SETTINGS)
def search(
    flags: Mapping[str, Any],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=file_path, help="TOML file of settings, named like the flags; flags override it."
        ),
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Run or resume a study, then print its front."""
    given = given_keys(config, *SETTINGS) if config is not None else {}
    given |= given_flags(flags, *SETTINGS)
    settings, outputs = build(SearchConfig, given), build(SearchOutputs, given)

    from results.export.optuna_mirror import Mirror
    from results.export.schedule_json import front_rows
    from results.front_scores import FrontScores
    from results.store.store import Store
    from search.driver.progress import SearchProgress
    from search.driver.runner import run_search
    from search.driver.trackers import MirrorTracker, make_tracker

    note_ray_address(settings.ray_address, "the search")
    url = database(outputs.db)
    trackers: list[Tracker] = [make_tracker(name) for name in dict.fromkeys(outputs.track)]
    if outputs.mirror is not None:
        trackers.append(MirrorTracker(Mirror(outputs.mirror), partial(read_evaluations, url)))
    with SearchProgress(settings.study) as progress:
        outcome = run_search(settings, url, progress, trackers)
    found = outcome.study
    counts = f"{found.done} done, {found.stopped} stopped early, {found.failed} failed"
    say(f"{settings.study}: {outcome.ending}: {counts}, {outcome.evaluated} of them now")
    if outcome.exit_code:
        say(f"{settings.study}: run the same command to resume")
        raise typer.Exit(outcome.exit_code)
    with Store.open(url) as store:
        front = store.front(found)
        dense = store.confirmation(found, PruningSchedule().hash)
    print_front(front_rows(front, found, dense), format, marked=found.confirmed > 0)
    if format is Format.table:
        for line in about_front(FrontScores.of(front, found.spec, dense), len(front)):
            say(line)
