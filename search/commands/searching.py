"""`prunefront search`: runs or resumes a study."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.commands.mirroring import read_evaluations
from search.commands.options import DATA_HELP, Checkpoint, Database, FormatOption, Images, database, print_front
from search.commands.output import Format, say
from search.config import OBJECTIVES, SAMPLERS, read_toml, resolve

if TYPE_CHECKING:
    from search.driver.tracking import Tracker


def search(
    model: Annotated[str | None, typer.Option(metavar="M", help="Name of a model; see `prunefront models`.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="D", help=DATA_HELP),
    ] = None,
    flops_budget: Annotated[
        str | None,
        typer.Option(metavar="B", help="A share of the dense FLOPs (0.6), FLOPs (3.6G, 900M), or a range (0.5:0.7)."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", help="Evaluations that the study has in all when the search is done.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(metavar="S", help="Name of the study; one that exists is resumed.")
    ] = None,
    db: Database = None,
    checkpoint: Checkpoint = None,
    space: Annotated[
        str | None,
        typer.Option(metavar="K", help="stages, stages:4, per-block, with choices: 'stages:3;importance=clip,l2'."),
    ] = None,
    sampler: Annotated[str | None, typer.Option(metavar="K", help=f"{', '.join(SAMPLERS)}. Default: gp.")] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(metavar="K", help=f"Of miou, {', '.join(OBJECTIVES)}; once for each. Default: top1 and flops."),
    ] = None,
    images: Images = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Images in a forward pass. Default: 100.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="W", help="Evaluations at a time. Default: as many as the CPUs allow.")
    ] = None,
    cpus_per_trial: Annotated[
        int | None, typer.Option(metavar="C", help="CPUs, and threads, of an evaluation. Default: 1.")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(metavar="G", help="GPUs of an evaluation, or a share of one. Default: 0.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="A", help="A running Ray cluster, HOST:PORT. Default: Ray on this machine.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="I", help="Of the sampler. Default: 0.")] = None,
    time_budget: Annotated[
        str | None, typer.Option(metavar="T", help="Start nothing new after this time, such as 30m.")
    ] = None,
    brood: Annotated[
        int | None, typer.Option(metavar="N", help="Candidates that a worker takes at a time. Default: 4.")
    ] = None,
    prefix_cache: Annotated[
        str | None,
        typer.Option(metavar="M", help="Memory of each worker for what candidates share, or 0. Default: 1G."),
    ] = None,
    race_error: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Bound on the probability that a candidate is stopped early which would have joined the front; "
            "0: all run to the end. Default: 0.05.",
        ),
    ] = None,
    confirm_images: Annotated[
        int | None,
        typer.Option(metavar="N", help="Images on which the front is measured again, or 0. Default: all."),
    ] = None,
    confirm_split: Annotated[
        str | None,
        typer.Option(
            metavar="K", help="Of which split: val, test, or rest (of val, unseen by the search). Default: val."
        ),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Keep an Optuna storage up to date, for optuna-dashboard.", show_default=False
        ),
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option(metavar="K", help="Log to mlflow or wandb; once for each.")
    ] = None,
    trial_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="Longest time of one candidate; its worker is then killed. "
            "Default: 10m, or 30 times what the dense model took if that is longer.",
        ),
    ] = None,
    db_patience: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="How long to wait for a database that is away. Default: 600."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings as TOML, by the flags' names; flags override.")
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Run or resume a study, then print its front."""
    flags = {
        "model": model,
        "data": data,
        "flops_budget": flops_budget,
        "trials": trials,
        "study": study,
        "checkpoint": checkpoint,
        "space": space,
        "sampler": sampler,
        "objective": tuple(objective) if objective else None,
        "images": images,
        "batch_size": batch_size,
        "workers": workers,
        "cpus_per_trial": cpus_per_trial,
        "gpus_per_trial": gpus_per_trial,
        "ray_address": ray_address,
        "seed": seed,
        "time_budget": time_budget,
        "brood": brood,
        "prefix_cache": prefix_cache,
        "race_error": race_error,
        "confirm_images": confirm_images,
        "confirm_split": confirm_split,
        "trial_timeout": trial_timeout,
        "db_patience": db_patience,
    }
    settings = resolve(flags, config)
    beside = read_toml(config) if config is not None else {}
    db, mirror, track = db or beside.get("db"), mirror or beside.get("mirror"), track or beside.get("track")

    from results.export.optuna_mirror import Mirror
    from results.export.schedule_json import front_row
    from results.store.store import Store
    from search.driver.progress import SearchProgress
    from search.driver.runner import run_search
    from search.driver.trackers import MirrorTracker, make_tracker

    url = database(db)
    trackers: list[Tracker] = [make_tracker(name) for name in dict.fromkeys(track or ())]
    if mirror is not None:
        trackers.append(MirrorTracker(Mirror(mirror), partial(read_evaluations, url)))
    with SearchProgress(settings.study) as progress:
        outcome = run_search(settings, url, progress, trackers)
    found = outcome.study
    counts = f"{found.done} done, {found.stopped} stopped early, {found.failed} failed"
    say(f"{settings.study}: {outcome.ending}: {counts}, {outcome.evaluated} of them now")
    if outcome.exit_code:
        say(f"{settings.study}: the same command goes on from here")
        raise typer.Exit(outcome.exit_code)
    with Store.open(url) as store:
        rows = [front_row(e) for e in store.front(outcome.study)]
    print_front(rows, format, marked=outcome.study.confirmed > 0)
