"""`finetune`: one schedule, or the most promising ones of a study."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.commands.option_groups import grouped_options
from search.commands.options import (
    Checkpoint,
    ClassOrder,
    Database,
    FormatOption,
    ImgSize,
    MaxFlops,
    database,
    flops_limit,
    scored,
)
from search.commands.output import Column, Format, compact_flops, print_object, print_rows, say, share_text
from search.commands.schedule_files import check_belongs
from search.commands.training import TRAINED_COLUMNS, TrainingOptions, fit_row, given
from search.config import given_size
from spaces import PruningSchedule
from spaces.errors import ScheduleError, UsageError
from spaces.schedule import read_schedule_file

if TYPE_CHECKING:
    from results.records import Evaluation, Study
    from search.data.dataset import ImageData
    from search.training.checkpoint import Scores
    from search.training.finetune import FineTuneResult, Workers
    from search.training.finetune_job import FineTuneJob
    from search.training.successive_halving import Halving, HalvingPlan
    from search.training.training_run import Pace
    from ssm_models import PrunableModel

FINETUNED_COLUMNS = {
    "schedule": Column("schedule", lambda text: text or "(dense)"),
    "dense_top1": Column("dense top-1", share_text),
    "before_top1": Column("top-1 before", share_text),
    **TRAINED_COLUMNS,
}


# --- options --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputOptions:
    """The images, the weights, and the study that the outcome is recorded in."""

    data: Annotated[
        str | None, typer.Option(metavar="D", help="As for `search`. Default: the study's.", show_default=False)
    ] = None
    checkpoint: Checkpoint = None
    class_order: ClassOrder = None
    img_size: ImgSize = None
    study: Annotated[str | None, typer.Option(metavar="S", help="Record the outcome in this study.")] = None
    db: Database = None

    def open_study(self) -> "Study | None":
        """Return the study, if one is named."""
        from results.store.store import Store

        if self.study is None:
            return None
        with Store.open(database(self.db)) as store:
            return store.study(self.study)


@dataclass(frozen=True)
class HalvingOptions:
    """Several schedules of a study in place of a file."""

    top: Annotated[
        int | None, typer.Option(metavar="K", help="In place of FILE: the K most promising schedules of the study.")
    ] = None
    max_flops: MaxFlops = None
    eta: Annotated[int, typer.Option(metavar="N", help="With --top: one in N goes on, N times as far.")] = 2


@dataclass(frozen=True)
class DistillationOptions:
    """How much the student learns from the teacher."""

    distill: Annotated[
        float | None, typer.Option(metavar="X", help="Weight of the teacher's logits in the loss. Default: 0.5.")
    ] = None
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="Temperature of these logits. Default: 2.")
    ] = None
    features: Annotated[
        float | None,
        typer.Option(metavar="X", help="Weight of the teacher's features of kept tokens in the loss. Default: 0."),
    ] = None


@dataclass(frozen=True)
class WorkerOptions:
    """The processes that train."""

    workers: Annotated[int, typer.Option(metavar="W", help="Processes on Ray that share each batch.")] = 1
    ray_address: Annotated[
        str | None, typer.Option(metavar="A", help="A running Ray cluster, HOST:PORT. Default: Ray on this machine.")
    ] = None

    def open(
        self, checkpoint: str | None, img_size: tuple[int, int] | None
    ) -> "AbstractContextManager[Workers | None]":
        """Return the workers; None if this process trains alone, since Ray takes seconds to import."""
        if self.workers == 1 and self.ray_address is None:
            return nullcontext()
        from search.training.ray_workers import RayWorkers

        return RayWorkers(self.workers, self.ray_address, checkpoint, img_size=img_size)


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
    study = inputs.open_study()
    tuner = FineTuner.prepare(content["model"], study, training, inputs, distillation)
    model = tuner.open_model()
    check_belongs(content, str(file), img_size=model.img_size)
    model.layout.check(schedule)
    tuner.check_study(model)
    tuner.check_evaluated(schedule)
    with workers.open(tuner.checkpoint, tuner.img_size) as processes:
        result = tuner.finetune(schedule, training.out, "fine-tune", processes)
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

    from search.training.run_folder import held_folder
    from search.training.successive_halving import HalvingPlan

    tuner = FineTuner.prepare(study.spec.model, study, training, inputs, distillation)
    tuner.check_study(tuner.open_model())
    with workers.open(tuner.checkpoint, tuner.img_size) as processes, held_folder(training.out):
        limit = flops_limit(options.max_flops, study.spec.dense_flops)
        plan = HalvingPlan(study.name, options.top, options.eta, limit, training.epochs)
        halving = _halve(tuner, plan, training.out, processes)
    _print_halving(halving, form)


def _halve(tuner: "FineTuner", plan: "HalvingPlan", out: Path, workers: "Workers | None") -> "Halving":
    """Fine-tune the schedules of a plan, each in a folder of its own below OUT, and write the best one to OUT."""
    from search.training.successive_halving import halve, make_rungs

    make_rungs(plan.top, plan.epochs, plan.eta)  # refuses bad values before anything is written
    candidates = plan.candidates(out, tuner.evaluations())
    rungs = make_rungs(len(candidates), plan.epochs, plan.eta)
    say(f"{len(candidates)} schedules; " + ", ".join(f"{r.candidates} to epoch {r.epochs}" for r in rungs))
    dense: Scores | None = None

    def train(evaluation: "Evaluation", until: int) -> "FineTuneResult":
        nonlocal dense
        say(f"{evaluation.schedule.text}, {evaluation.flops_ratio:.3f} of dense FLOPs, to epoch {until}:")
        one = tuner.until(until, dense)
        result = one.finetune(evaluation.schedule, out / evaluation.hash, evaluation.hash[:8], workers)
        dense = result.dense
        return result

    halving = halve(candidates, rungs, train, tuner.record)
    plan.write_outcome(out, halving)
    return halving


# --- what both have in common ---------------------------------------------------------------------------


@dataclass(frozen=True)
class FineTuner:
    """Fine-tunes schedules of one model by equal settings.

    Attributes:
        model, checkpoint, img_size: as for `open_model`.
        data: the images.
        job: the settings, with the dense schedule in place of the one to fine-tune under.
        pace: how trainings proceed.
        study: the study that outcomes are recorded in, if any.
        url: address of its database.
    """

    model: str
    checkpoint: str | None
    data: "ImageData"
    job: "FineTuneJob"
    pace: "Pace"
    study: "Study | None"
    url: str
    img_size: tuple[int, int] | None = None

    @classmethod
    def prepare(
        cls,
        model: str,
        study: "Study | None",
        training: TrainingOptions,
        inputs: InputOptions,
        distillation: DistillationOptions,
    ) -> "FineTuner":
        """Check the options and open the data; the study's data and weights are the defaults.

        Raises:
            UnknownNameError, UsageError: an option makes no sense, or there is neither --data nor a study.
            DataError: the data is missing or broken.
        """
        import ssm_models
        from search.data.dataset import open_data
        from search.study_data import open_study_data
        from search.training.distillation import Distillation
        from search.training.finetune import finetune_recipe
        from search.training.finetune_job import FineTuneJob

        ssm_models.model_info(model)
        recipe = finetune_recipe(training.epochs, seed=training.seed, **training.given)
        terms = {"share": distillation.distill, "temperature": distillation.temperature}
        teaching = Distillation(**given({**terms, "features": distillation.features}))
        pace = training.pace
        data, checkpoint = inputs.data, inputs.checkpoint
        size = given_size(inputs.img_size)
        if study is not None:
            checkpoint = study.spec.checkpoint if checkpoint is None else checkpoint
            size = study.spec.img_size if size is None else size
            source = open_study_data(study.spec, data, inputs.class_order)
        elif data is not None:
            source = open_data(data, class_order=inputs.class_order)
        else:
            raise UsageError("--data says which images to learn from; only with --study there is a default")
        job = FineTuneJob(PruningSchedule(), recipe, teaching)
        if study is not None:
            job = replace(job, images=study.spec.images, order=study.spec.order)
        return cls(model, checkpoint, source, job, pace, study, database(inputs.db), size)

    def until(self, epoch: int, dense: "Scores | None") -> "FineTuner":
        """Return one that stops after an epoch and takes the dense model's scores from another fine-tuning."""
        return replace(self, pace=replace(self.pace, until=epoch), job=replace(self.job, dense=dense))

    def open_model(self) -> "PrunableModel":
        """Open the model with its weights."""
        from search.models import open_model

        return open_model(self.model, self.checkpoint, self.data, self.img_size)

    def check_study(self, model: "PrunableModel") -> None:
        """Raise a UsageError if the outcome could not be recorded: the study has other weights or images.

        A fine-tuned accuracy stands beside those of the search, so it is measured on the same images.
        """
        import ssm_models
        from search.study_data import check_reading

        study = self.study
        if study is None:
            return
        if study.spec.model != model.model_name or study.spec.weights_digest != ssm_models.weights_digest(model):
            raise UsageError(
                f"study {study.name!r} is about other weights than these: give its --checkpoint, or no --study"
            )
        if study.spec.data_digest != self.data.digest():
            raise UsageError(
                f"study {study.name!r} is about other images than {self.data.spec}: give its --data, or no --study"
            )
        if tuple(study.spec.img_size) != tuple(model.img_size):
            height, width = study.spec.img_size
            raise UsageError(
                f"study {study.name!r} is about images of {height}×{width} pixels: give --img-size {height}x{width}, "
                "or no --study"
            )
        check_reading(study.spec, self.data, ["val"])

    def check_evaluated(self, schedule: PruningSchedule) -> None:
        """Raise a UsageError if the outcome could not be recorded: the study has no evaluation of the schedule."""
        from results.store.store import Store

        if self.study is None:
            return
        with Store.open(self.url) as store:
            if store.evaluation(self.study, schedule.hash) is None:
                raise UsageError(
                    f"study {self.study.name!r} has no evaluation of {schedule.text!r}: "
                    "name the study it was exported from"
                )

    def evaluations(self) -> "list[Evaluation]":
        """Return the finished evaluations of the study."""
        from results.store.store import Store

        assert self.study is not None
        with Store.open(self.url) as store:
            return store.evaluations(self.study)

    def finetune(
        self, schedule: PruningSchedule, out: Path, title: str, workers: "Workers | None"
    ) -> "FineTuneResult":
        """Fine-tune under a schedule, with model and teacher opened anew."""
        from search.training.epoch_log import EpochLog
        from search.training.finetune import finetune_model
        from search.training.training_run import TrainingRun

        student, teacher = self.open_model(), self.open_model()
        job = replace(self.job, schedule=schedule)
        with EpochLog(title, score=self.data.task.metric.label) as log:
            run = TrainingRun(out, pace=self.pace, observer=log)
            return finetune_model(student, teacher, self.data, job, run, workers=workers)

    def record(self, result: "FineTuneResult") -> None:
        """Record an outcome in the study, if there is one."""
        if self.study is None:
            return
        from results.store.store import Store

        with Store.open(self.url) as store:
            if store.record_finetune(self.study, result.record):
                say(f"recorded in study {self.study.name!r}")


