"""`finetune`: one schedule, or the most promising ones of a study."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.commands.finetuner import FineTuner, check_skip
from search.commands.finetuning_options import DistillationOptions, HalvingOptions, InputOptions, WorkerOptions
from search.commands.option_groups import grouped_options
from search.commands.options import (
    FormatOption,
    flops_limit,
    scored,
)
from search.commands.output import Column, Format, compact_flops, print_object, print_rows, say, share_text
from search.commands.schedule_files import check_belongs, images_of_file, size_to_open
from search.commands.training import TRAINED_COLUMNS, TrainingOptions, fit_row
from spaces import PruningSchedule
from spaces.errors import ScheduleError, UsageError
from spaces.schedule import read_schedule_file

if TYPE_CHECKING:
    from results.rank_correlation import RankCorrelation
    from results.records import Evaluation
    from search.training.checkpoint import Scores
    from search.training.finetune import FineTuneResult, Workers
    from search.training.successive_halving import Halving, HalvingPlan, Trained

FINETUNED_COLUMNS = {
    "schedule": Column("schedule", lambda text: text or "(dense)"),
    "dense_top1": Column("dense top-1", share_text),
    "before_top1": Column("top-1 before", share_text),
    **TRAINED_COLUMNS,
    "images": Column("images"),
    "scored_on": Column("all scores on"),
}


# --- the command ----------------------------------------------------------------------------------------


@grouped_options
def finetune(
    training: TrainingOptions,
    inputs: InputOptions,
    halving: HalvingOptions,
    distillation: DistillationOptions,
    workers: WorkerOptions,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.json", help="A schedule that `export` wrote.", show_default=False)
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Fine-tune under a schedule, or the best schedules of a study, with the dense model as teacher."""
    if (file is None) == (halving.top is None):
        raise UsageError("finetune takes one of the two: a schedule's FILE.json, or --study S with --top K")
    if file is not None:
        if halving.max_flops is not None or halving.eta != 2:
            raise UsageError("--max-flops and --eta go with --top")
        finetune_file(file, training, inputs, distillation, workers, format)
    else:
        finetune_study(halving, training, inputs, distillation, workers, format)


def finetune_file(
    file: Path,
    training: TrainingOptions,
    inputs: InputOptions,
    distillation: DistillationOptions,
    workers: WorkerOptions,
    form: Format,
) -> None:
    """Fine-tune under the schedule of a file, and print the outcome.

    Raises:
        ScheduleError: the file is no schedule of a model.
        UsageError: the study does not fit; see `FineTuner.check_study`.
    """
    content = read_schedule_file(str(file))
    schedule = PruningSchedule.from_dict(content, str(file))
    if not isinstance(content.get("model"), str):
        raise ScheduleError(
            f"{file}: model is {content.get('model')!r}, expected the name of a model, as `export` writes it"
        )
    check_belongs(content, str(file))
    study, of_file = inputs.open_study(), images_of_file(content, str(file))
    tuner = FineTuner.prepare(content["model"], study, training, inputs, distillation)
    if study is None:
        tuner = replace(tuner, img_size=size_to_open(inputs.img_size, tuner.checkpoint, content))
    model = tuner.open_model()
    check_belongs(content, str(file), img_size=model.img_size)
    model.layout.check(schedule)
    tuner.check_study(model)
    tuner.check_evaluated(schedule)
    tuner = tuner.score_on(tuner.images_to_score(inputs.choice, of_file, training.out))
    with workers.open(tuner.checkpoint, tuner.img_size) as processes:
        result, _ = tuner.finetune(schedule, training.out, "fine-tune", processes)
        tuner.record(result)
    metric = tuner.data.task.metric.name  # printed here, because Ray lets nothing through to stdout while it runs
    row = {**_result_row(content["model"], result, training.epochs), "metric": metric}
    print_object(row, scored(FINETUNED_COLUMNS, metric), form)


def finetune_study(
    options: HalvingOptions,
    training: TrainingOptions,
    inputs: InputOptions,
    distillation: DistillationOptions,
    workers: WorkerOptions,
    form: Format,
) -> None:
    """Fine-tune the most promising schedules of a study by successive halving, and print the outcome.

    Raises:
        UsageError: no study is named, it does not fit (see `FineTuner.check_study`), or it has no suitable schedule.
    """
    study = inputs.open_study()
    if study is None or options.top is None:
        raise UsageError("--top takes the schedules of a study: name it with --study")

    from search.study_data import study_images
    from search.training.halving_images import HalvingImages
    from search.training.run_folder import held_folder
    from search.training.successive_halving import HalvingPlan, make_rungs

    tuner = FineTuner.prepare(study.spec.model, study, training, inputs, distillation)
    tuner.check_study(tuner.open_model())
    make_rungs(options.top, training.epochs, options.eta)  # refuses bad values before anything is read or written
    known, asked = study_images(study.spec), check_skip(inputs.choice, f"study {study.name!r}")
    images = HalvingImages.begun(training.out, known, tuner.data)
    if images is None:
        images = HalvingImages.of(known, tuner.data, asked)
    elif asked.given and asked.image_set_of(tuner.data, known) != images.reported_on:
        raise UsageError(
            f"{training.out} holds a fine-tuning whose scores are of {images.reported_on.text}; leave --split, "
            "--skip and --images out, or choose another folder"
        )
    say(f"rungs are decided on {images.chosen_on.text}; all scores before and after are of {images.reported_on.text}")
    if images.reported_on.overlap(images.chosen_on) or images.reported_on.overlap(known.searched):
        say(known.overlap_note(images.reported_on) or "")
    tuner = tuner.score_on(images.chosen_on)
    tuner.check_split(images.reported_on.split)
    with workers.open(tuner.checkpoint, tuner.img_size) as processes, held_folder(training.out):
        limit = flops_limit(options.max_flops, study.spec.dense_flops)
        plan = HalvingPlan(study.name, options.top, options.eta, limit, training.epochs, images)
        halving = _halve(tuner, plan, training.out, processes)
    _print_halving(halving, form)


