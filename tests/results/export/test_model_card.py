"""The model card: its figures are those of the record, and names are escaped."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import yaml

from results import Evaluation, FineTune, Study, StudySpec
from results.export.model_card import model_card
from results.export.schedule_json import export_schedule
from results.intervals import wilson_interval
from results.records import FineTuned

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]
EVIL = "a | b `c` <script>\n# heading [x](y)"
SIZES = {"input_size": (3, 28, 28), "mean": (0.5, 0.5, 0.5)}


def test_the_figures_are_those_of_the_record(make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    evaluation = make_evaluation("3:0.8", top1=0.9)
    form = export_schedule(evaluation, Study(1, datetime(2026, 1, 1, tzinfo=UTC), make_spec()))
    plain = model_card(form, SIZES, "f" * 64)
    assert "| dense model | 1 | 98.00 % | val, first 1,000 |" in plain
    low, high = wilson_interval(0.9, 1000)
    assert f"0.700 | 90.00 % ({100 * low:.2f} to {100 * high:.2f} at 95 %) | val, first 1,000 |" in plain
    assert "700,000 FLOPs" in plain and "f" * 64 in plain
    assert "fine-tuned" not in plain and "onnx" not in plain
    record = FineTune(evaluation.hash, 0.975, 0.1, 3, 1000, 60.0, "w", "f" * 64)
    exports = [
        {"target": "onnx", "runtime": "r", "images": 8, "max_difference": 1e-6, "largest_logit": 9, "same_answers": 1}
    ]
    full = model_card(form, SIZES, "f" * 64, finetune=record, exports=exports)
    assert "**this model: fine-tuned for 3 epochs** | 0.700 | **97.50 %** | val, first 1,000 |" in full
    held_out = replace(record, split="val", skip=1000, before_top1=0.88, dense_top1=0.96)
    runs = FineTuned.of([held_out, replace(held_out, top1=0.965)])
    several = model_card(form, SIZES, "f" * 64, finetune=held_out, runs=runs)
    assert "**97.50 %** | val, 1,001–2,000 |" in several
    assert "| dense model, on the images below | 1 | 96.00 % | val, 1,001–2,000 |" in several
    assert "mean of 2 such runs; this one is the best of them by this score" in several
    assert "| 97.00 % (96.50 to 97.50) | val, 1,001–2,000 |" in several
    assert "| onnx | r | 1e-06 (logits up to 9) | 100.0 % of 8 |" in full
    assert "90.00 %" not in model_card(form, SIZES, "f" * 64, measured=False)


def test_names_are_escaped(make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    spec = make_spec(name=EVIL, model=EVIL, data=EVIL, space=EVIL, versions={EVIL: EVIL})
    form = export_schedule(make_evaluation(origin=EVIL), Study(1, datetime(2026, 1, 1, tzinfo=UTC), spec))
    card = model_card(form, {EVIL: EVIL}, "f" * 64)
    assert "\n# heading" not in card
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["license"] == "unknown"
    for line in body.splitlines():
        outside = line.split("`")[::2]
        assert not any("<script>" in part.replace("\\<", "") for part in outside)
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (3, 5)
