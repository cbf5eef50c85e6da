r"""Accuracy of searched schedules after fine-tuning, compared with the published pattern and the dense model.

    python benchmarks/headline.py --model plain_mamba_nano --checkpoint F --data folder:cifar10 --out runs

Rows, each fine-tuned with the defaults of `finetune` and several seeds:

    dense      no schedule
    published  the published places (5, 10, 15 of 24 blocks, at the same relative depths) with a single ratio that
               meets the target; `drop`, `clip`, aligned
    grid       the best of the published family: every start and gap, two or three steps, a single ratio; same method
    rules      searched over places and ratios only, with the same method
    searched   searched over the context as well

and, at the target of the ablations, the schedule of `rules` without alignment and with each other importance.

Schedules are chosen on the first `--images` of val. All scores are over the rest of val, which no choice has seen.
`--train-images` limits an epoch to a subset, the same for all. Results are kept below OUT and not computed again; an
OUT of other settings is refused. With `--epochs 0` nothing is fine-tuned.
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
from search.data.image_set import ImageSet
from search.evaluation.evaluator import Evaluator
from search.evaluation.metrics import Metrics
from search.evaluation.race import Entry
from search.models import open_model
from search.training.finetune import finetune_model, finetune_recipe
from search.training.finetune_job import FineTuneJob
from search.training.training_run import TrainingRun
from spaces import FlopsBudget, PruningSchedule
from spaces.published import published_schedules
from spaces.schedule import PruningMethod, read_schedule_file
from spaces.solver import Place
from spaces.space import SearchSpace, make_space

SPACES = {
    "rules": "stages:3;importance=clip;alignment=on;context=drop",
    "searched": "stages:3;importance=clip;alignment=on;context=drop,conv,freeze",
}
ABLATED = 0.584  # of the dense FLOPs: -41.6 %


@dataclass(frozen=True)
class Contestant:
    """A row of the table: a schedule, and its target as a share of the dense FLOPs."""

    name: str
    target: float
    schedule: PruningSchedule


@cache
def bed(model: str, checkpoint: str | None, data: str) -> tuple[ImageData, ssm_models.PrunableModel]:
    """Open data and model, once per process."""
    torch.set_num_threads(1)
    images = open_data(data)
    return images, open_model(model, checkpoint, images)


# --- schedules -------------------------------------------------------------------------------------------


def contestants(a: argparse.Namespace) -> Iterator[Contestant]:
    """Yield the rows; searches run by the commands that a user would type."""
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
    """Return a schedule with the same steps and another method."""
    return replace(schedule, method=replace(schedule.method, **method))


def space_at(model: ssm_models.PrunableModel, target: float) -> SearchSpace:
    """Return the paper's space, up to a share of the dense FLOPs."""
    table = ssm_models.cost_table(model)
    return make_space(SPACES["rules"], model.layout, table.flops, FlopsBudget.parse(str(target)))


def published(space: SearchSpace, target: float) -> PruningSchedule:
    """Return the published places with a single ratio for the target."""
    longest = max(published_schedules(space.layout), key=lambda schedule: len(schedule.steps))
    places = [Place(step.after) for step in longest.steps if step.after in space.layout.places]
    return space.weakest(places, target * space.flops(PruningSchedule()), PruningMethod())


def best_of_grid(a: argparse.Namespace, target: float) -> PruningSchedule:
    """Return the best of the published family on the images for choosing."""
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
    """Return the top-1 of schedules, evaluated together."""
    found = Evaluator(model, batches).evaluate_group([Entry(schedule) for schedule in schedules])
    for metrics in found:
        if not isinstance(metrics, Metrics):
            raise metrics
    return [metrics.top1 for metrics in found if isinstance(metrics, Metrics)]


