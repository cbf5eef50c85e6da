"""A study is what its settings say: another beginning is refused with the differences."""

from dataclasses import replace
from pathlib import Path

import pytest

from results.store import Store
from search.config import SearchConfig
from search.studies import Subject, check_dense, check_same, open_study, open_subject
from spaces.errors import BudgetError, StoreError, StudyMismatchError


def test_the_same_settings_are_the_same_study(subject: Subject, study_url: str) -> None:
    with Store.open(study_url) as store:
        check_same(store.study("digits").spec, subject.spec(), "digits")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model", "vim_tiny", "--model was vim_nano, now vim_tiny"),
        ("weights_digest", "e" * 64, r"weights \(--checkpoint\) was \w{12}…, now e{12}…"),
        ("data_digest", "e" * 64, r"images \(--data\) was \w{12}…, now e{12}…"),
        ("images", 50, "--images was 40, now 50"),
        ("limit", 7, r"--flops-budget, in FLOPs was \d+, now 7"),
        ("space", "per-block", "--space was stages:3;context=drop,conv,freeze, now per-block;"),
        ("sampler", "tpe", "--sampler was gp, now tpe"),
        ("objectives", ("loss", "flops"), "--objective was top1, flops, now loss, flops"),
        ("seed", 1, "--seed was 0, now 1"),
        ("img_size", (32, 32), "image size was 28×28, now 32×32"),
    ],
)
def test_each_difference_is_named(subject: Subject, study_url: str, field: str, value: object, words: str) -> None:
    with Store.open(study_url) as store, pytest.raises(StudyMismatchError, match=words):
        check_same(store.study("digits").spec, subject.spec() | {field: value}, "digits")


def test_all_differences_are_named_at_once(subject: Subject, study_url: str) -> None:
    other = replace(subject, config=replace(subject.config, sampler="tpe", seed=4))
    with pytest.raises(StudyMismatchError, match=r"--sampler .*; --seed .*; give the same ones, or another --study"):
        open_study(other, study_url)


def test_a_new_study_is_written_with_the_dense_models_figures(subject: Subject, tmp_path: Path) -> None:
    store, study, dense = open_study(subject, f"sqlite:///{tmp_path / 'new.db'}")
    with store:
        assert study.spec.dense_top1 == dense.metrics.top1 > 0.9
        assert study.spec.dense_flops == subject.table.dense
        assert (study.spec.images, len(dense.answers)) == (40, 40)
        assert study.spec.config["flops_budget"] == "0.9"
        assert study.spec.token_layout == subject.model.layout
    store, again, _ = open_study(subject, f"sqlite:///{tmp_path / 'new.db'}")
    with store:
        assert again.id == study.id


def test_nothing_is_written_when_the_dense_model_cannot_run(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Subject) -> None:
        raise StoreError("broken")

    monkeypatch.setattr(Subject, "dense_answers", broken)
    with pytest.raises(StoreError, match="broken"):
        open_study(subject, f"sqlite:///{tmp_path / 'new.db'}")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_is_refused_before_anything_runs(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "dense_answers", lambda self: pytest.fail("the dense model ran"))
    path = tmp_path / "foreign.db"
    path.write_text("these are my notes")
    with pytest.raises(StoreError):
        open_study(subject, f"sqlite:///{path}")
    assert path.read_text() == "these are my notes"


def test_a_budget_below_the_space_is_refused() -> None:
    config = SearchConfig(model="vim_nano", study="s", data="embedded", flops_budget="0.05", trials=1, images=10)
    with pytest.raises(BudgetError, match="cheapest schedule"):
        open_subject(config)


def test_a_model_that_guesses_is_warned_of(subject: Subject) -> None:
    dense = subject.dense_answers()
    assert check_dense(dense, subject) is None
    guessing = replace(dense, metrics=replace(dense.metrics, top1=0.12))
    assert "near chance (0.100)" in (check_dense(guessing, subject) or "")
