"""The row of the front and the JSON form of a schedule."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from results import Confirmation, Evaluation, Study, StudySpec
from results.export.schedule_json import export_schedule, front_row
from results.files import write_json
from results.intervals import wilson_interval
from results.records import FineTuned
from spaces import PruningSchedule

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]
TUNED = FineTuned(2, 0.97, 0.96, 0.98, 800, "val, 201–1,000")
MOMENT = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)


def test_the_exported_form(make_spec: MakeSpec, make_evaluation: MakeEvaluation, tmp_path: Path) -> None:
    evaluation = make_evaluation("3:0.8,6:0.5;importance=l2", latency_ms=1.5, finetuned=TUNED, number=4)
    form = export_schedule(evaluation, Study(1, MOMENT, make_spec()))
    write_json(tmp_path / "s.json", form)
    assert json.loads((tmp_path / "s.json").read_text()) == form
    assert PruningSchedule.from_file(tmp_path / "s.json") == evaluation.schedule
    assert form["format"] == "prunefront.schedule"
    assert form["version"] == 1
    assert (form["model"], form["img_size"]) == ("vim_nano", 28)
    assert form["steps"] == [{"after": 3, "keep": 0.8}, {"after": 6, "keep": 0.5}]
    assert form["method"]["importance"] == "l2"
    metrics = form["metrics"]
    assert (metrics["top1"], metrics["flops"], metrics["flops_ratio"]) == (0.9, 700_000, 0.7)
    assert {"loss", "images", "agreement", "latency_ms", "latency_ratio"} <= metrics.keys()
    assert (metrics["confirmed"], metrics["search_top1"], metrics["dense_top1"]) == (False, 0.9, 0.98)
    provenance = form["provenance"]
    assert (provenance["study"], provenance["seed"], provenance["created"]) == ("digits", 7, MOMENT.isoformat())
    assert {"weights_digest", "data", "data_digest", "sampler", "space", "versions"} <= provenance.keys()


def test_non_square_images_have_a_height_and_a_width(make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    study = Study(1, MOMENT, make_spec(img_size=(224, 160)))
    assert export_schedule(make_evaluation(), study)["img_size"] == [224, 160]


def test_a_row_of_the_front_has_the_documented_keys(make_evaluation: MakeEvaluation) -> None:
    row = front_row(make_evaluation("3:0.8", latency_ratio=0.75))
    assert list(row) == [
        "schedule", "hash", "top1", "loss", "flops", "flops_ratio", "images", "latency_ms", "finetuned_top1",
        "top1_low", "top1_high", "confirmed", "search_top1", "search_images", "latency_ratio", "metric",
        "finetuned_min", "finetuned_max", "finetuned_runs", "finetuned_images", "finetuned_on",
    ]  # fmt: skip
    assert (row["schedule"], row["hash"]) == ("3:0.8", PruningSchedule.parse("3:0.8").hash)
    assert (row["top1"], row["images"], row["latency_ratio"]) == (0.9, 1000, 0.75)
    assert (row["top1_low"], row["top1_high"]) == wilson_interval(0.9, 1000)
    assert (row["confirmed"], row["search_top1"], row["search_images"]) == (False, 0.9, 1000)


def confirm(evaluation: Evaluation, top1: float) -> Evaluation:
    return replace(evaluation, confirmed=Confirmation(evaluation.hash, top1, 0.4, 0.92, 5000, 2.5, 1.0, 0.8))


def test_a_row_has_the_confirmed_score_and_the_searchs_own(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    evaluation = confirm(make_evaluation(), 0.85)
    row = front_row(evaluation)
    assert (row["top1"], row["loss"], row["images"], row["confirmed"]) == (0.85, 0.4, 5000, True)
    assert (row["top1_low"], row["top1_high"]) == wilson_interval(0.85, 5000)
    assert (row["search_top1"], row["search_images"]) == (0.9, 1000)
    dense = Confirmation(PruningSchedule().hash, 0.96, 0.1, 1.0, 5000, 1.0, 1.0, 0.8)
    study = Study(1, MOMENT, make_spec())
    form = export_schedule(evaluation, study, dense)
    metrics = form["metrics"]
    assert {name: metrics[name] for name in row if name in metrics} == {
        name: value for name, value in row.items() if name not in ("schedule", "hash")
    }
    assert (metrics["agreement"], metrics["dense_top1"]) == (0.92, 0.96), "both on the confirming images"
    assert export_schedule(make_evaluation(), study, dense)["metrics"]["dense_top1"] == 0.98, "both on the search's"
    assert (form["provenance"]["confirm_split"], form["provenance"]["confirm_digest"]) == ("val", "e" * 64)


@pytest.mark.parametrize(
    "changes",
    [{"state": "stopped", "images": 300, "top1": 0.99}, {"state": "failed", "failure": "OOM", "top1": None}],
)
def test_an_unfinished_evaluation_has_no_score_in_its_row(
    make_evaluation: MakeEvaluation, changes: dict[str, Any]
) -> None:
    row = front_row(make_evaluation(**changes))
    assert [row[name] for name in ("top1", "top1_low", "top1_high", "loss", "search_top1")] == [None] * 5
    assert row["images"] == changes.get("images", 1000)
