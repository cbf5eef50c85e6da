"""`finetune`: one schedule, or the most promising ones of a study."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.commands.options import Checkpoint, Database, FormatOption, MaxFlops, database, flops_limit, scored
from search.commands.output import Column, Format, compact_flops, print_object, print_rows, say, share_text
from search.commands.schedule_files import check_belongs
from search.commands.training import (
    TRAINED_COLUMNS,
    Accumulate,
    Amp,
    Average,
    Batch,
    CutMix,
    Decay,
    Epochs,
    EvalEvery,
    MixUp,
    Out,
    Rate,
    Seed,
    Smoothing,
    chosen,
)
from spaces import PruningSchedule
from spaces.errors import ScheduleError, UsageError
from spaces.schedule import read_schedule_file

if TYPE_CHECKING:
    from results.records import Study
    from search.data.dataset import ImageData
    from search.training.checkpoint import Scores
    from search.training.distillation import Distillation
    from search.training.finetune import FineTuneResult
    from search.training.ray_workers import Crew
    from search.training.recipe import Pace, Recipe
    from search.training.successive_halving import Halving
    from ssm_models import PrunableModel

FINETUNED_COLUMNS = {
    "schedule": Column("schedule", lambda text: text or "(dense)"),
    "dense_top1": Column("dense top-1", share_text),
    "before_top1": Column("top-1 before", share_text),
    **TRAINED_COLUMNS,
}


def finetune(
    epochs: Epochs,
    out: Out,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.json", help="A schedule that `export` wrote.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="D", help="As for `search`. Default: the study's.", show_default=False)
    ] = None,
    checkpoint: Checkpoint = None,
    study: Annotated[str | None, typer.Option(metavar="S", help="Record the outcome in this study.")] = None,
    db: Database = None,
    top: Annotated[
        int | None, typer.Option(metavar="K", help="In place of FILE: the K most promising schedules of the study.")
    ] = None,
    max_flops: MaxFlops = None,
    eta: Annotated[int, typer.Option(metavar="N", help="With --top: one of N goes on, N times as far.")] = 2,
    seed: Seed = 0,
    lr: Rate = None,
    batch_size: Batch = None,
    weight_decay: Decay = None,
    mixup: MixUp = None,
    cutmix: CutMix = None,
    label_smoothing: Smoothing = None,
    ema: Average = None,
    amp: Amp = None,
    distill: Annotated[
        float | None, typer.Option(metavar="X", help="Share of the loss: the teacher's answers. Default: 0.5.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="By which logits are divided for it. Default: 2.")
    ] = None,
    features: Annotated[
        float | None, typer.Option(metavar="X", help="Share of the loss: its features of kept tokens. Default: 0.")
    ] = None,
    accumulate: Accumulate = 1,
    eval_every: EvalEvery = 1,
    workers: Annotated[int, typer.Option(metavar="W", help="Processes on Ray that share each batch.")] = 1,
    ray_address: Annotated[
        str | None, typer.Option(metavar="A", help="A running Ray cluster, HOST:PORT. Default: Ray on this machine.")
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Fine-tune under a schedule, or the best schedules of a study, with the dense model as teacher."""
    if (file is None) == (top is None):
        raise UsageError("finetune takes one of the two: a schedule's FILE.json, or --study S with --top K")
    if top is None and (max_flops is not None or eta != 2):
        raise UsageError("--max-flops and --eta go with --top")
    if top is not None and study is None:
        raise UsageError("--top takes the schedules of a study: name it with --study")
    content: dict[str, Any] | None = None
    if file is not None:
        content = read_schedule_file(str(file))
        schedule = PruningSchedule.from_dict(content, str(file))
        if not isinstance(content.get("model"), str):
            raise ScheduleError(
                f"{file}: model is {content.get('model')!r}, expected the name of a model, as `export` writes it"
            )

    import ssm_models
    from results.store.store import Store
    from search.data.dataset import open_data
    from search.models import open_model
    from search.training.distillation import Distillation
    from search.training.finetune import finetune_recipe
    from search.training.recipe import Pace
    from search.training.run_folder import held_folder

    found = None
    if study is not None:
        with Store.open(database(db)) as store:
            found = store.study(study)
    name = str(content["model"]) if content is not None else found.spec.model if found else ""
    ssm_models.model_info(name)
    changes: dict[str, Any] = {
        "lr": lr,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "mixup": mixup,
        "cutmix": cutmix,
    }
    changes |= {"label_smoothing": label_smoothing, "ema": ema, "amp": amp}
    recipe = finetune_recipe(epochs, seed=seed, **chosen(changes))
    teaching = Distillation(**chosen({"share": distill, "temperature": temperature, "features": features}))
    pace = Pace(accumulate=accumulate, eval_every=eval_every)
    if data is None:
        if found is None:
            raise UsageError("--data says which images to learn from; only with --study there is a default")
        data = found.spec.data
    if checkpoint is None and found is not None:
        checkpoint = found.spec.checkpoint
    source = open_data(data)
    model = open_model(name, checkpoint, source)
    if content is not None:
        check_belongs(content, str(file), img_size=model.img_size)
        model.layout.check(schedule)
    if found is not None:
        _check_study(found, model, source)
        if content is not None:
            with Store.open(database(db)) as store:
                if store.evaluation(found, schedule.hash) is None:
                    raise UsageError(
                        f"study {study!r} has no evaluation of {schedule.text!r}: name the study it was exported from"
                    )
    job = _Job(name, checkpoint, source, recipe, teaching, pace, found, database(db))
    with _crew(workers, ray_address, checkpoint) as crew:
        if top is None:
            result = job.finetune(schedule, out, "fine-tune", crew)
            job.record(result)
        else:
            assert found is not None
            with held_folder(out):
                halving = _halve(job, out, top, eta, flops_limit(max_flops, found.spec.dense_flops), crew)
    # Ray lets nothing through to stdout while it runs.
    if top is None:
        metric = source.task.metric.name
        print_object(
            {**_result_row(name, result, epochs), "metric": metric}, scored(FINETUNED_COLUMNS, metric), format
        )
        return
    _print_halving(halving, format)


