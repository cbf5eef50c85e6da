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


def reproducing_commands(
    study: Study,
    trials: int,
    tuned: Sequence[tuple[Evaluation, FineTune]] = (),
    settings: Mapping[str, object] | None = None,
) -> list[str]:
    """Return the command lines that repeat a study: its search, its fine-tunings and its report.

    Args:
        study: the study.
        trials: evaluations recorded in all.
        tuned: fine-tunings, each with its point; those of one point follow each other.
        settings: further settings of the search by name, where `batch_size` becomes `--batch-size`; by default all
            that are stored with the study.
    """
    spec = study.spec
    usual = set(spec.objectives) == {"top1", "flops"}
    known: dict[str, object] = {
        "model": spec.model,
        "data": spec.shown_data,
        "flops_budget": spec.budget,
        "trials": trials,
        "study": spec.name,
        "space": spec.space,
        "sampler": spec.sampler,
        "images": spec.images,
        "seed": spec.seed,
    }
    last = {"checkpoint": spec.shown_checkpoint, "objective": None if usual else spec.objectives}
    more = {k: v for k, v in (spec.config if settings is None else settings).items() if k not in known | last}
    weights = {} if spec.shown_checkpoint is None else {"--checkpoint": spec.shown_checkpoint}
    search = {_option(name): value for name, value in (known | more | last).items() if value is not None}
    named: dict[str, object] = {"--study": spec.name}
    commands = [_command("search", search), _command("front", named)]
    for point, record in tuned:
        file = f"{point.hash}.json"
        exported = _command("export", {**named, "--schedule": point.schedule.text, "--out": file})
        if exported not in commands:
            commands.append(exported)
        teaching = record.config.get("distillation", {})
        told = {**record.config, **teaching, "distill": teaching.get("share"), "epochs": record.epochs}
        recipe = {_option(name): told[name] for name in _RECIPE if told.get(name) is not None}
        scored: dict[str, object] = {"--split": record.split or "val", "--images": record.images}
        if record.skip:
            scored["--skip"] = record.skip
        out = {"--out": portable(str(PurePath(record.checkpoint).parent))}
        commands.append(
            _command(f"finetune {file}", {"--data": spec.shown_data, **weights, **recipe, **scored, **out, **named})
        )
    if not tuned:
        commands.append(_command("export", {**named, "--out": "schedule.json"}))
    return [*commands, _command("report", {**named, "--out": "report.html"})]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _command(name: str, options: Mapping[str, object]) -> str:
    words = ["prunefront", name]
    for key, value in options.items():
        for each in value if isinstance(value, list | tuple) else (value,):
            words += [key, shlex.quote(str(each))]
    return " ".join(words)
