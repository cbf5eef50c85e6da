"""The training loop: gradient accumulation, half precision, pausing and resuming, evaluating now and then."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.nn import functional as F

from search.data.dataset import ImageData, open_data
from search.data.image_set import ImageSet
from search.training.checkpoint import CHECKPOINT
from search.training.observer import SilentObserver, TrainingObserver
from search.training.recipe import Recipe
from search.training.trainer import FitResult, Trainer, TrainingJob
from search.training.training_run import Pace, TrainingRun
from spaces import errors
from tests.search.pictures import write_brightness
from tests.search.training.test_train import StopAt, Tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return open_data(f"folder:{write_brightness(tmp_path_factory.mktemp('brightness'))}")


class Plain(Tiny):
    """Without dropout, whose masks differ between the parts of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body[3] = torch.nn.Identity()


def model() -> Any:
    torch.manual_seed(5)
    return Plain()


def cross_entropy(network: Any, images: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(network(images).float(), targets)


def trainer(
    trained: Any, data: ImageData, out: Path, recipe: Recipe, observer: TrainingObserver | None = None, **options: Any
) -> Trainer:
    """A trainer; the options are those of `TrainingJob`, and `pace`."""
    run = TrainingRun(out, pace=options.pop("pace", Pace()), observer=observer or SilentObserver())
    return Trainer(trained, TrainingJob(**{"loss": cross_entropy, "data": data, "recipe": recipe, **options}), run)


def fit(data: ImageData, out: Path, recipe: Recipe, **options: Any) -> tuple[Any, FitResult]:
    """Train a new model; return it, and how it went."""
    trained = model()
    return trained, trainer(trained, data, out, recipe, **options).fit()


RECIPE = Recipe(epochs=4, lr=0.01, batch_size=8, ema=0.9, mixup=0.4)


def difference(one: Any, other: Any) -> float:
    return max(
        float((a - b).abs().max())
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


class TestPace:
    @pytest.mark.parametrize("parts", [2, 3, 8])
    def test_accumulated_gradients_are_those_of_the_whole_batch(
        self, data: ImageData, tmp_path: Path, parts: int
    ) -> None:
        whole, result = fit(data, tmp_path / "whole", RECIPE)
        split, same = fit(data, tmp_path / "split", RECIPE, pace=Pace(accumulate=parts))
        assert difference(whole, split) < 2e-4  # AdamW normalises the gradient, and some are tiny
        for a, b in zip(result.curve, same.curve, strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)

    def test_a_paused_training_ends_like_an_uninterrupted_one(self, data: ImageData, tmp_path: Path) -> None:
        whole, result = fit(data, tmp_path / "whole", RECIPE)
        _, first = fit(data, tmp_path / "cut", RECIPE, pace=Pace(until=1))
        assert [line["epoch"] for line in first.curve] == [1]
        assert first.curve[0]["lr"] == result.curve[0]["lr"]
        _, second = fit(data, tmp_path / "cut", RECIPE, pace=Pace(until=3))
        resumed, last = fit(data, tmp_path / "cut", RECIPE)
        assert difference(whole, resumed) == 0
        assert [line["train_loss"] for line in last.curve] == [line["train_loss"] for line in result.curve]

        # a run with an earlier end trains nothing and returns the scores there
        def never() -> None:
            raise AssertionError("a batch was trained")

        _, again = fit(data, tmp_path / "cut", RECIPE, pace=Pace(until=3), observer=StopAt(4, never))
        assert (again.top1, again.loss) == (second.top1, second.loss)

    def test_val_is_evaluated_every_few_epochs_and_at_the_end(self, data: ImageData, tmp_path: Path) -> None:
        calls = []

        def measure(*arguments: Any) -> tuple[float, float]:
            calls.append(1)
            return 0.5 + len(calls) / 100, 1.0

        recipe = Recipe(epochs=5, batch_size=8)
        _, result = fit(data, tmp_path, recipe, pace=Pace(eval_every=3), measure=measure)
        assert [line["top1"] for line in result.curve] == [None, None, 0.51, None, 0.52]
        assert (result.best_epoch, result.top1) == (5, 0.52)

    def test_an_earlier_end_without_scores_is_refused(self, data: ImageData, tmp_path: Path) -> None:
        fit(data, tmp_path, RECIPE, pace=Pace(until=3, eval_every=3))
        with pytest.raises(errors.UsageError, match="was not evaluated after epoch 2"):
            fit(data, tmp_path, RECIPE, pace=Pace(until=2))

    @pytest.mark.parametrize("change", [{"accumulate": 0}, {"eval_every": 0}, {"until": -1}])
    def test_bad_values_are_refused(self, change: dict[str, int]) -> None:
        with pytest.raises(errors.UsageError, match=next(iter(change))):
            Pace(**change)


class TestPrecision:
    @pytest.mark.parametrize("amp", ["bf16", "fp16"])
    def test_half_precision_learns(self, data: ImageData, tmp_path: Path, amp: str) -> None:
        recipe = Recipe(epochs=12, lr=0.01, batch_size=8, ema=0.0, amp=amp)
        trained, result = fit(data, tmp_path / "half", recipe)
        assert all(weight.dtype is torch.float32 for weight in trained.state_dict().values())
        assert result.top1 == 1.0
        full, _ = fit(data, tmp_path / "full", Recipe(epochs=12, lr=0.01, batch_size=8, ema=0.0))
        assert difference(trained, full) > 0

    def test_fp16_resumes_exactly(self, data: ImageData, tmp_path: Path) -> None:
        recipe = Recipe(epochs=4, lr=0.01, batch_size=8, amp="fp16")
        whole, _ = fit(data, tmp_path / "whole", recipe)
        fit(data, tmp_path / "cut", recipe, pace=Pace(until=2))
        resumed, _ = fit(data, tmp_path / "cut", recipe)
        assert difference(whole, resumed) == 0

    def test_an_fp16_overflow_only_skips_the_step(self, data: ImageData, tmp_path: Path) -> None:
        def steep(network: Any, images: Tensor, targets: Tensor) -> Tensor:
            return 1e3 * cross_entropy(network, images, targets)

        before = model().state_dict()
        recipe = Recipe(epochs=3, lr=0.01, batch_size=8, ema=0.0, amp="fp16")
        trained, _ = fit(data, tmp_path, recipe, loss=steep)
        state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
        assert state["scaler"]["scale"] < 2**16
        assert any(not torch.equal(before[name], value) for name, value in trained.state_dict().items())

    def test_an_unknown_precision_is_refused(self) -> None:
        with pytest.raises(errors.UnknownNameError, match="bf16"):
            Recipe(epochs=1, amp="bf61")


class TestFolder:
    @pytest.mark.parametrize("name", ["model.safetensors", "plan.json"])
    def test_files_of_another_training_are_kept(self, data: ImageData, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("theirs")
        with pytest.raises(errors.UsageError, match="choose another folder"):
            fit(data, tmp_path, RECIPE)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "theirs")]

    def test_a_run_of_other_settings_is_refused(self, data: ImageData, tmp_path: Path) -> None:
        fit(data, tmp_path, RECIPE, identity={"schedule": "1:0.5"}, pace=Pace(until=1))
        with pytest.raises(errors.UsageError, match=r"schedule '1:0\.5' there, None now"):
            fit(data, tmp_path, RECIPE)

    def test_a_run_on_another_part_of_val_is_refused(self, data: ImageData, tmp_path: Path) -> None:
        part, old = ImageSet("val", 3), ImageSet("val", 3, order="stratified")
        fit(data, tmp_path / "old", RECIPE, images=old, pace=Pace(until=1))
        fit(data, tmp_path / "old", RECIPE, images=old)
        for other, words in (
            (part, "val_order None there, 'shuffled' now"),
            (replace(old, skip=3), "val_skip None there, 3 now"),
        ):
            with pytest.raises(errors.UsageError, match=words):
                fit(data, tmp_path / "old", RECIPE, images=other, pace=Pace(until=1))
        whole = ImageSet("val", data.size(), order="stratified")
        fit(data, tmp_path / "all", RECIPE, images=whole, pace=Pace(until=1))
        fit(data, tmp_path / "all", RECIPE)  # all of val, in whichever order

    def test_a_run_on_other_val_images_is_refused(self, tmp_path: Path) -> None:
        root = write_brightness(tmp_path / "images")
        fit(open_data(f"folder:{root}"), tmp_path / "out", RECIPE, pace=Pace(until=1))
        dark, light = sorted((root / "val").iterdir())
        dark.rename(root / "val" / "swap")
        light.rename(dark)
        (root / "val" / "swap").rename(light)
        with pytest.raises(errors.UsageError, match=r"val '.*' there, '.*' now"):
            fit(open_data(f"folder:{root}"), tmp_path / "out", RECIPE)

    @pytest.mark.parametrize("turned", [True, False])
    def test_a_run_of_before_images_were_turned(self, tmp_path: Path, turned: bool) -> None:
        """It goes on only if none of its images has an EXIF orientation."""
        root = write_brightness(tmp_path / "images")
        if turned:
            path = next((root / "train").glob("*/*"))
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 6
            Image.open(path).save(path, exif=exif)
        fit(open_data(f"folder:{root}"), tmp_path / "out", RECIPE, pace=Pace(until=1))
        path = tmp_path / "out" / "last.pt"
        state = torch.load(path, weights_only=True)
        identity = json.loads(state["identity"])
        assert identity.pop("orientation") == "exif"
        torch.save(state | {"identity": json.dumps(identity)}, path)
        if not turned:
            fit(open_data(f"folder:{root}"), tmp_path / "out", RECIPE)
            return
        with pytest.raises(errors.UsageError, match="orientation 'as stored' there, 'exif' now"):
            fit(open_data(f"folder:{root}"), tmp_path / "out", RECIPE)


class TestErrors:
    def test_a_val_loss_that_is_not_finite_writes_nothing(self, data: ImageData, tmp_path: Path) -> None:
        def measure(*arguments: Any) -> tuple[float, float]:
            return 0.5, float("nan")

        with pytest.raises(errors.TrainingError, match=r"epoch 1: the loss on val \(nan\).*below 0\.01"):
            fit(data, tmp_path, RECIPE, measure=measure)
        assert list(tmp_path.iterdir()) == []

    def test_running_out_of_memory_names_the_remedy(self, data: ImageData, tmp_path: Path) -> None:
        def hungry(network: Any, images: Tensor, targets: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(errors.TrainingError, match=r"8 images in a step, in 2 parts: give --accumulate 4"):
            fit(data, tmp_path, RECIPE, loss=hungry, pace=Pace(accumulate=2))


class TestReferences:
    def test_they_are_scored_once(self, data: ImageData, tmp_path: Path) -> None:
        other = model()
        _, first = fit(data, tmp_path, RECIPE, references={"other": other, "known": (0.25, 2.0)}, pace=Pace(until=1))
        assert first.start["known"] == (0.25, 2.0)
        assert 0 <= first.start["other"][0] <= 1
        _, second = fit(data, tmp_path, RECIPE, references={"other": (0.0, 0.0)})
        assert second.start == first.start


class TestEpochsRunElsewhere:
    def test_the_result_is_what_their_checkpoint_holds(self, data: ImageData, tmp_path: Path) -> None:
        whole, result = fit(data, tmp_path / "whole", RECIPE)
        out, trained = tmp_path / "out", model()
        here = trainer(trained, data, out, RECIPE)
        here.begin()
        assert here.epochs_left == 4
        fit(data, out, RECIPE)
        here.resume()
        found = here.finish()
        assert difference(trained, whole) == 0
        assert found.top1 == result.top1
        again = trainer(model(), data, out, RECIPE)
        again.begin()
        assert again.epochs_left == 0

    def test_too_few_epochs_are_an_error(self, data: ImageData, tmp_path: Path) -> None:
        here = trainer(model(), data, tmp_path, RECIPE)
        here.begin()
        fit(data, tmp_path, RECIPE, pace=Pace(until=1))
        here.resume()
        with pytest.raises(errors.TrainingError, match="left 1 epochs of 4"):
            here.finish()
