"""Fine-tunings by equal settings: what the commands for one schedule and for several have in common."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from search.commands.finetuning_options import DistillationOptions, InputOptions
from search.commands.options import database
from search.commands.output import say
from search.commands.training import TrainingOptions, given
from search.config import given_size
from spaces import PruningSchedule
from spaces.errors import UsageError

if TYPE_CHECKING:
    from results.records import Evaluation, Study
    from search.data.dataset import ImageData
    from search.data.image_set import ImageChoice, ImageSet, StudyImages
    from search.training.checkpoint import Scores
    from search.training.finetune import FineTuneResult, Workers
    from search.training.finetune_job import FineTuneJob
    from search.training.held_out import HeldOutScore
    from search.training.training_run import Pace
    from ssm_models import PrunableModel


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
        return cls(model, checkpoint, source, job, pace, study, database(inputs.db), size)

    def until(self, epoch: int, dense: "Scores | None") -> "FineTuner":
        """Return one that stops after an epoch and takes the dense model's scores from another fine-tuning."""
        return replace(self, pace=replace(self.pace, until=epoch), job=replace(self.job, dense=dense))

    def open_model(self) -> "PrunableModel":
        """Open the model with its weights."""
        from search.models import open_model

        return open_model(self.model, self.checkpoint, self.data, self.img_size)

    def check_study(self, model: "PrunableModel") -> None:
        """Raise a UsageError if the outcome could not be recorded: the study has other weights or images."""
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

    def check_split(self, split: str) -> None:
        """Raise a UsageError if a split has other images than those on which the study confirms its front."""
        from search.study_data import check_reading

        if self.study is None or split == "val":
            return
        spec = self.study.spec
        if spec.confirm_split == split and spec.confirm_digest not in ("", self.data.digest(split)):
            raise UsageError(
                f"study {spec.name!r} confirms on other images than the {split} split of {self.data.spec}"
            )
        check_reading(spec, self.data, [split])

    def images_to_score(self, asked: "ImageChoice", of_file: "StudyImages | None", out: Path) -> "ImageSet | None":
        """Return the images that all scores are of, and say so where they chose the schedule; None for all of val.

        They are those that are asked for, else those that a run in the folder OUT began with, else those that the
        study confirms on. Without a study, a schedule file names its images; they count if --data has them.

        Raises:
            UsageError: two things say which images, or there are none; or they are not the study's.
            DataError: their split is missing.
        """
        from search.data.image_order import DEFAULT_ORDER
        from search.study_data import study_images
        from search.training.trainer import begun_images

        known = of_file if self.study is None else study_images(self.study.spec)
        if known is not None and known.digest != self.data.digest():
            if asked.split == "rest":
                asked.image_set_of(self.data, known)  # refuses
            known = None  # other images chose the schedule
        if known is not None:
            check_skip(asked, known.where)
        begun = begun_images(out, self.data, DEFAULT_ORDER if known is None else known.order)
        if asked.split is not None or asked.skip is not None or (asked.given and known is None):
            images = asked.image_set_of(self.data, known)
        elif begun is not None and (not asked.given or asked.images == begun.images):
            images = begun
        elif known is not None:
            images = known.score_images(self.data).first(asked.images)
        else:
            return None
        self.check_split(images.split)
        if known is not None and (note := known.overlap_note(images)):
            say(note)
        return images

    def score_on(self, images: "ImageSet | None") -> "FineTuner":
        """Return one that scores on these images; None for all of val."""
        return replace(self, job=replace(self.job, images=images))

    def score(self, model: "PrunableModel", images: "ImageSet") -> "HeldOutScore":
        """Score a model under its schedule on other images than those that its training is followed on."""
        from search.training.held_out import score_held_out

        return score_held_out(model, self.data, images)

    def score_untrained(self, schedule: PruningSchedule, images: "ImageSet") -> "HeldOutScore":
        """Score the initial weights under a schedule."""
        model = self.open_model()
        model.set_schedule(schedule)
        return self.score(model, images)

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
    ) -> "tuple[FineTuneResult, PrunableModel]":
        """Fine-tune under a schedule, with model and teacher opened anew; return the outcome and the model."""
        from search.training.epoch_log import EpochLog
        from search.training.finetune import finetune_model
        from search.training.training_run import TrainingRun

        student, teacher = self.open_model(), self.open_model()
        job = replace(self.job, schedule=schedule)
        with EpochLog(title, score=self.data.task.metric.label, split=job.split) as log:
            run = TrainingRun(out, pace=self.pace, observer=log)
            return finetune_model(student, teacher, self.data, job, run, workers=workers), student

    def record(self, result: "FineTuneResult") -> None:
        """Record an outcome in the study, if there is one."""
        if self.study is None:
            return
        from results.store.store import Store

        with Store.open(self.url) as store:
            if store.record_finetune(self.study, result.record):
                say(f"recorded in study {self.study.name!r}")


def check_skip(asked: "ImageChoice", where: str) -> "ImageChoice":
    """Return the choice; UsageError if it says how many images to leave out, but not of which split."""
    if asked.skip is not None and asked.split is None:
        raise UsageError(
            f"--skip {asked.skip} goes with --split, for {where} names images itself: --split val --skip {asked.skip}"
        )
    return asked
