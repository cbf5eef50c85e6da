"""What a student learns from its teacher, for every family and context."""

import pytest
import torch
from torch.nn import functional as F

import ssm_models
from search.training.distillation import Distillation, feature_distance, observe
from spaces import PruningSchedule, errors

FAMILIES = ("vim_nano", "plain_mamba_nano", "vmamba_nano", "vssd_nano", "group_mamba_nano")


def make(name: str, schedule: str = "") -> ssm_models.PrunableModel:
    torch.manual_seed(0)
    model = ssm_models.create_model(name, num_classes=3)
    model.set_schedule(PruningSchedule.parse(schedule))
    return model.eval()


class TestLoss:
    def test_equal_answers_cost_nothing(self) -> None:
        logits = torch.randn(5, 3)
        loss = Distillation(share=1.0).loss(logits, logits.clone(), torch.zeros(5, dtype=torch.long), 0.0)
        assert float(loss) == pytest.approx(0.0, abs=1e-6)

    def test_by_hand(self) -> None:
        student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, -2.0]])
        p = torch.softmax(torch.tensor([1.0, -1.0]), dim=0)  # at temperature 2
        distance = float((p * (p.log() - torch.tensor(0.5).log())).sum())
        teaching = Distillation(share=0.25, temperature=2.0)
        loss = teaching.loss(student, teacher, torch.tensor([0]), 0.0)
        assert float(loss) == pytest.approx(0.25 * 4 * distance + 0.75 * 0.6931472, abs=1e-5)
        three = Distillation(share=0.25, temperature=2.0, features=0.5)
        loss = three.loss(student, teacher, torch.tensor([0]), 0.0, torch.tensor(0.7))
        assert float(loss) == pytest.approx(0.25 * 4 * distance + 0.25 * 0.6931472 + 0.35, abs=1e-5)

    @pytest.mark.parametrize(
        "values",
        [(-0.1, 1.0), (1.1, 1.0), (0.5, 0.0), (0.5, float("nan")), (0.5, 2.0, -0.1), (0.6, 2.0, 0.5)],
    )
    def test_values_that_make_no_sense(self, values: tuple[float, ...]) -> None:
        with pytest.raises(errors.UsageError, match="distillation"):
            Distillation(*values)


@pytest.mark.parametrize("context", ["drop", "conv", "freeze"])
@pytest.mark.parametrize("name", FAMILIES)
class TestObserve:
    def test_it_answers_as_the_model_does_and_sees_the_kept_tokens(self, name: str, context: str) -> None:
        model = make(name, f"3:0.5,6:0.5;context={context}")
        images = torch.randn(2, 3, *model.img_size)
        with torch.inference_mode():
            seen, answer = observe(model, images), model(images)
        assert torch.equal(seen.logits, answer)
        returned = model.layout.stages[-1].tokens  # where both steps lie in earlier stages
        kept = (
            returned if model.layout.returning else model.layout.tokens(model.schedule)[-1] + model.layout.protected
        )
        assert seen.tokens.shape[:2] == seen.positions.shape == (2, kept)
        assert (seen.positions.diff(dim=1) > 0).all()

    def test_the_teacher_is_read_at_the_same_positions(self, name: str, context: str) -> None:
        model, teacher = make(name), make(name)
        images, targets = torch.randn(2, 3, *model.img_size), torch.tensor([0, 1])
        alike = Distillation(0.0, 2.0, 1.0).of(teacher, 0.0)(model, images, targets)
        assert float(alike.detach()) == pytest.approx(0.0, abs=1e-6)
        model.set_schedule(PruningSchedule.parse(f"3:0.5;context={context}"))
        loss = Distillation(0.0, 2.0, 1.0).of(teacher, 0.0)(model, images, targets)
        assert 1e-7 < float(loss.detach()) < 0.5
        loss.backward()
        learned = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.blocks[0].parameters()]
        assert any(learned)
        assert all(p.grad is None for p in teacher.parameters())


def test_tokens_that_come_back_are_not_looked_at() -> None:
    """With a step in its last stage vmamba answers with the whole grid, but the last block updates half of it."""
    model = make("vmamba_nano")
    last = model.layout.ends[-2] + 1
    model.set_schedule(PruningSchedule.parse(f"{last}:0.5"))
    seen = observe(model, torch.randn(1, 3, *model.img_size))
    stage = model.layout.stages[-1]
    assert seen.positions.shape[1] == stage.height * stage.width // 2


def test_distance_of_features_is_blind_to_their_scale() -> None:
    tokens = torch.randn(2, 5, 64)
    assert float(feature_distance(3 * tokens + 1, tokens)) == pytest.approx(0.0, abs=1e-4)
    assert float(feature_distance(torch.randn(50, 5, 64), torch.randn(50, 5, 64))) == pytest.approx(2.0, abs=0.1)


def test_the_loss_of_a_batch_is_the_mean_over_its_parts() -> None:
    model, teacher = make("vim_nano", "3:0.5"), make("vim_nano")
    images, targets = torch.randn(6, 3, 28, 28), F.one_hot(torch.arange(6) % 3, 3).float()
    loss = Distillation(0.3, 2.0, 0.3).of(teacher, 0.1)
    with torch.no_grad():
        whole = float(loss(model, images, targets))
        parts = [float(loss(model, images[cut], targets[cut])) for cut in (slice(0, 2), slice(2, 6))]
    assert whole == pytest.approx((2 * parts[0] + 4 * parts[1]) / 6, rel=1e-4)
