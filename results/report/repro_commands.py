"""The command lines that repeat a study, from what it records of itself."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from results.portable import portable
from results.records import Evaluation, FineTune, Study

# What a fine-tuning is told by options of the same names; the rest of its recipe (warmup, clip) has none.
_RECIPE = (
    "epochs", "seed", "lr", "batch_size", "weight_decay", "mixup", "cutmix", "label_smoothing", "ema", "amp",
    "workers", "distill", "temperature", "features",
)  # fmt: skip


def reproducing_commands(study: Study, trials: int, tuned: Sequence[tuple[Evaluation, FineTune]] = ()) -> list[str]:
    """Return the command lines that search this study again, fine-tune what was fine-tuned, and write its page.

    Args:
        study: the study.
        trials: evaluations recorded in all.
        tuned: points with the fine-tuning that each had.
    """
    spec = study.spec
    search: dict[str, object] = {
        "--model": spec.model,
        "--data": spec.shown_data,
        "--flops-budget": spec.budget,
        "--trials": trials,
        "--study": spec.name,
        "--space": spec.space,
        "--sampler": spec.sampler,
        "--images": spec.images,
        "--seed": spec.seed,
    }
    for name in ("batch_size", "workers", "brood", "race_error", "confirm_images", "confirm_split"):
        if (value := spec.config.get(name)) is not None:
            search[_option(name)] = value
    weights = {} if spec.shown_checkpoint is None else {"--checkpoint": spec.shown_checkpoint}
    search |= weights
    if set(spec.objectives) != {"top1", "flops"}:
        search["--objective"] = spec.objectives
    named: dict[str, object] = {"--study": spec.name}
    commands = [_command("search", search), _command("front", named)]
    for point, record in tuned:
        file = f"{point.hash}.json"
        commands.append(_command("export", {**named, "--schedule": point.schedule.text, "--out": file}))
        teaching = record.config.get("distillation", {})
        told = {**record.config, **teaching, "distill": teaching.get("share"), "epochs": record.epochs}
        recipe = {_option(name): told[name] for name in _RECIPE if told.get(name) is not None}
        out = {"--out": portable(str(PurePath(record.checkpoint).parent))}
        commands.append(
            _command(f"finetune {file}", {"--data": spec.shown_data, **weights, **recipe, **out, **named})
        )
    if not tuned:
        commands.append(_command("export", {**named, "--out": "schedule.json"}))
    return [*commands, _command("report", {**named, "--out": "report.html"})]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _command(name: str, options: Mapping[str, object]) -> str:
    words = ["prunefront", name]
    for key, value in options.items():
        for each in value if isinstance(value, tuple) else (value,):
            words += [key, shlex.quote(str(each))]
    return " ".join(words)
