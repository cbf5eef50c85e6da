r"""What a searched schedule is worth after fine-tuning, beside the published pattern and the dense model.

    python benchmarks/headline.py --model plain_mamba_nano --checkpoint F --data folder:cifar10 --out runs

Rows, each fine-tuned alike (`finetune`'s defaults) with several seeds:

    dense      no schedule
    published  the published places (5, 10, 15 of 24 blocks, at the same relative depths) with one ratio that meets
               the target; `drop`, `clip`, aligned
    grid       the best of the published family: every start and gap, two or three steps, one ratio; the same method
    rules      searched by the same rules: only places and ratios
    searched   searched with the context open

and at the target of the ablations the schedule of `rules` without alignment, and by each other score.

Schedules are chosen on the first `--images` of val, and all scores here are of the rest of val, which none of the
choices saw. `--train-images` bounds what an epoch runs over, the same images for all. Whatever is done is kept
below OUT, and not done again; an OUT of other settings is refused. With `--epochs 0` nothing is fine-tuned.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from search_quality import patterns, same_settings

import ssm_models
from search.data.dataset import ImageData, open_data
from search.evaluation.evaluator import Evaluator
from search.evaluation.metrics import Metrics
from search.evaluation.race import Entry
from search.models import open_model
from search.training.finetune import finetune_model, finetune_recipe
from spaces import FlopsBudget, PruningSchedule
from spaces.published import published_schedules
from spaces.schedule import PruningMethod, read_schedule_file
from spaces.space import SearchSpace, make_space
from spaces.strength import Place

SPACES = {
    "rules": "stages:3;importance=clip;alignment=on;context=drop",
    "searched": "stages:3;importance=clip;alignment=on;context=drop,conv,freeze",
}
ABLATED = 0.584  # of the dense FLOPs: -41.6 %


@dataclass(frozen=True)
class Contestant:
    """A row of the table: a schedule, and the share of the dense FLOPs that it was made for."""

    name: str
    target: float
    schedule: PruningSchedule


@cache
def bed(model: str, checkpoint: str | None, data: str) -> tuple[ImageData, ssm_models.PrunableModel]:
    """Open data and model, once in a process."""
    torch.set_num_threads(1)
    images = open_data(data)
    return images, open_model(model, checkpoint, images)


# --- who takes part --------------------------------------------------------------------------------------


def contestants(a: argparse.Namespace) -> Iterator[Contestant]:
    """Find the schedules of all rows; searches run as a user would run them."""
    _, model = bed(a.model, a.checkpoint, a.data)
    yield Contestant("dense", 1.0, PruningSchedule())
    for target in a.targets:
        space = space_at(model, target)
        yield Contestant("published", target, published(space, target))
    if ABLATED in a.targets and not a.short:
        yield Contestant("grid", ABLATED, best_of_grid(a, ABLATED))
    for name in SPACES:
        for target in a.targets:
            if name == "rules" and (a.short or target != ABLATED):
                continue
            found = searched(a, name, target)
            yield Contestant(name, target, found)
            if name == "rules" and target == ABLATED:
                yield Contestant("alignment=off", target, changed(found, alignment="off"))
                for importance in model.importances:
                    if importance != found.method.importance:
                        yield Contestant(f"importance={importance}", target, changed(found, importance=importance))


def changed(schedule: PruningSchedule, **method: str) -> PruningSchedule:
    """Return a schedule with another method at the same steps."""
    return replace(schedule, method=replace(schedule.method, **method))


def space_at(model: ssm_models.PrunableModel, target: float) -> SearchSpace:
    """The paper's space up to a share of the dense FLOPs."""
    table = ssm_models.cost_table(model)
    return make_space(SPACES["rules"], model.layout, table.flops, FlopsBudget.parse(str(target)))


def published(space: SearchSpace, target: float) -> PruningSchedule:
    """The published places with one ratio for the target."""
    longest = max(published_schedules(space.layout), key=lambda schedule: len(schedule.steps))
    places = [Place(step.after) for step in longest.steps if step.after in space.layout.places]
    return space.weakest(places, target * space.flops(PruningSchedule()), PruningMethod())


def best_of_grid(a: argparse.Namespace, target: float) -> PruningSchedule:
    """The best of the published family on the images that choices are made on."""
    kept = a.out / f"grid-{target:g}.txt"
    if not kept.exists():
        data, model = bed(a.model, a.checkpoint, a.data)
        space = space_at(model, target)
        family = list(patterns(space, target * space.flops(PruningSchedule()), PruningMethod()))
        batches = data.batches(model.pretrained_cfg, model.img_size, images=a.images, batch_size=100)
        best = max(zip(scores(model, batches, family), range(len(family)), strict=True))
        kept.write_text(family[best[1]].text)
    return PruningSchedule.parse(kept.read_text())


def scores(model: ssm_models.PrunableModel, batches: Any, schedules: list[PruningSchedule]) -> list[float]:
    """Top-1 of schedules, evaluated together."""
    found = Evaluator(model, batches).evaluate_group([Entry(schedule) for schedule in schedules])
    for metrics in found:
        if not isinstance(metrics, Metrics):
            raise metrics
    return [metrics.top1 for metrics in found if isinstance(metrics, Metrics)]