# --- output ---------------------------------------------------------------------------------------------


def _print_halving(halving: "Halving", form: Format) -> None:
    columns = {
        "schedule": Column("schedule"),
        "flops": Column("FLOPs", compact_flops, right=True),
        "flops_ratio": Column("of dense", share_text, right=True),
        "before_top1": Column("before", share_text, right=True),
        **{f"epoch_{r.epochs}": Column(f"epoch {r.epochs}", share_text, right=True) for r in halving.rungs[:-1]},
        "top1": Column("after", share_text, right=True),
        "hash": Column("hash"),
    }
    rows = halving.rows()
    print_rows(rows, columns, form)
    first = halving.rungs[0].epochs
    for what, tau, count in (
        (f"after {first} epoch{'s' * (first > 1)}", halving.correlation, len(rows)),
        ("after all", halving.finished_correlation, sum(row["top1"] is not None for row in rows)),
    ):
        if count > 1:
            found = "undefined, because all are equal" if tau is None else f"{tau:+.2f}"
            say(f"Kendall's τ between the ranking before fine-tuning and {what}: {found} ({count} schedules)")


def _result_row(model: str, result: "FineTuneResult", epochs: int) -> Mapping[str, Any]:
    return {
        "model": model,
        "schedule": result.schedule.text,
        "hash": result.schedule.hash,
        "dense_top1": result.dense[0],
        "before_top1": result.before[0],
        "checkpoint": str(result.checkpoint),
        **fit_row(result.fit, epochs),
        "weights_digest": result.weights_digest,
    }
