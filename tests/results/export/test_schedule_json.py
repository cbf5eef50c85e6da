"""What export writes, which schedule it chooses, and that a file is written whole or not at all."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from results import Confirmation, Evaluation, Study, StudySpec
from results.export.schedule_json import export_schedule, front_row
from results.files import write_json, write_whole
from results.intervals import wilson_interval
from results.objectives import best_evaluation
from spaces import PruningSchedule
from spaces.errors import PrunefrontError, UsageError

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]
MOMENT = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)


def test_the_exported_form(make_spec: MakeSpec, make_evaluation: MakeEvaluation, tmp_path: Path) -> None:
    evaluation = make_evaluation("3:0.8,6:0.5;importance=l2", latency_ms=1.5, finetuned_top1=0.97, number=4)
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


def test_images_that_are_not_square(make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    study = Study(1, MOMENT, make_spec(img_size=(224, 160)))
    assert export_schedule(make_evaluation(), study)["img_size"] == [224, 160]


def test_the_row_of_the_front_has_the_contracts_keys(make_evaluation: MakeEvaluation) -> None:
    row = front_row(make_evaluation("3:0.8", latency_ratio=0.75))
    assert list(row) == [
        "schedule", "hash", "top1", "loss", "flops", "flops_ratio", "images", "latency_ms", "finetuned_top1",
        "top1_low", "top1_high", "confirmed", "search_top1", "search_images", "latency_ratio", "metric",
    ]  # fmt: skip
    assert (row["schedule"], row["hash"]) == ("3:0.8", PruningSchedule.parse("3:0.8").hash)
    assert (row["top1"], row["images"], row["latency_ratio"]) == (0.9, 1000, 0.75)
    assert (row["top1_low"], row["top1_high"]) == wilson_interval(0.9, 1000)
    assert (row["confirmed"], row["search_top1"], row["search_images"]) == (False, 0.9, 1000)


def confirm(evaluation: Evaluation, top1: float) -> Evaluation:
    return replace(evaluation, confirmed=Confirmation(evaluation.hash, top1, 0.4, 0.92, 5000, 2.5, 1.0, 0.8))


def test_a_confirmed_score_stands_and_the_searchs_is_kept_beside_it(
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
def test_what_is_not_done_has_no_score_in_its_row(make_evaluation: MakeEvaluation, changes: dict[str, Any]) -> None:
    row = front_row(make_evaluation(**changes))
    assert [row[name] for name in ("top1", "top1_low", "top1_high", "loss", "search_top1")] == [None] * 5
    assert row["images"] == changes.get("images", 1000)


def test_the_best_within_the_bounds(make_evaluation: MakeEvaluation) -> None:
    cheap, middle, dear = (
        make_evaluation(f"{i}:0.5", flops=flops, top1=top1)
        for i, (flops, top1) in enumerate([(400, 0.7), (500, 0.9), (600, 0.95)], start=1)
    )
    tie = make_evaluation("4:0.5", flops=550, top1=0.95)
    failed = make_evaluation("5:0.5", flops=1, top1=None, state="failed", failure="OOM")
    front = [dear, failed, cheap, middle]
    assert best_evaluation(front) is dear
    assert best_evaluation(front, max_flops=599) is middle
    assert best_evaluation(front, max_flops=600, min_top1=0.95) is dear
    assert best_evaluation([*front, tie]) is tie, "of equally accurate ones the cheapest"
    stopped = make_evaluation("6:0.5", flops=300, top1=0.99, state="stopped")
    lucky = confirm(make_evaluation("7:0.5", flops=300, top1=0.99), 0.94)
    assert best_evaluation([*front, stopped, lucky]) is dear
    assert best_evaluation([*front, stopped, lucky], max_flops=599) is lucky
    with pytest.raises(UsageError, match=r"the best is 7:0.5 .*top-1 0.9400"):
        best_evaluation([lucky], min_top1=0.95)


def test_no_schedule_within_the_bounds_names_the_nearest(make_evaluation: MakeEvaluation) -> None:
    front = [make_evaluation("1:0.5", flops=400, top1=0.7), make_evaluation("2:0.5", flops=500, top1=0.9)]
    with pytest.raises(UsageError, match=r"costs at most 399 FLOPs: the cheapest is 1:0.5 \(400 FLOPs"):
        best_evaluation(front, max_flops=399)
    with pytest.raises(UsageError, match=r"top-1 of at least 0.95: the best is 2:0.5 .*top-1 0.9000"):
        best_evaluation(front, min_top1=0.95)
    with pytest.raises(UsageError, match=r"at least 0.8 at no more than 450 FLOPs: the best is 1:0.5"):
        best_evaluation(front, max_flops=450, min_top1=0.8)
    with pytest.raises(UsageError, match="no finished evaluation"):
        best_evaluation([])


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, {"a": math.nan})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.json"
    write_json(target, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PrunefrontError, match=r"out\.json: cannot be written: No space left on device"):
        write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PrunefrontError, match="cannot be written: No such file or directory"):
        write_json(tmp_path / "nowhere" / "out.json", {})
    with pytest.raises(PrunefrontError, match="is a folder; name a file"):
        write_json(tmp_path, {})
    with pytest.raises(PrunefrontError, match="cannot be written"):
        write_json("/proc/nothing.json", {})
    assert [path.name for path in tmp_path.iterdir()] == []


def test_rights_and_links_are_respected(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    write_whole(target, b"one")
    umask = os.umask(0o022)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask
    target.chmod(0o600)
    link.symlink_to(target)
    write_whole(link, b"two")
    assert link.is_symlink()
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o600
