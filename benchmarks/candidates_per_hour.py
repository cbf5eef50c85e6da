"""How many candidates are decided in an hour: alone on all images, with shared beginnings, and with a race.

The candidates and their order are the same each time: starting schedules, then random points of the space, which is
what a search sees before it has learnt anything. Each way ends with a front; all fronts should be the same, and a
candidate that was stopped although it belongs on the front is counted as a false stop.

    python benchmarks/candidates_per_hour.py --model plain_mamba_nano --checkpoint F --data folder:cifar10

Time is the CPU seconds of one thread, ways in turn on the same machine. Alone on all images only every `--sample`th
candidate is run, and its time is scaled up; the front to compare with is that of all candidates on all images with
shared beginnings, whose numbers are the same to the bit.
"""

import argparse
import time
from collections.abc import Sequence

import torch

import ssm_models
from results import Evaluation
from search.data.dataset import open_data
from search.driver.study_state import StudyState
from search.evaluation.evaluator import Evaluator
from search.evaluation.metrics import Metrics
from search.evaluation.protocol import pack, unpack
from search.evaluation.race import Entry, tail
from search.models import open_model
from search.samplers.registry import make_sampler
from spaces import FlopsBudget, PruningSchedule
from spaces.published import starting_schedules
from spaces.space import make_space

OBJECTIVES = ("top1", "flops")
BATCH = 100


def decide(
    evaluator: Evaluator, table: ssm_models.CostTable, candidates: Sequence[PruningSchedule], group: int, race: bool
) -> tuple[float, StudyState, int]:
    """Evaluate the candidates in groups; return the CPU seconds, the state of the study then, and the images run."""
    state = StudyState(OBJECTIVES, evaluator.model.layout, ())
    images, began = 0, time.process_time()
    for start in range(0, len(candidates), group):
        part = candidates[start : start + group]
        costs = [table.flops(schedule) for schedule in part]
        entries = [Entry(s, state.bar(cost), cost) if race else Entry(s) for s, cost in zip(part, costs, strict=True)]
        for schedule, found in zip(part, evaluator.evaluate_group(entries), strict=True):
            assert isinstance(found, Metrics)
            images += found.images
            flops = table.flops(schedule)
            state.add(
                Evaluation(
                    schedule,
                    flops,
                    flops / table.dense,
                    "stopped" if found.stopped else "done",
                    top1=found.top1,
                    loss=found.loss,
                    images=found.images,
                    outcomes=None if found.outcomes is None else pack(found.outcomes),
                )
            )
    return time.process_time() - began, state, images


def least_images(found: Sequence[Evaluation], error: float) -> float:
    """Return the share of images without which hardly any race decides, whatever it does.

    Of each candidate beside the front, those up to the first batch after which the paired test, allowed one look at
    the whole error, tells it from the best point of all that costs no more; of the front all.
    """
    needed = 0
    outcomes = {e.hash: unpack(e.outcomes or b"", e.images) for e in found}
    for mine in found:
        cheaper = [e for e in found if e.flops <= mine.flops and e.hash != mine.hash]
        bar = max(cheaper, key=lambda e: outcomes[e.hash].sum(), default=None)
        images = mine.images
        if bar is not None and outcomes[bar.hash].sum() >= outcomes[mine.hash].sum():
            pairs = outcomes[mine.hash].astype(int) - outcomes[bar.hash]
            ends = range(BATCH, images, BATCH)
            tails = (tail(int((pairs[:n] > 0).sum()), int((pairs[:n] < 0).sum()), images - n) for n in ends)
            images = next((n for n, p in zip(ends, tails, strict=True) if p <= error), images)
        needed += images
    return needed / sum(e.images for e in found)


def main() -> None:
    """Decide the same candidates in several ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="plain_mamba_nano")
    parser.add_argument("--checkpoint")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--images", type=int)
    parser.add_argument("--candidates", type=int, default=300)
    parser.add_argument("--sample", type=int, default=10)
    parser.add_argument("--space", default="stages:3")
    parser.add_argument("--budget", default="0.4:0.85")
    parser.add_argument("--error", type=float, default=0.05)
    a = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data(a.data)
    model = open_model(a.model, a.checkpoint, data)
    batches = data.batches(model.pretrained_cfg, model.img_size, images=a.images, batch_size=BATCH)
    table = ssm_models.cost_table(model)
    space = make_space(a.space, model.layout, table.flops, FlopsBudget.parse(a.budget))
    sampler = make_sampler("random", space, OBJECTIVES, seed=0, trials=a.candidates)
    candidates = dict.fromkeys(starting_schedules(space))
    while len(candidates) < a.candidates:
        candidates.setdefault(space.schedule(sampler.ask().values))
    dense = Evaluator(model, batches).dense_answers
    print(f"{a.model} on {a.data}: {len(candidates)} candidates of {space.text}, {batches.images} images\n")
    print("| way | CPU s | candidates an hour | ratio | images run | front | as alone | false stops |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    chosen = list(candidates)
    everything = Evaluator(model, batches, dense=dense)
    sample = chosen[:: a.sample]
    seconds, state, _ = decide(everything, table, sample, 1, race=False)
    alone = seconds * sum(map(table.flops, chosen)) / sum(map(table.flops, sample))
    print(f"| each alone, all images | {alone:.0f} | {3600 * len(chosen) / alone:,.0f} | 1.0 | 100.0% | – | – | – |")
    reference, least = set[str](), 1.0
    for way, cache, race, group in (
        ("shared beginnings, groups of 32", 0, False, 32),
        ("and a race, groups of 32", 0, True, 32),
        ("and a race, groups of 4, cache of 1 GiB", 2**30, True, 4),
    ):
        evaluator = Evaluator(model, batches, dense=dense, prefix_cache=cache, error=a.error)
        seconds, state, images = decide(evaluator, table, chosen, group, race)
        front = {evaluation.hash for evaluation in state.front()}
        if not reference:
            reference = front
            least = least_images([e for s in chosen if (e := state.find(s))], a.error)
        found = [state.find(schedule) for schedule in chosen]
        false = sum(e is not None and e.state == "stopped" and e.hash in reference for e in found)
        print(
            f"| {way} | {seconds:.0f} | {3600 * len(chosen) / seconds:,.0f} | {alone / seconds:.1f} | "
            f"{images / (batches.images * len(chosen)):.1%} | {len(front)} | "
            f"{len(front & reference)}/{len(reference)} | {false} |",
            flush=True,
        )
    print(f"\nA race that knew the final front and looked once, at the best moment: {least:.1%} of the images.")


if __name__ == "__main__":
    main()