def searched(a: argparse.Namespace, name: str, target: float) -> PruningSchedule:
    """Return the best schedule of a study at the target; the study is searched first, or resumed."""
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
    """Return a data set with `count` images of train, balanced over the classes, and all of val: links below OUT."""
    kind, _, root = data.partition(":")
    if kind != "folder":
        raise SystemExit("--train-images is for --data folder:PATH")
    target = out / f"train-{count}"
    if not target.exists():
        making = out / "making"
        shutil.rmtree(making, ignore_errors=True)  # left by a run that was interrupted here
        classes = sorted(path for path in (Path(root) / "train").iterdir() if path.is_dir())
        for folder in classes:
            (making / "train" / folder.name).mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir())[: count // len(classes)]:
                (making / "train" / folder.name / file.name).symlink_to(file.resolve())
        (making / "val").symlink_to((Path(root) / "val").resolve())
        making.rename(target)
    return f"folder:{target}"


def tuned(job: tuple[argparse.Namespace, str, Contestant, int]) -> dict[str, Any]:
    """Fine-tune a row with a seed, and score it on the images that no choice has seen."""
    a, train, contestant, seed = job
    settings = f"{a.epochs} of {a.train_images or 'all'}"  # other settings are other runs
    folder = a.out / "runs" / settings / f"{contestant.schedule.hash[:16]}-{seed}"
    kept = folder / "score.json"
    if not kept.exists():
        torch.set_num_threads(1)
        data = open_data(train)
        model, teacher = (open_model(a.model, a.checkpoint, data) for _ in range(2))
        recipe = finetune_recipe(a.epochs, seed=seed)
        held_out = ImageSet("val", data.size() - a.images, skip=a.images)
        tuning = FineTuneJob(contestant.schedule, recipe, images=held_out.first(100))  # only to follow it
        result = finetune_model(model, teacher, data, tuning, TrainingRun(folder))
        top1 = scores(model, held_out.batches(data, model), [contestant.schedule])[0]
        kept.write_text(json.dumps({"top1": top1, "seconds": result.fit.seconds}))
        for weights in (result.checkpoint, folder / "last.pt"):  # large, and not needed any more
            if weights is not None:
                weights.unlink(missing_ok=True)
    found: dict[str, Any] = json.loads(kept.read_text())
    print(f"{contestant.name} at {contestant.target:g}, seed {seed}: {found}", file=sys.stderr, flush=True)
    return found


# --- the table -------------------------------------------------------------------------------------------


def read_arguments() -> argparse.Namespace:
    """Return the command line's arguments; OUT is made, and refused if it is of other settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="plain_mamba_nano")
    parser.add_argument("--checkpoint")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--out", type=Path, default=Path("headline"))
    parser.add_argument("--targets", type=float, nargs="+", default=[0.8, 0.7, ABLATED, 0.5], help="shares of FLOPs")
    parser.add_argument("--short", action="store_true", help="only dense, published and searched")
    parser.add_argument("--images", type=int, default=1500, help="val images for choosing schedules")
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
    return a


def finetuned(a: argparse.Namespace, rows: list[Contestant]) -> list[list[dict[str, Any]]]:
    """Return the fine-tunings of each row, one per seed; none with --epochs 0."""
    if not a.epochs:
        return [[] for _ in rows]
    train = a.data if a.train_images is None else some_images(a.data, a.train_images, a.out)
    ordered = sorted(rows, key=lambda row: "=" in row.name)  # the ablations last
    jobs = {(row.schedule, seed): (a, train, row, seed) for seed in range(a.seeds) for row in ordered}
    with ProcessPoolExecutor(a.jobs) as pool:
        done = dict(zip(jobs, pool.map(tuned, jobs.values()), strict=True))
    return [[done[row.schedule, seed] for seed in range(a.seeds)] for row in rows]


def main() -> None:
    """Compute what is missing and print the table."""
    a = read_arguments()
    rows = list(contestants(a))
    data, model = bed(a.model, a.checkpoint, a.data)
    table = ssm_models.cost_table(model)
    rest = data.batches(model.pretrained_cfg, model.img_size, skip=a.images, batch_size=100)
    before = scores(model, rest, [row.schedule for row in rows])
    after = finetuned(a, rows)
    print("| row | target | schedule | of dense FLOPs | before | after | s a run |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row, top1, runs in zip(rows, before, after, strict=True):
        tops = [100 * run["top1"] for run in runs]
        cells = "| | "
        if tops:
            seconds = statistics.mean(run["seconds"] for run in runs)
            cells = f"{statistics.mean(tops):.2f} ({min(tops):.2f}–{max(tops):.2f}) | {seconds:.0f}"
        share = table.flops(row.schedule) / table.dense
        text = row.schedule.text or "–"
        print(f"| {row.name} | {row.target - 1:+.1%} | `{text}` | {share:.3f} | {100 * top1:.2f} | {cells} |")


if __name__ == "__main__":
    main()
