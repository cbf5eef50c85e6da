"""Fine-tuning under a schedule, with the dense model as teacher, and its record for the store."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import ssm_models
from search.data.dataset import ImageData, open_data
from search.data.image_set import ImageSet
from search.training.finetune import finetune_model, finetune_recipe
from search.training.finetune_job import FineTuneJob
from search.training.training_run import Pace, TrainingRun
from spaces import PruningSchedule, errors
from ssm_models import PrunableModel
from tests.search.pictures import write_brightness

SCHEDULE = PruningSchedule.parse("3:0.5,6:0.5;importance=l2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return open_data(f"folder:{write_brightness(tmp_path_factory.mktemp('images'))}")


def nano() -> ssm_models.PrunableModel:
    torch.manual_seed(1)
    return ssm_models.create_model("vim_nano", num_classes=2, img_size=16)


class TestFinetuneModel:
    def test_the_student_learns_under_the_schedule_and_the_teacher_is_unchanged(
        self, data: ImageData, tmp_path: Path
    ) -> None:
        model, teacher = nano(), nano()
        before = ssm_models.weights_digest(teacher)
        recipe = finetune_recipe(3, lr=1e-3, batch_size=12)
        result = finetune_model(
            model, teacher, data, FineTuneJob(SCHEDULE, recipe), TrainingRun(tmp_path), command="c"
        )
        assert (model.schedule, teacher.schedule) == (SCHEDULE, PruningSchedule())
        assert ssm_models.weights_digest(teacher) == before != result.weights_digest
        losses = [line["train_loss"] for line in result.fit.curve]
        assert losses[-1] < losses[0]
        assert result.before != result.dense

        # the written weights reproduce the scores under the schedule
        again = ssm_models.build("vim_nano", result.checkpoint)
        again.set_schedule(SCHEDULE)
        images, labels = next(iter(data.batches(again.pretrained_cfg, again.img_size)))
        with torch.inference_mode():
            logits = again.eval()(images)
        assert float(F.cross_entropy(logits, labels)) == pytest.approx(result.fit.loss, abs=1e-5)

        written = json.loads((tmp_path / "finetune.json").read_text())
        assert (written["schedule"], written["schedule_hash"]) == (SCHEDULE.text, SCHEDULE.hash)
        assert (written["before_loss"], written["dense_loss"]) == (result.before[1], result.dense[1])
        assert (written["teacher_digest"], written["command"]) == (before, "c")

        record = result.record
        assert (record.schedule_hash, record.epochs, record.images) == (SCHEDULE.hash, 3, 16)
        assert (record.top1, record.weights_digest) == (result.fit.top1, result.weights_digest)
        assert record.config["distillation"] == {"share": 0.5, "temperature": 2.0, "features": 0.0}

    def test_scores_are_over_the_given_number_of_images(self, data: ImageData, tmp_path: Path) -> None:
        model = nano()
        recipe = finetune_recipe(1, batch_size=12)
        held_out = ImageSet("val", 5, skip=8)
        job = FineTuneJob(SCHEDULE, recipe, images=held_out)
        result = finetune_model(model, nano(), data, job, TrainingRun(tmp_path))
        images, labels = next(iter(data.batches(model.pretrained_cfg, model.img_size, images=5, skip=8)))
        with torch.inference_mode():
            right = int((model.eval()(images).argmax(1) == labels).sum())
        record = result.record
        assert (record.images, record.top1) == (5, right / 5)
        assert (record.split, record.skip, record.order) == ("val", 8, "shuffled")
        assert (record.data_digest, record.before_top1) == (data.digest("val"), result.before[0])
        written = json.loads((tmp_path / "finetune.json").read_text())
        assert written["scored_on"] == {**asdict(held_out), "data_digest": data.digest("val")}

    def test_another_schedule_in_the_same_folder_is_refused(self, data: ImageData, tmp_path: Path) -> None:
        recipe = finetune_recipe(1, batch_size=12)
        finetune_model(nano(), nano(), data, FineTuneJob(SCHEDULE, recipe), TrainingRun(tmp_path))
        with pytest.raises(errors.UsageError, match=r"schedule '3:0.5,6:0.5;importance=l2' there, '5:0.5' now"):
            finetune_model(
                nano(), nano(), data, FineTuneJob(PruningSchedule.parse("5:0.5"), recipe), TrainingRun(tmp_path)
            )

    def test_a_schedule_that_does_not_fit_writes_nothing(self, data: ImageData, tmp_path: Path) -> None:
        job = FineTuneJob(PruningSchedule.parse("99:0.5"), finetune_recipe(1))
        with pytest.raises(errors.ScheduleError):
            finetune_model(nano(), nano(), data, job, TrainingRun(tmp_path / "out"))
        assert not (tmp_path / "out").exists()


class Elsewhere:
    """Workers that train in this process, with models of their own."""

    count = 3

    def __init__(self, epochs: int | None = None) -> None:
        self.pace, self.calls = Pace(until=epochs), 0

    def assign(
        self, job: FineTuneJob, model: PrunableModel, teacher: PrunableModel, data: ImageData, run: TrainingRun
    ) -> Callable[[], None]:
        def train() -> None:
            self.calls += 1
            job.trainer(nano(), nano(), data, TrainingRun(run.out, pace=self.pace)).fit()

        return train


class TestWorkers:
    RECIPE = finetune_recipe(2, batch_size=12)

    def test_they_train_in_place_of_this_process(self, data: ImageData, tmp_path: Path) -> None:
        job, workers = FineTuneJob(SCHEDULE, self.RECIPE), Elsewhere()
        here = finetune_model(nano(), nano(), data, job, TrainingRun(tmp_path / "here"))
        for _ in range(2):  # the second time nothing is left to train
            model, run = nano(), TrainingRun(tmp_path / "there")
            there = finetune_model(model, nano(), data, job, run, workers=workers)
            assert there.weights_digest == ssm_models.weights_digest(model) == here.weights_digest
            assert (there.fit.top1, there.before, there.dense) == (here.fit.top1, here.before, here.dense)
            assert (here.config["workers"], there.config["workers"]) == (1, 3)
        assert workers.calls == 1

    def test_too_few_epochs_are_an_error(self, data: ImageData, tmp_path: Path) -> None:
        job = FineTuneJob(SCHEDULE, self.RECIPE)
        with pytest.raises(errors.TrainingError, match="the workers left 1 epochs of 2"):
            finetune_model(nano(), nano(), data, job, TrainingRun(tmp_path), workers=Elsewhere(1))
