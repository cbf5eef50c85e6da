r"""How good are the schedules that a search finds, and how soon? All methods in one run, with one evaluator.

    python benchmarks/search_quality.py --model vim_nano --checkpoint F --data folder:cifar10 \
        --images 500 --out quality.json

Methods, each with its own idea of what to try next:

    pattern      the published family: after blocks s, s+g, s+2g with one ratio; its whole grid, at the targets
    random       points of prunefront's space at random, all within the budget
    nsga2-plain  a loop of Optuna's NSGA-II over raw places and ratios, objectives top-1 and FLOPs
    tpe-plain    the same with Optuna's TPE
    nsga2, tpe   prunefront with these samplers
    prunefront   prunefront as it comes, each candidate knowing all before it
    cold         the same without starting schedules, as the samplers of the plain loops begin
    groups-4     prunefront with groups of 4 candidates (the default of `search`), which are decided together; or 16

Three modes: `fixed` (context drop, importance clip, aligned: only places and ratios compete), `open` (the context
is searched, too; `pattern` is then given the best context for each of its schedules) and `all` (score, alignment and
reduction as well; a whole grid of that is out of reach). The first plays by the paper's rules, the others show what
the rules cost.

What a method found looks better on its own images than it is. So its front, chosen on these, is scored again on the
rest of val, which no method saw: the hypervolume of those scores, and the best schedule at -41.6 %. Methods are
compared by the differences of one seed each, on the same images, with a 95 % interval over seeds (Student's t).

Time is the CPU seconds of one thread. What a plain loop would spend on an evaluation is its FLOPs at the measured
speed of whole forward passes; prunefront is timed as it runs, sampler, shared beginnings and races included.
Evaluations are remembered over methods and seeds, so that the figures of all are of the same numbers.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import optuna
import torch
from scipy import stats

import ssm_models
from results import Evaluation, hypervolume, pareto_front
from results.records import Confirmation, News
from search.data.dataset import Batches, open_data
from search.driver.proposer import CandidateSource
from search.driver.searcher import ScheduleSearcher, SearchPlan
from search.driver.study_state import StudyState
from search.evaluation.evaluator import Evaluator
from search.evaluation.metrics import Metrics
from search.evaluation.protocol import SEARCH, task_entries
from search.evaluation.race import Entry
from search.evaluation.worker import measurement
from search.models import open_model
from search.samplers.registry import make_sampler
from spaces import FlopsBudget, PruningSchedule
from spaces.published import starting_schedules
from spaces.schedule import PruningMethod
from spaces.solver import LEAST_KEEP, Place
from spaces.space import SearchSpace, make_space

SHAPE = "stages:3"
HELD_OUT = 0.584  # the target at which the best schedules are tried on images that are held out
CHOICES = {
    "fixed": "importance=clip;alignment=on;context=drop",
    "open": "importance=clip;alignment=on",
    "all": "importance=clip,l1,l2,sum,delta;alignment=on,off,hold,neighbour;reduction=prune,merge",
}
TARGETS = (0.8, 0.7, 0.584, 0.5)  # shares of the dense FLOPs: -20, -30, -41.6 and -50 %
BUDGET = "0.4:0.85"
RENAMED = {"broods-4": "groups-4", "broods-16": "groups-16"}  # methods in files of results that older versions wrote
EVALUATIONS = defaultdict(lambda: 120, random=600)
COUNTS = (20, 60, 120, 600)


@dataclass
class Bed:
    """A model and images to search on; `seen` remembers every evaluation of this process."""

    evaluator: Evaluator
    batches: Batches
    table: ssm_models.CostTable
    model: ssm_models.PrunableModel
    images: int
    speed: float  # CPU seconds of whole forward passes over all images, for a FLOP of one image
    rest: Evaluator  # on the images that are held out
    budget: str
    seen: dict[Any, Metrics] = field(default_factory=dict)
    seen_held_out: dict[str, float] = field(default_factory=dict)

    def share(self, schedule: PruningSchedule) -> float:
        """FLOPs as a share of the dense model's."""
        return self.table.flops(schedule) / self.table.dense

    def top1(self, schedule: PruningSchedule) -> float:
        """Accuracy over all images."""
        tokens = self.model.layout.tokens(schedule)
        key = (tuple((s.after, tokens[s.after - 1]) for s in schedule.steps), schedule.method)
        if key not in self.seen:
            self.seen[key] = self.evaluator.evaluate(schedule)
        return self.seen[key].top1

    def held_out(self, texts: Sequence[str]) -> list[float]:
        """Accuracy of schedules on the images that are held out."""
        new = [text for text in dict.fromkeys(texts) if text not in self.seen_held_out]
        found = self.rest.evaluate_group([Entry(PruningSchedule.parse(text)) for text in new])
        for text, metrics in zip(new, found, strict=True):
            assert isinstance(metrics, Metrics)
            self.seen_held_out[text] = metrics.top1
        return [self.seen_held_out[text] for text in texts]

    def space(self, mode: str, budget: str | None = None) -> SearchSpace:
        """The space of a mode."""
        within = FlopsBudget.parse(budget or self.budget)
        return make_space(f"{SHAPE};{CHOICES[mode]}", self.model.layout, self.table.flops, within)


