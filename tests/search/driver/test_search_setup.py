"""What the settings name is opened and checked before a search starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.config import SearchConfig
from search.data.dataset import ImageData, open_data
from search.data.image_set import ImageSet
from search.driver.search_setup import (
    SearchSetup,
    check_dense,
    confirm_set,
    open_setup,
    raced_objective,
)
from spaces.errors import BudgetError, DataError, UsageError
from tests.search.pictures import write_folder


def test_a_budget_below_the_space_is_refused() -> None:
    config = SearchConfig(model="vim_nano", study="s", data="embedded", flops_budget="0.05", trials=1, images=10)
    with pytest.raises(BudgetError, match="cheapest schedule"):
        open_setup(config)


def test_a_model_that_guesses_is_warned_of(search_setup: SearchSetup) -> None:
    dense, _ = search_setup.dense_answers()
    assert check_dense(dense, search_setup) is None
    guessing = replace(dense, metrics=replace(dense.metrics, top1=0.12))
    assert "near chance (0.100)" in (check_dense(guessing, search_setup) or "")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("embedded")


class TestWhatTheFrontIsConfirmedOn:
    GIVEN = SearchConfig(model="vim_nano", study="s", data="embedded", flops_budget="0.6", trials=1)
    SEARCHED = ImageSet("val", 300)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({}, ImageSet("val", 1000)),
            ({"confirm_images": 500}, ImageSet("val", 500)),
            ({"confirm_images": 5000}, ImageSet("val", 1000)),
            ({"confirm_images": 0}, ImageSet("val", 0)),
            ({"confirm_split": "rest"}, ImageSet("val", 700, skip=300)),
            ({"confirm_split": "rest", "confirm_images": 100}, ImageSet("val", 100, skip=300)),
            ({"confirm_split": "rest", "confirm_images": 900}, ImageSet("val", 700, skip=300)),
        ],
    )
    def test_it_is_as_many_as_are_asked_for_and_there(
        self, digits: ImageData, change: dict[str, Any], expected: ImageSet
    ) -> None:
        config = replace(self.GIVEN, images=300, **change)
        assert confirm_set(config, digits, self.SEARCHED) == expected

    def test_there_may_be_no_rest(self, digits: ImageData) -> None:
        config = replace(self.GIVEN, images=2000, confirm_split="rest")
        with pytest.raises(UsageError, match="the search runs over all 1000 images of val; lower --images"):
            confirm_set(config, digits, ImageSet("val", 1000))

    def test_a_split_that_is_not_there_is_named_before_anything_starts(self) -> None:
        with pytest.raises(DataError, match="embedded: it has no test split"):
            open_setup(replace(self.GIVEN, confirm_split="test"))

    def test_a_folder_may_have_a_test_split(self, tmp_path: Path) -> None:
        names = tuple("0123456789")
        root = write_folder(tmp_path, names, each=2)
        write_folder(tmp_path / "more", names, each=3, split_names=("test",))
        (tmp_path / "more" / "test").rename(root / "test")
        opened = open_setup(replace(self.GIVEN, data=f"folder:{root}", confirm_split="test"))
        assert (opened.images, opened.confirm) == (ImageSet("val", 20), ImageSet("test", 30))
        assert opened.confirm_digest == opened.data.digest("test") != opened.data_digest


class TestWhatIsRacedFor:
    @pytest.mark.parametrize(
        ("objectives", "raced"),
        [
            (("top1", "flops"), "top1"),
            (("flops", "agreement"), "agreement"),
            (("loss", "flops"), None),
            (("top1", "latency"), None),
            (("top1",), None),
            (("flops",), None),
            (("top1", "agreement"), None),
            (("top1", "flops", "latency"), None),
        ],
    )
    def test_it_is_a_share_of_images_beside_flops(self, objectives: tuple[str, ...], raced: str | None) -> None:
        assert raced_objective(objectives) == raced

    @pytest.mark.parametrize(
        ("objective", "race_error", "raced"),
        [
            (("top1", "flops"), 0.05, "top1"),
            (("flops", "agreement"), 0.05, "agreement"),
            (("top1", "flops"), 0.0, None),
            (("loss", "flops"), 0.05, None),
        ],
    )
    def test_races_can_be_switched_off(
        self, search_setup: SearchSetup, objective: tuple[str, ...], race_error: float, raced: str | None
    ) -> None:
        assert (
            replace(
                search_setup, config=replace(search_setup.config, objective=objective, race_error=race_error)
            ).raced
            == raced
        )

    def test_the_dense_models_outcomes_are_those_of_what_is_raced_for(self, search_setup: SearchSetup) -> None:
        config = replace(search_setup.config, objective=("agreement", "flops"), images=10)
        agreement = replace(search_setup, config=config)
        small = replace(agreement, images=ImageSet("val", 10))
        assert small.dense_answers()[0].metrics.outcomes.tolist() == [True] * 10