def searched(a: argparse.Namespace, name: str, target: float) -> PruningSchedule:
    """The best schedule of a study at the target; the study is searched first, or resumed."""
    kept = a.out / f"{name}-{target:g}.json"
    if not kept.exists():
        study = ("--study", name, "--db", f"sqlite:///{a.out / 'studies.db'}")
        weights = () if a.checkpoint is None else ("--checkpoint", a.checkpoint)
        low, high = min(a.targets) - 0.05, max(a.targets) + 0.01
        prunefront(
            "search", "--model", a.model, *weights, "--data", a.data, *study, "--space", SPACES[name],
            "--flops-budget", f"{low:.3f}:{high:.3f}", "--trials", str(a.trials), "--images", str(a.images),
            "--confirm-images", "0", "--workers", "1",
        )  # fmt: skip
        prunefront("export", *study, "--max-flops", f"{target:g}", "--out", str(kept))
    return PruningSchedule.from_dict(read_schedule_file(str(kept)), str(kept))


def prunefront(*arguments: str) -> None:
    """Run a command."""
    print("+ prunefront", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "search", *arguments], stdout=subprocess.DEVNULL, check=True)


# --- fine-tuning -----------------------------------------------------------------------------------------


def some_images(data: str, count: int, out: Path) -> str:
    """Return data with `count` images of train, in equal shares of the classes, and the same val: links below OUT."""
    kind, _, root = data.partition(":")
    if kind != "folder":
        raise SystemExit("--train-images is for --data folder:PATH")
    target = out / f"train-{count}"
    if not target.exists():
        making = out / "making"
        shutil.rmtree(making, ignore_errors=True)  # of a run that was stopped here
        classes = sorted(path for path in (Path(root) / "train").iterdir() if path.is_dir())
        for folder in classes:
            (making / "train" / folder.name).mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir())[: count // len(classes)]:
                (making / "train" / folder.name / file.name).symlink_to(file.resolve())
        (making / "val").symlink_to((Path(root) / "val").resolve())
        making.rename(target)
    return f"folder:{target}"


def tuned(job: tuple[argparse.Namespace, str, Contestant, int]) -> dict[str, Any]:
    """Fine-tune a contestant with a seed and score it on what no choice saw."""
    a, train, contestant, seed = job
    settings = f"{a.epochs} of {a.train_images or 'all'}"  # other ones are other runs
    folder = a.out / "runs" / settings / f"{contestant.schedule.hash[:16]}-{seed}"
    kept = folder / "score.json"
    if not kept.exists():
        torch.set_num_threads(1)
        data = open_data(train)
        model, teacher = (open_model(a.model, a.checkpoint, data) for _ in range(2))
        recipe = finetune_recipe(a.epochs, seed=seed)
        result = finetune_model(model, teacher, data, contestant.schedule, recipe, out=folder, images=100)
        rest = data.batches(model.pretrained_cfg, model.img_size, skip=a.images, batch_size=100)
        top1 = scores(model, rest, [contestant.schedule])[0]
        kept.write_text(json.dumps({"top1": top1, "seconds": result.fit.seconds}))
        for weights in (result.checkpoint, folder / "last.pt"):  # megabytes that nobody asked for
            if weights is not None:
                weights.unlink(missing_ok=True)
    found: dict[str, Any] = json.loads(kept.read_text())
    print(f"{contestant.name} at {contestant.target:g}, seed {seed}: {found}", file=sys.stderr, flush=True)
    return found


# --- the table -------------------------------------------------------------------------------------------


def main() -> None:
    """Do what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="plain_mamba_nano")
    parser.add_argument("--checkpoint")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--out", type=Path, default=Path("headline"))
    parser.add_argument("--targets", type=float, nargs="+", default=[0.8, 0.7, ABLATED, 0.5], help="shares of FLOPs")
    parser.add_argument("--short", action="store_true", help="dense, published and searched alone")
    parser.add_argument("--images", type=int, default=1500, help="of val, on which schedules are chosen")
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    a = parser.parse_args()
    a.out = a.out.resolve()
    a.out.mkdir(parents=True, exist_ok=True)
    shared = {name: getattr(a, name) for name in ("model", "checkpoint", "data", "targets", "images", "trials")}
    same_settings(a.out / "settings.json", shared)
    rows = list(contestants(a))
    data, model = bed(a.model, a.checkpoint, a.data)
    table = ssm_models.cost_table(model)
    rest = data.batches(model.pretrained_cfg, model.img_size, skip=a.images, batch_size=100)
    before = scores(model, rest, [row.schedule for row in rows])
    after: dict[int, list[dict[str, Any]]] = {i: [] for i in range(len(rows))}
    if a.epochs:
        train = a.data if a.train_images is None else some_images(a.data, a.train_images, a.out)
        ordered = sorted(rows, key=lambda row: "=" in row.name)  # the ablations last
        jobs = {(row.schedule, seed): (a, train, row, seed) for seed in range(a.seeds) for row in ordered}
        with ProcessPoolExecutor(a.jobs) as pool:
            done = dict(zip(jobs, pool.map(tuned, jobs.values()), strict=True))
        after = {i: [done[row.schedule, seed] for seed in range(a.seeds)] for i, row in enumerate(rows)}
    print("| row | target | schedule | of dense FLOPs | before | after | s a run |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for i, row in enumerate(rows):
        tops = [100 * run["top1"] for run in after[i]]
        cells = "| | "
        if tops:
            seconds = statistics.mean(run["seconds"] for run in after[i])
            cells = f"{statistics.mean(tops):.2f} ({min(tops):.2f}–{max(tops):.2f}) | {seconds:.0f}"
        share = table.flops(row.schedule) / table.dense
        text = row.schedule.text or "–"
        print(f"| {row.name} | {row.target - 1:+.1%} | `{text}` | {share:.3f} | {100 * before[i]:.2f} | {cells} |")


if __name__ == "__main__":
    main()