@dataclass
class Trace:
    """What a method did: for each evaluation its share of FLOPs, its top-1 (None: stopped early), seconds so far."""

    method: str
    mode: str
    seed: int
    rows: list[tuple[float, float | None, float, str]] = field(default_factory=list)
    # On images that no method saw: top-1 of the best schedule at the third target, and the front's hypervolume.
    held_out: float | None = None
    held_out_volume: float | None = None


def open_bed(a: argparse.Namespace, cache: int = 2**30) -> Bed:
    """Open the model and the images; time some whole forward passes."""
    torch.set_num_threads(1)
    data = open_data(a.data)
    model = open_model(a.model, a.checkpoint, data)
    batches = data.batches(model.pretrained_cfg, model.img_size, images=a.images, batch_size=100)
    table = ssm_models.cost_table(model)
    evaluator = Evaluator(model, batches, prefix_cache=cache)
    images = evaluator.dense.images
    sample = [PruningSchedule.of([(3, 0.7), (6, 0.7)], context=c) for c in ("drop", "conv", "freeze")]
    began = time.process_time()
    for schedule in sample:
        model.set_schedule(schedule)
        with torch.inference_mode():
            for pixels, _ in batches:
                model(pixels)
    speed = (time.process_time() - began) / sum(table.flops(s) for s in sample)
    rest = Evaluator(
        model, data.batches(model.pretrained_cfg, model.img_size, images=a.held_out, skip=images, batch_size=100)
    )
    return Bed(evaluator, batches, table, model, images, speed, rest, a.budget)


# --- the methods -----------------------------------------------------------------------------------------


def patterns(space: SearchSpace, target: float, method: PruningMethod) -> Iterator[PruningSchedule]:
    """Yield the published family at a cost: after blocks s, s+g(, s+2g) with one ratio, solved for `target` FLOPs."""
    depth = space.layout.depth
    for start, gap, count in product(range(1, depth), range(1, depth), (2, 3)):
        places = [start + i * gap for i in range(count)]
        if places[-1] < depth:
            schedule = space.weakest([Place(after) for after in places], target, method)
            reached = [s.after for s in schedule.steps] == places and space.flops(schedule) <= target
            if reached:  # from these places
                yield schedule


def pattern(bed: Bed, mode: str, seed: int) -> Trace:
    """The whole grid of the published family, at each target."""
    trace, spent = Trace("pattern", mode, seed), 0.0
    for context, target in product(bed.space(mode).choices["context"], TARGETS):
        space = bed.space(mode, str(target))
        for schedule in patterns(space, target * bed.table.dense, PruningMethod(context=context)):
            spent += bed.speed * bed.table.flops(schedule)
            trace.rows.append((bed.share(schedule), bed.top1(schedule), spent, schedule.text))
    return trace


def at_random(bed: Bed, mode: str, seed: int) -> Trace:
    """Random points of the space."""
    space, trace, spent = bed.space(mode), Trace("random", mode, seed), 0.0
    sampler = make_sampler("random", space, ("top1", "flops"), seed=seed, trials=EVALUATIONS["random"])
    while len(trace.rows) < EVALUATIONS["random"]:
        schedule = space.schedule(sampler.ask().values)
        spent += bed.speed * bed.table.flops(schedule)
        trace.rows.append((bed.share(schedule), bed.top1(schedule), spent, schedule.text))
    return trace


