"""Segmentation as a task: scores, losses, evaluation and training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import ssm_models
from results.objectives import share_interval
from results.records import Evaluation
from search.data.classification import CLASSIFICATION
from search.data.dataset import open_data
from search.data.segmentation import SEGMENTATION, Confusion, cross_entropy, dice_loss
from search.data.tiles import NO_CLASS
from search.driver.search_setup import stored_objectives
from search.evaluation.evaluator import Evaluator
from search.evaluation.race import Entry
from search.training.distillation import Distillation
from search.training.finetune import finetune_model, finetune_recipe
from search.training.finetune_job import FineTuneJob
from search.training.recipe import Recipe
from search.training.scoring import task_scores
from search.training.train import train_model
from search.training.training_run import TrainingRun
from spaces import PruningSchedule
from spaces.errors import DataError, UsageError
from ssm_models import PrunableModel
from tests.search.landscapes import write_landscapes


def scores(answers: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits that give these answers."""
    return F.one_hot(answers, classes).movedim(-1, 1).float() * 9


@st.composite
def answered(draw: st.DrawFn) -> tuple[int, torch.Tensor, torch.Tensor]:
    classes = draw(st.integers(2, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = random.integers(0, classes, (3, 4, 5))
    truth[random.random(truth.shape) < 0.2] = NO_CLASS
    answers = np.where(random.random(truth.shape) < 0.5, truth % classes, random.integers(0, classes, truth.shape))
    return classes, torch.from_numpy(truth), torch.from_numpy(answers)


@given(answered())
def test_scores_match_their_definitions(drawn: tuple[int, torch.Tensor, torch.Tensor]) -> None:
    classes, truth, answers = drawn
    tally = Confusion(classes)
    for part in range(3):  # in batches of one
        tally.add(scores(answers[part : part + 1], classes), truth[part : part + 1])
    known = truth != NO_CLASS
    ious, f1s = {}, []
    for c in range(classes):
        true, given_ = (truth == c) & known, (answers == c) & known
        both, either = int((true & given_).sum()), int((true | given_).sum())
        if either:
            ious[f"iou {c}"] = both / either
            f1s.append(2 * both / (both + either))
    assert tally.images == 3
    assert tally.score == pytest.approx(np.mean(list(ious.values())))
    details = tally.details([str(c) for c in range(classes)])
    assert details.pop("mf1") == pytest.approx(np.mean(f1s))
    assert details.pop("oa") == pytest.approx(float((truth == answers)[known].double().mean()))
    assert details == pytest.approx(ious)


@given(answered())
def test_losses_average_over_images_and_ignore_unlabelled_pixels(
    drawn: tuple[int, torch.Tensor, torch.Tensor],
) -> None:
    classes, truth, answers = drawn
    logits = scores(answers, classes) / 5
    whole = SEGMENTATION.loss(logits, truth, 0.1)
    parts = [SEGMENTATION.loss(logits[i : i + 1], truth[i : i + 1], 0.1) for i in range(3)]
    assert whole.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)
    blind = torch.where((truth == NO_CLASS)[:, None], torch.randn(3, classes, 4, 5), logits)
    assert SEGMENTATION.loss(blind, truth, 0.1).item() == pytest.approx(whole.item(), rel=1e-5)


def test_dice_of_a_known_case() -> None:
    truth = torch.tensor([[[0, 0, 1, NO_CLASS]]])
    logits = torch.zeros(1, 3, 1, 4)  # a third for each class
    expected = 1 - (((2 * 2 / 3 + 1) / (1 + 2 + 1)) + ((2 * 1 / 3 + 1) / (1 + 1 + 1))) / 2  # class 2 is not there
    assert dice_loss(logits, truth).item() == pytest.approx(expected)
    nothing = torch.full_like(truth, NO_CLASS)
    assert dice_loss(logits, nothing).item() == cross_entropy(logits, nothing, 0.0).item() == 0
    assert dice_loss(scores(torch.tensor([[[0, 0, 1, 2]]]), 3) * 5, truth).item() == pytest.approx(0, abs=1e-4)


def test_the_divergence_averages_over_pixels() -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    flat = [x.movedim(1, -1).reshape(-1, 3) for x in (a, b)]
    assert SEGMENTATION.divergence(a, b, 2.0).item() == pytest.approx(
        CLASSIFICATION.divergence(*flat, 2.0).item(), rel=1e-5
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_landscapes(tmp_path / "lands")


def segmenter(name: str = "vmamba_nano_segmenter") -> PrunableModel:
    torch.manual_seed(0)
    return ssm_models.create_model(name, 2, 32)


@pytest.mark.parametrize("name", ["vmamba_nano_segmenter", "cvmh_unet_nano"])
def test_evaluation(root: Path, name: str) -> None:
    """Equal to running the model alone, whatever candidates share; and without races."""
    data, model = open_data(f"segmentation:{root}"), segmenter(name)
    model.eval()
    batches = data.batches(model.pretrained_cfg, model.img_size, batch_size=3)
    evaluator = Evaluator(model, batches, prefix_cache=2**28, error=0.05)
    schedules = [PruningSchedule.parse(text) for text in ("4:0.5", "4:0.5,6:0.4", "6:0.5;context=freeze", "")]
    for _ in range(2):  # the second time from the cache
        found = evaluator.evaluate_group([Entry(s, flops=i) for i, s in enumerate(schedules)])
        for schedule, metrics in zip(schedules, found, strict=True):
            assert not isinstance(metrics, Exception)
            model.set_schedule(None)
            same, tally = 0, Confusion(2)
            with torch.inference_mode():
                for images, masks in batches:
                    model.set_schedule(None)
                    dense = model(images).argmax(1)
                    model.set_schedule(schedule)
                    logits = model(images)
                    same += int((logits.argmax(1) == dense).sum())
                    tally.add(logits, masks)
            assert (metrics.top1, metrics.images, metrics.stopped) == (pytest.approx(tally.score), 8, False)
            assert metrics.loss == pytest.approx(tally.loss, rel=1e-5)
            assert metrics.agreement == pytest.approx(same / (8 * 32 * 32))
            assert metrics.outcomes is None and metrics.tally is not None
    assert evaluator.dense.agreement == 1.0
    assert evaluator.latency(schedules[0]).ms > 0


def test_training_and_finetuning(root: Path, tmp_path: Path) -> None:
    data, model = open_data(f"segmentation:{root}"), segmenter()
    recipe = Recipe(epochs=6, batch_size=4, lr=3e-3, ema=0.0, label_smoothing=0.0)
    trained = train_model(model, data, recipe, TrainingRun(tmp_path / "dense", device="cpu"))
    assert trained.fit.top1 > 0.6  # two kinds of ground, told apart by their brightness
    val = data.batches(model.pretrained_cfg, model.img_size)
    assert task_scores(model, val, torch.device("cpu"))[0] == pytest.approx(trained.fit.top1)
    student, teacher = (ssm_models.build("vmamba_nano_segmenter", trained.checkpoint) for _ in range(2))
    assert student.img_size == (32, 32) and student.num_classes == 2
    schedule = PruningSchedule.parse("4:0.4,6:0.5")
    job = FineTuneJob(schedule, finetune_recipe(1, batch_size=4), Distillation(features=0.1))
    tuned = finetune_model(student, teacher, data, job, TrainingRun(tmp_path / "pruned", device="cpu"))
    assert tuned.dense[0] == pytest.approx(trained.fit.top1)
    assert tuned.before[0] != tuned.fit.top1 and tuned.fit.loss > 0


def test_a_model_of_another_task_is_refused(root: Path, tmp_path: Path) -> None:
    data = open_data(f"segmentation:{root}")
    with pytest.raises(DataError, match="is for segmentation, but vim_nano does classification"):
        data.check_model(ssm_models.create_model("vim_nano", 2))
    with pytest.raises(DataError, match="2 classes but vmamba_nano_segmenter answers with 6"):
        data.check_model(ssm_models.create_model("vmamba_nano_segmenter"))
    with pytest.raises(UsageError, match="mixup and cutmix"):
        train_model(segmenter(), data, Recipe(epochs=1, mixup=0.2), TrainingRun(tmp_path / "no", device="cpu"))


def test_objectives_are_named_by_the_task() -> None:
    assert stored_objectives(("miou", "flops"), SEGMENTATION) == ("top1", "flops")
    assert stored_objectives(("top1", "latency"), SEGMENTATION) == ("top1", "latency")
    with pytest.raises(UsageError, match="the score of classification is top1"):
        stored_objectives(("miou", "flops"), CLASSIFICATION)
    with pytest.raises(UsageError, match="once"):
        stored_objectives(("miou", "top1"), SEGMENTATION)


def test_miou_has_no_interval() -> None:
    evaluation = Evaluation(PruningSchedule.parse("3:0.5"), 10, 0.5, top1=0.7, loss=1.0, agreement=0.9, images=50)
    assert share_interval(evaluation, "top1") is not None
    assert share_interval(Evaluation(**{**vars(evaluation), "metric": "miou"}), "top1") is None


def test_pictures_of_a_task() -> None:
    truth = torch.tensor([[0, 1], [1, NO_CLASS]])
    answers = torch.tensor([[0, 1], [0, 0]], dtype=torch.uint8)
    assert SEGMENTATION.describe(answers, truth, ["a", "b"]) == "66.7% of pixels"
    assert SEGMENTATION.subject(truth, ["a", "b"]) == "mostly b"
    panels = dict(SEGMENTATION.panels(truth, answers, answers, [(9, 8, 7), (1, 2, 3)]))
    assert list(panels) == ["mask", "dense", "pruned"]
    assert panels["mask"].tolist() == [[[9, 8, 7], [1, 2, 3]], [[1, 2, 3], [0, 0, 0]]]