def _halve(tuner: FineTuner, plan: "HalvingPlan", out: Path, workers: "Workers | None") -> "Halving":
    """Fine-tune the schedules of a plan, each in a folder of its own below OUT, and write the best one to OUT."""
    from search.training.finetune import report_scores
    from search.training.held_out import HeldOutFile
    from search.training.successive_halving import Trained, halve, make_rungs

    assert plan.images is not None
    reported = plan.images.reported_on
    candidates = plan.candidates(out, tuner.evaluations())
    rungs = make_rungs(len(candidates), plan.epochs, plan.eta)
    say(f"{len(candidates)} schedules; " + ", ".join(f"{r.candidates} to epoch {r.epochs}" for r in rungs))
    dense = HeldOutFile(out, reported).measured("dense", lambda: tuner.score_untrained(PruningSchedule(), reported))
    followed: Scores | None = None  # the dense model's scores on the images that decide the rungs

    def train(evaluation: "Evaluation", until: int) -> "Trained":
        nonlocal followed
        schedule, folder = evaluation.schedule, out / evaluation.hash
        kept = HeldOutFile(folder, reported)
        say(f"{schedule.text}, {evaluation.flops_ratio:.3f} of dense FLOPs, to epoch {until}:")
        result, model = tuner.until(until, followed).finetune(schedule, folder, evaluation.hash[:8], workers)
        followed, chosen = result.dense, result.fit.top1
        before = kept.measured("before", lambda: tuner.score_untrained(schedule, reported))
        after = kept.read(f"epoch {until}")
        if result.fit.weights_epoch == until:  # else the weights went on since
            after = kept.measured(f"epoch {until}", lambda: tuner.score(model, reported))
        if result.checkpoint is not None and after is not None:
            scores = {"dense": dense, "before": before, "after": after}
            pairs = {name: (score.top1, score.loss) for name, score in scores.items()}
            result = report_scores(result, tuner.data, reported, pairs)
        return Trained(result, chosen, before, after)

    halving = halve(candidates, rungs, reported, train, tuner.record)
    plan.write_outcome(out, halving)
    return halving


# --- output ---------------------------------------------------------------------------------------------


def _print_halving(halving: "Halving", form: Format) -> None:
    columns = {
        "schedule": Column("schedule"),
        "flops": Column("FLOPs", compact_flops, right=True),
        "flops_ratio": Column("of dense", share_text, right=True),
        **{f"epoch_{r.epochs}": Column(f"rung, epoch {r.epochs}", share_text, right=True) for r in halving.rungs},
        "before_top1": Column("before", share_text, right=True),
        "top1": Column("after", share_text, right=True),
        "scored_on": Column("before and after on"),
        "hash": Column("hash"),
    }
    print_rows(halving.rows(), columns, form)
    first = halving.rungs[0].epochs
    for what, found in (
        (f"after {first} epoch{'s' * (first > 1)}", halving.correlation),
        ("after all", halving.finished_correlation),
    ):
        if found is not None:
            say(f"Kendall's τ between the ranking before fine-tuning and {what}: {_tau_text(found)}")
    if halving.correlation is not None:
        say("It is by disjoint halves of the images, describes these chosen schedules only, and no others.")


def _tau_text(found: "RankCorrelation") -> str:
    of = f"({found.schedules} schedules, {found.images} images)"
    if found.tau is None:
        return f"undefined, because all scores of a half are equal {of}"
    interval = "no interval" if found.low is None else f"{found.low:+.2f} to {found.high:+.2f} at 95 % over images"
    return f"{found.tau:+.2f}, {interval} {of}"


def _result_row(model: str, result: "FineTuneResult", epochs: int) -> Mapping[str, Any]:
    return {
        "model": model,
        "schedule": result.schedule.text,
        "hash": result.schedule.hash,
        "dense_top1": result.dense[0],
        "before_top1": result.before[0],
        "checkpoint": str(result.checkpoint),
        "scored_on": None if result.scored_on is None else result.scored_on.text,
        **fit_row(result.fit, epochs),
        "weights_digest": result.weights_digest,
    }
