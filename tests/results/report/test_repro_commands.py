"""The commands that make a study again."""

import inspect
import re
import shlex
from dataclasses import asdict

from results import FineTune, Study
from results.report.report import reproducing_commands
from search.cli import app
from search.training.distillation import Distillation
from search.training.recipe import Recipe
from tests.results.shown import NOW, MakeEvaluation, MakeSpec

RUN = {"distillation": asdict(Distillation()), "workers": 2}


def test_the_commands_reproduce_the_study(make_spec: MakeSpec) -> None:
    study = Study(1, NOW, make_spec(name="it's mine", checkpoint="/models/a b.safetensors"))
    search, front, export, report = reproducing_commands(study, 40)
    assert search.startswith("prunefront search --model vim_nano --data embedded --flops-budget 0.8 --trials 40 ")
    assert """--study 'it'"'"'s mine'""" in search
    assert "--checkpoint 'a b.safetensors'" in search, "folders of this machine are nobody else's"
    assert report.endswith("--out report.html")
    assert front.startswith("prunefront front --study ") and export.endswith("--out schedule.json")
    assert "--objective" not in search
    told = make_spec(config={"brood": 16, "batch_size": 32, "workers": None})
    assert reproducing_commands(Study(1, NOW, told), 40)[0].endswith("--batch-size 32 --brood 16")
    other, *_ = reproducing_commands(Study(1, NOW, make_spec(objectives=("loss", "latency"))), 40)
    assert other.endswith("--objective loss --objective latency")


def test_what_was_fine_tuned_is_exported_and_fine_tuned_again(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    point = make_evaluation("3:0.8;context=freeze")
    config = {"lr": 0.001, "batch_size": 32, "seed": 5, "amp": "bf16", "ema": 0.99, "warmup": 0.1, "workers": 2}
    config |= {"distillation": {"share": 0.3, "temperature": 3.0, "features": 0.2}}
    record = FineTune(point.hash, 0.95, 0.2, 7, 1000, 60.0, "out/a b/model.safetensors", "f" * 64, config)
    study = Study(1, NOW, make_spec(checkpoint="w.pth"))
    _, _, export, finetune, _ = reproducing_commands(study, 40, [(point, record)])
    assert export == f"prunefront export --study digits --schedule '3:0.8;context=freeze' --out {point.hash}.json"
    assert finetune == (
        f"prunefront finetune {point.hash}.json --data embedded --checkpoint w.pth --epochs 7 --seed 5 --lr 0.001 "
        "--batch-size 32 --ema 0.99 --amp bf16 --workers 2 --distill 0.3 --temperature 3.0 --features 0.2 "
        "--out 'out/a b' --study digits"
    )


def test_the_commands_are_commands(make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    point = make_evaluation()
    record = FineTune(point.hash, 0.95, 0.2, 7, 1000, 60.0, "out/m.safetensors", "f" * 64, asdict(Recipe(7)) | RUN)
    offered = {command.name or command.callback.__name__: command.callback for command in app.registered_commands}
    for line in reproducing_commands(Study(1, NOW, make_spec(checkpoint="w")), 40, [(point, record)]):
        _, name, *words = shlex.split(line)
        names = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
        hints = inspect.signature(offered[name]).parameters
        flags = {flag for p in hints.values() for flag in re.findall(r"--([a-z0-9-]+)", str(p.annotation))}
        assert names <= {*hints, *(flag.replace("-", "_") for flag in flags)}, line