def plain(name: str) -> Callable[[Bed, str, int], Trace]:
    """A loop of Optuna over raw places, ratios and choices, as its documentation would have it."""

    def run(bed: Bed, mode: str, seed: int) -> Trace:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        trace, spent, depth = Trace(name, mode, seed), 0.0, bed.model.layout.depth
        sampler = (
            optuna.samplers.NSGAIISampler(seed=seed) if "nsga2" in name else optuna.samplers.TPESampler(seed=seed)
        )
        study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
        choices = bed.space(mode).choices
        while len(trace.rows) < EVALUATIONS[name]:
            began = time.process_time()
            trial = study.ask()
            places = {trial.suggest_int(f"after_{i}", 1, depth - 1): i for i in range(3)}
            steps = [(after, trial.suggest_float(f"keep_{i}", LEAST_KEEP, 1.0)) for after, i in places.items()]
            method = {name: trial.suggest_categorical(name, names) for name, names in choices.items()}
            schedule = PruningSchedule.of(steps, **method)
            flops = bed.table.flops(schedule)
            asked = time.process_time() - began
            top1 = bed.top1(schedule)
            study.tell(trial, [top1, flops])
            spent += asked + bed.speed * flops
            trace.rows.append((bed.share(schedule), top1, spent, schedule.text))
        return trace

    return run


class Memory:
    """A study's evaluations in memory, for one driver alone; nothing is confirmed."""

    def __init__(self) -> None:
        self.evaluations: dict[str, Evaluation] = {}

    def claim(self, evaluations: Sequence[Evaluation], trials: int) -> set[str]:
        """Grant what is new, as far as the total allows."""
        new = [e.hash for e in evaluations if e.hash not in self.evaluations]
        return set(new[: trials - len(self.evaluations)])

    def take_over(self, most: int, trials: int) -> list[Evaluation]:
        """Return none: nobody else is at work."""
        return []

    def retry(self, schedule_hash: str) -> bool:
        """Allow it."""
        return True

    def record(self, evaluation: Evaluation) -> Evaluation | None:
        """Keep it."""
        self.evaluations[evaluation.hash] = evaluation
        return evaluation

    def news(self) -> News:
        """Return none: all that finished was recorded here."""
        return News([], elsewhere=0, waiting=0)

    def evaluation(self, schedule_hash: str) -> Evaluation | None:
        """Look it up."""
        return self.evaluations.get(schedule_hash)

    def confirmation(self, schedule_hash: str) -> Confirmation | None:
        """Return none."""
        return None

    def confirm(self, confirmation: Confirmation) -> Confirmation | None:
        """Forget it."""
        return confirmation


def ours(
    name: str, sampler_name: str, group: int = 1, race: bool = True, starts: bool = True
) -> Callable[[Bed, str, int], Trace]:
    """The project's own searcher, with one worker in this process in place of Ray's."""

    def run(bed: Bed, mode: str, seed: int) -> Trace:
        space, trace, trials = bed.space(mode), Trace(name, mode, seed), EVALUATIONS[name]
        began = time.process_time()
        sampler = make_sampler(sampler_name, space, ("top1", "flops"), seed=seed, trials=trials)
        evaluator = Evaluator(
            bed.model, bed.batches, dense=bed.evaluator.dense_answers, prefix_cache=2**30, error=0.05
        )
        records = Memory()
        searcher = ScheduleSearcher(
            CandidateSource(space, sampler, starting_schedules(space) if starts else [], seed),
            StudyState(("top1", "flops"), bed.model.layout, (), race=race), records,
            SearchPlan(trials, group, confirm=False),
        )  # fmt: skip
        number = 0
        while isinstance(task := searcher.suggest(f"t{number}"), dict):
            assert task["task"] == SEARCH
            entries = task_entries(task, bed.images)
            found = evaluator.evaluate_group(entries)
            results = [measurement(metrics) for metrics in found if isinstance(metrics, Metrics)]
            searcher.on_trial_complete(f"t{number}", {"results": results})
            number += 1
            spent = time.process_time() - began
            for entry, metrics in zip(entries, found, strict=True):
                assert isinstance(metrics, Metrics)
                top1 = None if metrics.stopped else metrics.top1
                trace.rows.append((bed.share(entry.schedule), top1, spent, entry.schedule.text))
        if searcher.error is not None:
            raise searcher.error
        return trace

    return run


