"""A study is what its settings say: another beginning is refused with the differences."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from results.store.store import Store
from search.config import SearchConfig
from search.data.dataset import ImageData, open_data
from search.data.image_set import ImageSet
from search.driver.search_setup import (
    IDENTITY,
    SearchSetup,
    check_dense,
    check_same,
    confirm_set,
    open_setup,
    open_study,
    raced_objective,
)
from spaces.errors import BudgetError, DataError, StoreError, StudyMismatchError, UsageError
from tests.search.pictures import write_folder


def test_the_same_settings_are_the_same_study(search_setup: SearchSetup, study_url: str) -> None:
    with Store.open(study_url) as store:
        check_same(store.study("digits").spec, search_setup.spec(), "digits")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model", "vim_tiny", "--model was vim_nano, now vim_tiny"),
        ("weights_digest", "e" * 64, r"weights \(--checkpoint\) was \w{12}…, now e{12}…"),
        ("data_digest", "e" * 64, r"images \(--data\) was \w{12}…, now e{12}…"),
        ("images", 50, "--images was 40, now 50"),
        ("limit", 7, r"--flops-budget, in FLOPs was \d+, now 7"),
        ("least", 7, r"the least FLOPs of --flops-budget was \d+, now 7"),
        ("confirm_split", "rest", "--confirm-split was val, now rest"),
        ("confirm_images", 0, "--confirm-images was 1000, now 0"),
        ("confirm_digest", "e" * 64, r"images of --confirm-split was \w{12}…, now e{12}…"),
        ("num_classes", 7, "number of classes was 10, now 7"),
        ("space", "per-block", "--space was stages:3;context=drop,conv,freeze, now per-block;"),
        ("sampler", "tpe", "--sampler was gp, now tpe"),
        ("objectives", ("loss", "flops"), "--objective was top1, flops, now loss, flops"),
        ("seed", 1, "--seed was 0, now 1"),
        ("img_size", (32, 32), "image size was 28×28, now 32×32"),
    ],
)
def test_each_difference_is_named(
    search_setup: SearchSetup, study_url: str, field: str, value: object, words: str
) -> None:
    with Store.open(study_url) as store, pytest.raises(StudyMismatchError, match=words):
        check_same(store.study("digits").spec, search_setup.spec() | {field: value}, "digits")


def test_every_part_of_the_identity_is_a_fact_of_the_study(search_setup: SearchSetup) -> None:
    assert search_setup.spec().keys() >= IDENTITY.keys()
    unnamed = {"name", "layout", "data", "checkpoint", "budget", "dense_flops", "metric", "versions", "config"}
    # These follow from it, or say nothing of what is measured.
    assert search_setup.spec().keys() - IDENTITY.keys() == unnamed


def test_all_differences_are_named_at_once(search_setup: SearchSetup, study_url: str) -> None:
    other = replace(search_setup, config=replace(search_setup.config, sampler="tpe", seed=4))
    with pytest.raises(StudyMismatchError, match=r"--sampler .*; --seed .*; give the same ones, or another --study"):
        open_study(other, study_url)


def test_a_new_study_is_written_with_the_dense_models_figures(search_setup: SearchSetup, tmp_path: Path) -> None:
    store, study, dense = open_study(search_setup, f"sqlite:///{tmp_path / 'new.db'}")
    with store:
        assert study.spec.dense_top1 == dense.metrics.top1 > 0.9
        assert study.spec.dense_flops == search_setup.table.dense
        assert study.spec.dense_latency_ms is not None
        assert study.spec.dense_latency_ms > 0
        assert (study.spec.images, len(dense.answers), len(dense.metrics.outcomes)) == (40, 40, 40)
        assert (study.spec.confirm_split, study.spec.confirm_images) == ("val", 1000)
        assert study.spec.confirm_digest == study.spec.data_digest
        assert study.spec.config["flops_budget"] == "0.9"
        assert study.spec.token_layout == search_setup.model.layout
    store, again, _ = open_study(search_setup, f"sqlite:///{tmp_path / 'new.db'}")
    with store:
        assert again.id == study.id


def test_drivers_that_begin_at_once_begin_one_study(
    search_setup: SearchSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has seen that there is none before either writes it."""
    answers, seen = search_setup.dense_answers(), Barrier(2, timeout=300)
    monkeypatch.setattr(SearchSetup, "dense_answers", lambda self: (seen.wait(), answers)[1])
    with ThreadPoolExecutor(2) as pool:
        begun = list(pool.map(lambda _: open_study(search_setup, f"sqlite:///{tmp_path / 'new.db'}"), range(2)))
    for store, _, _ in begun:
        store.close()
    assert begun[0][1].id == begun[1][1].id


def test_nothing_is_written_when_the_dense_model_cannot_run(
    search_setup: SearchSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: SearchSetup) -> None:
        raise StoreError("broken")

    monkeypatch.setattr(SearchSetup, "dense_answers", broken)
    with pytest.raises(StoreError, match="broken"):
        open_study(search_setup, f"sqlite:///{tmp_path / 'new.db'}")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_is_refused_before_anything_runs(
    search_setup: SearchSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SearchSetup, "dense_answers", lambda self: pytest.fail("the dense model ran"))
    path = tmp_path / "foreign.db"
    path.write_text("these are my notes")
    with pytest.raises(StoreError):
        open_study(search_setup, f"sqlite:///{path}")
    assert path.read_text() == "these are my notes"


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
