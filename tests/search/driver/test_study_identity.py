"""A study is resumed with the settings it was begun with; others are refused with the differences."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from results import StudySpec
from results.store.store import Store
from search.data.image_order import SHUFFLED, STRATIFIED
from search.driver.search_setup import SearchSetup
from search.driver.study_identity import IDENTITY, check_same, open_study, order_note
from search.evaluation.metrics import DenseAnswers
from spaces.errors import StoreError, StudyMismatchError
from tests.patience import PATIENCE


def test_the_same_settings_are_the_same_study(search_setup: SearchSetup, study_url: str) -> None:
    with Store.open(study_url) as store:
        check_same(store.study("digits").spec, search_setup.spec(), "digits")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model", "vim_tiny", "--model was vim_nano, now vim_tiny"),
        ("weights_digest", "e" * 64, r"weights \(--checkpoint\) was \w{12}…, now e{12}…"),
        (
            "data_digest",
            "e" * 64,
            r"images, or the order of their classes \(--data, --class-order\) was \w{12}…, now e{12}…",
        ),
        ("images", 50, "--images was 40, now 50"),
        ("limit", 7, r"--flops-budget, in FLOPs was \d+, now 7"),
        ("least", 7, r"the least FLOPs of --flops-budget was \d+, now 7"),
        ("confirm_split", "rest", "--confirm-split was val, now rest"),
        ("confirm_images", 0, "--confirm-images was 1000, now 0"),
        (
            "confirm_digest",
            "e" * 64,
            r"images of --confirm-split, or the order of their classes was \w{12}…, now e{12}…",
        ),
        ("num_classes", 7, "number of classes was 10, now 7"),
        ("space", "per-block", "--space was stages:3;context=drop,conv,freeze, now per-block;"),
        ("sampler", "tpe", "--sampler was gp, now tpe"),
        ("objectives", ("loss", "flops"), "--objective was top1, flops, now loss, flops"),
        ("seed", 1, "--seed was 0, now 1"),
        ("img_size", (32, 32), r"image size \(--img-size\) was 28×28, now 32×32"),
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
    # These follow from it, or say nothing of what is measured; the order is taken from the study.
    assert search_setup.spec().keys() - IDENTITY.keys() == unnamed | {"order"}


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


class TestAnOlderOrderOfImages:
    @pytest.fixture
    def old_url(self, search_setup: SearchSetup, tmp_path: Path) -> str:
        """A database with the study as an older version began it."""
        spec = search_setup.in_order(STRATIFIED).spec()
        url = f"sqlite:///{tmp_path / 'old.db'}"
        with Store.open(url, create=True) as store:
            store.create_study(StudySpec(**spec, dense_top1=0.9, dense_loss=0.1, dense_latency_ms=1.0))
        return url

    def test_its_study_goes_on_with_it(self, search_setup: SearchSetup, old_url: str) -> None:
        assert search_setup.order == SHUFFLED
        store, study, dense = open_study(search_setup, old_url)
        store.close()
        assert study.spec.order == STRATIFIED
        old, _ = search_setup.in_order(STRATIFIED).dense_answers()
        new, _ = search_setup.dense_answers()
        assert dense.answers.equal(old.answers) and not dense.answers.equal(new.answers)

    def test_it_counts_though_the_study_appears_after_the_dense_model_has_run(
        self, search_setup: SearchSetup, old_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So it is on PostgreSQL, where nothing is looked up before."""
        path = Path(old_url.removeprefix("sqlite:///"))
        away, answers = path.rename(path.with_suffix(".away")), SearchSetup.dense_answers

        def appear(setup: SearchSetup) -> tuple[DenseAnswers, float]:
            if away.exists():
                away.rename(path)
            return answers(setup)

        monkeypatch.setattr(SearchSetup, "dense_answers", appear)
        store, study, dense = open_study(search_setup, old_url)
        store.close()
        assert study.spec.order == STRATIFIED
        assert dense.answers.equal(answers(search_setup.in_order(STRATIFIED))[0].answers)

    def test_it_is_said_in_a_line(self, search_setup: SearchSetup, old_url: str, study_url: str) -> None:
        with Store.open(old_url) as store:
            assert order_note(store.study("digits"), SHUFFLED) == (
                "study 'digits' goes on with the order of images that it was begun with, stratified; "
                "new studies use shuffled"
            )
        with Store.open(study_url) as store:
            assert order_note(store.study("digits"), SHUFFLED) is None

    def test_workers_get_it(self, search_setup: SearchSetup) -> None:
        dense, _ = search_setup.dense_answers()
        setup = search_setup.in_order(STRATIFIED).worker_setup(dense)
        assert (setup.images.order, setup.confirm.order) == (STRATIFIED, STRATIFIED)


def test_drivers_that_begin_at_once_begin_one_study(
    search_setup: SearchSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has seen that there is none before either writes it."""
    answers, seen = search_setup.dense_answers(), Barrier(2, timeout=PATIENCE)
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