@dataclass(frozen=True)
class _Job:
    """What all fine-tunings of a command have in common."""

    model: str
    checkpoint: str | None
    data: "ImageData"
    recipe: "Recipe"
    distillation: "Distillation"
    pace: "Pace"
    study: "Study | None"
    url: str

    def finetune(
        self,
        schedule: PruningSchedule,
        out: Path,
        title: str,
        crew: "Crew | None",
        until: int | None = None,
        dense: "Scores | None" = None,
    ) -> "FineTuneResult":
        """Fine-tune with a model and a teacher that are opened anew; on a study's images if there is one."""
        from dataclasses import replace

        from search.models import open_model
        from search.training.epoch_log import EpochLog
        from search.training.finetune import finetune_model

        student, teacher = (open_model(self.model, self.checkpoint, self.data) for _ in range(2))
        with EpochLog(title, score=self.data.task.metric.label) as log:
            return finetune_model(
                student,
                teacher,
                self.data,
                schedule,
                self.recipe,
                out=out,
                distillation=self.distillation,
                log=log,
                images=None if self.study is None else self.study.spec.images,
                pace=replace(self.pace, until=until),
                dense=dense,
                crew=crew,
            )

    def record(self, result: "FineTuneResult") -> None:
        """Write an outcome to the study, if there is one, unless it stands there already."""
        if self.study is None:
            return
        from results.store.store import Store

        with Store.open(self.url) as store:
            known = {(one.schedule_hash, one.weights_digest) for one in store.finetunes(self.study)}
            if (result.schedule.hash, result.weights_digest) not in known:
                store.record_finetune(self.study, result.record)
                say(f"recorded in study {self.study.name!r}")


