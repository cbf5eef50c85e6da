"""The loop's other ways: a step in parts, half precision, an end before the end, a look at val now and then."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from search.data.dataset import ImageData, open_data
from search.training.checkpoint import CHECKPOINT
from search.training.fit import FitResult, fit
from search.training.recipe import Pace, Recipe
from spaces import errors
from tests.search.pictures import write_brightness
from tests.search.training.test_train import Stop, Tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return open_data(f"folder:{write_brightness(tmp_path_factory.mktemp('brightness'))}")


class Plain(Tiny):
    """Without dropout, whose masks differ from part to part."""

    def __init__(self) -> None:
        super().__init__()
        self.body[3] = torch.nn.Identity()


def model() -> Any:
    torch.manual_seed(5)
    return Plain()


def cross_entropy(network: Any, images: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(network(images).float(), targets)


def run(data: ImageData, out: Path, recipe: Recipe, **options: Any) -> tuple[Any, FitResult]:
    trained = model()
    return trained, fit(trained, cross_entropy, data, recipe, out=out, identity={}, **options)


RECIPE = Recipe(epochs=4, lr=0.01, batch_size=8, ema=0.9, mixup=0.4)


def difference(one: Any, other: Any) -> float:
    return max(
        float((a - b).abs().max())
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


class TestPace:
    @pytest.mark.parametrize("parts", [2, 3, 8])
    def test_a_step_in_parts_is_the_step_of_the_whole_batch(
        self, data: ImageData, tmp_path: Path, parts: int
    ) -> None:
        whole, result = run(data, tmp_path / "whole", RECIPE)
        split, same = run(data, tmp_path / "split", RECIPE, pace=Pace(accumulate=parts))
        assert difference(whole, split) < 2e-4  # AdamW divides by the gradient's size, and some are tiny
        for a, b in zip(result.curve, same.curve, strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)

    def test_stopped_and_continued_it_is_the_whole_training(self, data: ImageData, tmp_path: Path) -> None:
        whole, result = run(data, tmp_path / "whole", RECIPE)
        _, first = run(data, tmp_path / "cut", RECIPE, pace=Pace(until=1))
        assert [line["epoch"] for line in first.curve] == [1]
        assert first.curve[0]["lr"] == result.curve[0]["lr"]
        _, second = run(data, tmp_path / "cut", RECIPE, pace=Pace(until=3))
        resumed, last = run(data, tmp_path / "cut", RECIPE)
        assert difference(whole, resumed) == 0
        assert [line["train_loss"] for line in last.curve] == [line["train_loss"] for line in result.curve]

        # asked again for an earlier end, it says what was measured there, and trains nothing
        def never() -> None:
            raise AssertionError("a batch was trained")

        _, again = run(data, tmp_path / "cut", RECIPE, pace=Pace(until=3), log=Stop(4, never))
        assert (again.top1, again.loss) == (second.top1, second.loss)

    def test_val_is_looked_at_now_and_then_and_at_the_end(self, data: ImageData, tmp_path: Path) -> None:
        calls = []

        def measure(*arguments: Any) -> tuple[float, float]:
            calls.append(1)
            return 0.5 + len(calls) / 100, 1.0

        recipe = Recipe(epochs=5, batch_size=8)
        _, result = run(data, tmp_path, recipe, pace=Pace(eval_every=3), measure=measure)
        assert [line["top1"] for line in result.curve] == [None, None, 0.51, None, 0.52]
        assert (result.best_epoch, result.top1) == (5, 0.52)

    def test_an_end_that_was_not_looked_at_is_looked_at_later(self, data: ImageData, tmp_path: Path) -> None:
        run(data, tmp_path, RECIPE, pace=Pace(until=3, eval_every=3))
        with pytest.raises(errors.UsageError, match="was not looked at after epoch 2"):
            run(data, tmp_path, RECIPE, pace=Pace(until=2))

    @pytest.mark.parametrize("change", [{"accumulate": 0}, {"eval_every": 0}, {"until": -1}])
    def test_values_that_make_no_sense(self, change: dict[str, int]) -> None:
        with pytest.raises(errors.UsageError, match=next(iter(change))):
            Pace(**change)


class TestPrecision:
    @pytest.mark.parametrize("amp", ["bf16", "fp16"])
    def test_half_precision_learns_as_well(self, data: ImageData, tmp_path: Path, amp: str) -> None:
        recipe = Recipe(epochs=12, lr=0.01, batch_size=8, ema=0.0, amp=amp)
        trained, result = run(data, tmp_path / "half", recipe)
        assert all(weight.dtype is torch.float32 for weight in trained.state_dict().values())
        assert result.top1 == 1.0
        full, _ = run(data, tmp_path / "full", Recipe(epochs=12, lr=0.01, batch_size=8, ema=0.0))
        assert difference(trained, full) > 0

    def test_interrupted_in_fp16_it_goes_on_exactly(self, data: ImageData, tmp_path: Path) -> None:
        recipe = Recipe(epochs=4, lr=0.01, batch_size=8, amp="fp16")
        whole, _ = run(data, tmp_path / "whole", recipe)
        run(data, tmp_path / "cut", recipe, pace=Pace(until=2))
        resumed, _ = run(data, tmp_path / "cut", recipe)
        assert difference(whole, resumed) == 0

    def test_a_gradient_beyond_fp16_costs_a_step_and_no_more(self, data: ImageData, tmp_path: Path) -> None:
        def steep(network: Any, images: Tensor, targets: Tensor) -> Tensor:
            return 1e3 * cross_entropy(network, images, targets)

        trained = model()
        before = {name: value.clone() for name, value in trained.state_dict().items()}
        recipe = Recipe(epochs=3, lr=0.01, batch_size=8, ema=0.0, amp="fp16")
        fit(trained, steep, data, recipe, out=tmp_path, identity={})
        state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
        assert state["scaler"]["scale"] < 2**16
        assert any(not torch.equal(before[name], value) for name, value in trained.state_dict().items())

    def test_an_unknown_precision(self) -> None:
        with pytest.raises(errors.UnknownNameError, match="bf16"):
            Recipe(epochs=1, amp="bf61")


class TestFolder:
    @pytest.mark.parametrize("name", ["model.safetensors", "plan.json"])
    def test_what_others_left_stays(self, data: ImageData, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("theirs")
        with pytest.raises(errors.UsageError, match="choose another folder"):
            run(data, tmp_path, RECIPE)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "theirs")]

    def test_a_run_of_more_settings_is_another(self, data: ImageData, tmp_path: Path) -> None:
        fit(model(), cross_entropy, data, RECIPE, out=tmp_path, identity={"schedule": "1:0.5"}, pace=Pace(until=1))
        with pytest.raises(errors.UsageError, match=r"schedule '1:0\.5' there, None now"):
            run(data, tmp_path, RECIPE)

    def test_other_val_images_are_another_run(self, tmp_path: Path) -> None:
        root = write_brightness(tmp_path / "images")
        run(open_data(f"folder:{root}"), tmp_path / "out", RECIPE, pace=Pace(until=1))
        dark, light = sorted((root / "val").iterdir())
        dark.rename(root / "val" / "swap")
        light.rename(dark)
        (root / "val" / "swap").rename(light)
        with pytest.raises(errors.UsageError, match=r"val '.*' there, '.*' now"):
            run(open_data(f"folder:{root}"), tmp_path / "out", RECIPE)


class TestTrouble:
    def test_a_val_loss_that_is_not_finite_leaves_nothing(self, data: ImageData, tmp_path: Path) -> None:
        def measure(*arguments: Any) -> tuple[float, float]:
            return 0.5, float("nan")

        with pytest.raises(errors.TrainingError, match=r"epoch 1: the loss on val \(nan\).*below 0\.01"):
            run(data, tmp_path, RECIPE, measure=measure)
        assert list(tmp_path.iterdir()) == []

    def test_memory_that_runs_out_says_what_helps(self, data: ImageData, tmp_path: Path) -> None:
        def hungry(network: Any, images: Tensor, targets: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(errors.TrainingError, match=r"8 images in a step, in 2 parts: give --accumulate 4"):
            fit(
                model(), hungry, data, RECIPE, out=tmp_path, identity={}, pace=Pace(accumulate=2)
            )  # fmt: skip


class TestReferences:
    def test_they_are_measured_once(self, data: ImageData, tmp_path: Path) -> None:
        other = model()
        _, first = run(data, tmp_path, RECIPE, references={"other": other, "known": (0.25, 2.0)}, pace=Pace(until=1))
        assert first.start["known"] == (0.25, 2.0)
        assert 0 <= first.start["other"][0] <= 1
        _, second = run(data, tmp_path, RECIPE, references={"other": (0.0, 0.0)})
        assert second.start == first.start


class TestDelegate:
    def test_the_result_is_what_the_others_left(self, data: ImageData, tmp_path: Path) -> None:
        whole, result = run(data, tmp_path / "whole", RECIPE)
        out, calls = tmp_path / "out", []

        def others() -> None:
            calls.append(1)
            run(data, out, RECIPE)

        for _ in range(2):  # the second time nothing is left to do
            trained, same = run(data, out, RECIPE, delegate=others)
            assert difference(trained, whole) == 0
            assert same.top1 == result.top1
        assert len(calls) == 1

    def test_others_that_leave_too_little_are_an_error(self, data: ImageData, tmp_path: Path) -> None:
        with pytest.raises(errors.TrainingError, match="left 1 epochs of 4"):
            run(data, tmp_path, RECIPE, delegate=lambda: run(data, tmp_path, RECIPE, pace=Pace(until=1)))