METHODS: dict[str, Callable[[Bed, str, int], Trace]] = {
    "pattern": pattern,
    "random": at_random,
    "nsga2-plain": plain("nsga2-plain"),
    "tpe-plain": plain("tpe-plain"),
    "nsga2": ours("nsga2", "nsga2"),
    "tpe": ours("tpe", "tpe"),
    "prunefront": ours("prunefront", "gp"),
    "cold": ours("cold", "gp", starts=False),
    "groups-4": ours("groups-4", "gp", group=4),
    "groups-16": ours("groups-16", "gp", group=16),
}


# --- running them ----------------------------------------------------------------------------------------

_BED: Bed | None = None


def work(job: tuple[argparse.Namespace, str, str, int]) -> Trace:
    """Run one method with one seed in a worker process, which keeps its bed."""
    global _BED
    a, method, mode, seed = job
    _BED = _BED or open_bed(a)
    trace = METHODS[method](_BED, mode, seed)
    within = [(top1, text) for share, top1, _, text in trace.rows if top1 is not None and share <= HELD_OUT]
    if within:
        (trace.held_out,) = _BED.held_out([max(within)[1]])
    low, high = bounds(a.budget)
    done = [(share, top1, text) for share, top1, _, text in trace.rows if top1 is not None and share <= high]
    front = [done[i] for i in pareto_front([(max(share, low), top1) for share, top1, _ in done])]
    scores = _BED.held_out([text for *_, text in front])
    trace.held_out_volume = volume([(row[0], score) for row, score in zip(front, scores, strict=True)], a.budget)
    return trace


def traces(a: argparse.Namespace) -> Iterator[Trace]:
    """Run what the file of results does not have yet, and keep each trace when it is there."""
    known = [Trace(**entry) for entry in json.loads(a.out.read_text())] if a.out.exists() else []
    for trace in known:
        trace.method = RENAMED.get(trace.method, trace.method)
    yield from known
    have = {(trace.method, trace.mode, trace.seed) for trace in known}
    seeds = {"pattern": 1}
    jobs = [
        (a, method, mode, seed)
        for seed in range(a.seeds)
        for mode in a.modes
        for method in a.methods
        if seed < seeds.get(method, a.seeds) and (method, mode, seed) not in have
        if (method, mode) != ("pattern", "all")
    ]
    with ProcessPoolExecutor(a.jobs) as pool:
        for trace in pool.map(work, jobs):
            known.append(trace)
            a.out.write_text(json.dumps([vars(entry) for entry in known]))
            yield trace


# --- what came of it -------------------------------------------------------------------------------------


def bounds(budget: str) -> tuple[float, float]:
    """The least and the most FLOPs of a range, as shares."""
    low, high = (float(part) for part in budget.split(":"))
    return low, high


def volume(rows: list[Any], budget: str) -> float:
    """Hypervolume of the finished evaluations over the budget; what is cheaper counts as if it cost the least."""
    low, high = bounds(budget)
    points = [(max(share, low), top1) for share, top1, *_ in rows if top1 is not None and share <= high]
    return hypervolume(points, (high, 0.0))


def best(rows: list[Any], target: float) -> float:
    """The best top-1 at a share of FLOPs, in per cent."""
    return 100 * max((top1 for share, top1, *_ in rows if top1 is not None and share <= target), default=0.0)


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    if not values:
        return "–"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def report(a: argparse.Namespace, found: list[Trace]) -> None:
    """Print the tables."""
    for mode in a.modes:
        by_method = {m: [t for t in found if t.mode == mode and t.method == m] for m in a.methods}
        by_method = {m: ts for m, ts in by_method.items() if ts}
        print(f"\n## {mode}: best top-1 in % at a share of the dense FLOPs; hypervolume\n")
        print(
            "| method | evaluations | CPU s | "
            + " | ".join(f"{t - 1:+.1%}" for t in TARGETS)
            + " | hypervolume | held out | -41.6% held out |"
        )
        print("| --- | --- | --- | " + " | ".join("---" for _ in TARGETS) + " | --- | --- | --- |")
        for method, ts in by_method.items():
            counts = [len(ts[0].rows)] if method == "pattern" else [c for c in COUNTS if c <= len(ts[0].rows)]
            for count in counts:
                cut = [t.rows[:count] for t in ts]
                cells = [spread([best(rows, target) for rows in cut]) for target in TARGETS]
                seconds = median(rows[-1][2] for rows in cut)
                hyper = spread([volume(rows, a.budget) for rows in cut], 4)
                volumes = [t.held_out_volume for t in ts if t.held_out_volume is not None]
                apart = spread(volumes if count == counts[-1] else [], 4)
                held = [100 * t.held_out for t in ts if t.held_out is not None] if count == counts[-1] else []
                print(
                    f"| {method} | {count} | {seconds:.0f} | "
                    + " | ".join(cells)
                    + f" | {hyper} | {apart} | {spread(held)} |"
                )
        compare(by_method)
        if mine := by_method.get("prunefront"):
            print(f"\nAt equal time, {mode}:\n")
            for seconds in (30, 60, 120):
                for method, ts in by_method.items():
                    cut = [[row for row in t.rows if row[2] <= seconds] for t in ts]
                    if all(cut) and method != "pattern":
                        evaluations = median(len(rows) for rows in cut)
                        tops = spread([best(rows, 0.584) for rows in cut])
                        print(
                            f"- {seconds} s, {method}: {evaluations:.0f} evaluations, "
                            f"hypervolume {spread([volume(rows, a.budget) for rows in cut], 4)}, at -41.6 % {tops}"
                        )
            stopped = sum(row[1] is None for t in mine for row in t.rows) / sum(len(t.rows) for t in mine)
            print(f"\nOf prunefront's evaluations {stopped:.0%} were stopped early.")


