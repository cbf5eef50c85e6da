"""The commands that make a study again."""

import inspect
import re
import shlex
from dataclasses import asdict

from results import FineTune, Study
from results.report.report import reproducing_commands
from search.cli import app
from search.config import SearchConfig
from search.settings import build, reproducing_settings
from search.training.distillation import Distillation
from search.training.recipe import Recipe
from tests.results.shown import NOW, MakeEvaluation, MakeSpec
from tests.search.parsing import parse

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
    other, *_ = reproducing_commands(Study(1, NOW, make_spec(objectives=("loss", "latency"))), 40)
    assert other.endswith("--objective loss --objective latency")


def test_the_settings_that_are_stored_are_repeated(make_spec: MakeSpec) -> None:
    config = {"trials": 7, "batch_size": 32, "workers": None, "group": 16, "space": "s", "tags": ["a", "b c"]}
    study = Study(1, NOW, make_spec(config=config, checkpoint="w", objectives=("loss", "flops")))
    line = reproducing_commands(study, 40)[0]
    assert line.endswith(
        "--seed 7 --batch-size 32 --group 16 --tags a --tags 'b c' --checkpoint w --objective loss --objective flops"
    )
    assert line.count("--trials") == line.count("--space") == 1
    few = reproducing_commands(study, 40, settings={"group": 16, "workers": None})[0]
    assert few == line.replace("--batch-size 32 ", "").replace("--tags a --tags 'b c' ", "")


def test_a_study_of_an_earlier_version_has_a_command_that_works(make_spec: MakeSpec) -> None:
    config = {
        name: value
        for name, value in SearchConfig(model="vim_nano", study="s", data="embedded", flops_budget="0.8", trials=9)
        .as_dict()
        .items()
        if name != "group"
    } | {"brood": 16}
    study = Study(1, NOW, make_spec(config=config))
    for settings in (None, reproducing_settings(config, SearchConfig)):
        words = shlex.split(reproducing_commands(study, 40, settings=settings)[0])[2:]
        assert build(SearchConfig, parse(words, SearchConfig)).group == 16
    assert "--group 16" in reproducing_commands(study, 40, settings=settings)[0]
    assert "--db-patience" not in reproducing_commands(study, 40, settings=settings)[0]


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
        "--split val --images 1000 "
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