def _check_study(study: "Study", model: "PrunableModel", data: "ImageData") -> None:
    """Find out before the training whether its outcome can be recorded.

    A fine-tuned accuracy stands beside those of the search, so it is measured on the same images.

    Raises:
        UsageError: the study is about other weights or images.
    """
    import ssm_models

    if study.spec.model != model.model_name or study.spec.weights_digest != ssm_models.weights_digest(model):
        raise UsageError(
            f"study {study.name!r} is about other weights than these: give its --checkpoint, or no --study"
        )
    if study.spec.data_digest != data.digest():
        raise UsageError(
            f"study {study.name!r} is about other images than {data.spec}: give its --data, or no --study"
        )


def _crew(workers: int, address: str | None, checkpoint: str | None) -> "Crew | nullcontext[None]":
    """Return the workers, if more than this process is to work; Ray takes seconds to import."""
    if workers == 1 and address is None:
        return nullcontext()
    from search.training.ray_workers import Crew

    return Crew(workers, address, checkpoint)


def _halve(job: _Job, out: Path, top: int, eta: int, max_flops: int | None, crew: "Crew | None") -> "Halving":
    """Fine-tune the most promising schedules of the study, and write the best one to OUT."""
    from results.files import write_json, write_whole
    from results.store.store import Store
    from search.training.checkpoint import WEIGHTS
    from search.training.successive_halving import HalvingPlan, halve, make_rungs, promising

    assert job.study is not None
    make_rungs(top, job.recipe.epochs, eta)  # so that nonsense is refused before anything else
    with Store.open(job.url) as store:
        evaluations = {e.hash: e for e in store.evaluations(job.study)}
    plan = HalvingPlan(job.study.name, top, eta, max_flops, job.recipe.epochs)
    names = plan.fixed(out, lambda: [e.hash for e in promising(evaluations.values(), top, max_flops)])
    if missing := [name for name in names if name not in evaluations]:
        raise UsageError(
            f"{out} holds a fine-tuning of schedules that study {job.study.name!r} does not have, {missing[0]} among "
            "them: name the study and database that it began with, or choose another folder"
        )
    candidates = [evaluations[name] for name in names]
    rungs = make_rungs(len(candidates), job.recipe.epochs, eta)
    say(f"{len(candidates)} schedules; " + ", ".join(f"{r.candidates} to epoch {r.epochs}" for r in rungs))
    dense: list[Scores] = []

    def train(evaluation: Any, epochs: int) -> "FineTuneResult":
        say(f"{evaluation.schedule.text}, {evaluation.flops_ratio:.3f} of dense FLOPs, to epoch {epochs}:")
        known = dense[0] if dense else None
        result = job.finetune(
            evaluation.schedule, out / evaluation.hash, evaluation.hash[:8], crew, until=epochs, dense=known
        )
        dense[:] = [result.dense]
        return result

    halving = halve(candidates, rungs, train, job.record)
    best = halving.contenders[0].evaluation.hash
    for name in (WEIGHTS, "finetune.json"):
        write_whole(out / name, (out / best / name).read_bytes())
    write_json(out / "halving.json", {**plan.settings, **halving.summary()})
    return halving


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
    print_rows(halving.rows(), columns, form)
    first = halving.rungs[0].epochs
    for what, tau, many in (
        (f"after {first} epoch{'s' * (first > 1)}", halving.correlation, len(halving.contenders)),
        ("after all", halving.finished_correlation, sum(row["top1"] is not None for row in halving.rows())),
    ):
        if many > 1:
            found = "not defined, for all are equal" if tau is None else f"{tau:+.2f}"
            say(f"Kendall's τ between the order before fine-tuning and {what}: {found} ({many} schedules)")


def _result_row(model: str, result: "FineTuneResult", epochs: int) -> Mapping[str, Any]:
    return {
        "model": model,
        "schedule": result.schedule.text,
        "hash": result.schedule.hash,
        "dense_top1": result.dense[0],
        "before_top1": result.before[0],
        "checkpoint": str(result.checkpoint),
        "top1": result.fit.top1,
        "loss": result.fit.loss,
        "images": result.fit.images,
        "epochs": epochs,
        "seconds": result.fit.seconds,
        "weights_digest": result.weights_digest,
    }