def compare(by_method: dict[str, list[Trace]]) -> None:
    """Print how far prunefront is ahead of each method on the images that none saw, seed by seed."""
    for name in ("prunefront", "cold"):
        mine = {t.seed: t for t in by_method.get(name, [])}
        for method, ts in by_method.items():
            pairs = [(mine[t.seed], t) for t in ts if t.seed in mine and t.method != name]
            for what, digits, unit in (("held_out_volume", 4, ""), ("held_out", 1, " points")):
                scale = 100 if what == "held_out" else 1
                both = [(getattr(one, what), getattr(other, what)) for one, other in pairs]
                gaps = [scale * (x - y) for x, y in both if x is not None and y is not None]
                if len(gaps) > 1:
                    low, high = stats.t.interval(0.95, len(gaps) - 1, mean(gaps), stats.sem(gaps) or 1e-12)
                    print(
                        f"- {name} - {method}, {what}: {mean(gaps):+.{digits}f} "
                        f"({low:+.{digits}f} to {high:+.{digits}f}){unit}, {len(gaps)} seeds"
                    )


def ceiling(a: argparse.Namespace, found: list[Trace]) -> None:
    """Print how good on held-out images the best of all that any method and seed tried is, as one very long run."""
    bed = open_bed(a)
    for mode in a.modes:
        tried = {text: top1 for t in found if t.mode == mode for share, top1, _, text in t.rows if share <= HELD_OUT}
        done = sorted(((top1, text) for text, top1 in tried.items() if top1 is not None), reverse=True)
        some = done[: a.ceiling]
        entries = [Entry(PruningSchedule.parse(text)) for _, text in some]
        held = [100 * m.top1 for m in bed.rest.evaluate_group(entries) if isinstance(m, Metrics)]
        print(
            f"\n{mode}: of {len(done)} schedules that were tried at -41.6 % or below the {len(some)} best have "
            f"{100 * some[-1][0]:.1f} to {100 * some[0][0]:.1f} % on their own images, and held out "
            f"{median(held):.1f} % ({min(held):.1f} to {max(held):.1f})"
        )


def same_settings(path: Path, settings: dict[str, Any]) -> None:
    """Note what the results beside `path` are of; end the program where they are of something else."""
    text = json.dumps(settings, indent=2)
    if path.exists() and path.read_text() != text:
        raise SystemExit(f"{path}: the results there are of other settings; give another --out")
    path.write_text(text)


def main() -> None:
    """Run the methods and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vim_nano")
    parser.add_argument("--checkpoint")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--held-out", type=int, default=2000, help="images after those")
    parser.add_argument("--budget", default=BUDGET, help="a range of shares of the dense FLOPs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--modes", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument(
        "--ceiling", type=int, default=0, help="try so many of the best of all on the held-out images"
    )
    parser.add_argument("--out", type=Path, default=Path("search_quality.json"))
    a = parser.parse_args()
    random.seed(0)
    shared = {name: getattr(a, name) for name in ("model", "checkpoint", "data", "images", "held_out", "budget")}
    same_settings(a.out.with_suffix(".settings.json"), shared)
    found = list(traces(a))
    report(a, found)
    if a.ceiling:
        ceiling(a, found)


if __name__ == "__main__":
    main()
