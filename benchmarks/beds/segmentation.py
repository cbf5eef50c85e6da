"""Segmentation from a dense model to a fine-tuned schedule: what pruning costs in mIoU, and what it saves in time.

For each model: train it, search at the budget, fine-tune the best schedule with several seeds, fine-tune the dense
model alike with the first of them, since it would change with more epochs, too, and measure the speed. All is done
by the commands that a user would type, which are printed; what is done already is not done again.

    python benchmarks/prepare/dubai_aerial.py "Semantic segmentation dataset" dubai
    nice -n 19 python benchmarks/beds/segmentation.py dubai runs --model cvmh_unet_nano
    nice -n 19 python benchmarks/beds/segmentation.py dubai runs --model vmamba_nano_segmenter
    nice -n 19 python benchmarks/beds/segmentation.py dubai runs --model vmamba_nano_segmenter --latency
    nice -n 19 python benchmarks/beds/segmentation.py dubai runs --model vmamba_nano_segmenter --schedule 3:0.1

The last two columns want an idle machine: `--speed` measures them again, and nothing else. The figure `kept` is the
speed-up as a share of the one that the FLOPs promise.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from spaces import PruningSchedule


def prunefront(*arguments: str) -> Any:
    """Run a command and return what it printed as JSON, if anything."""
    print("+ prunefront", shlex.join(arguments), file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "search", *arguments], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout) if done.stdout.strip().startswith(("{", "[")) else None


def spread(runs: list[dict[str, Any]]) -> str:
    """Mean and all scores of some runs."""
    scores = [run["top1"] for run in runs]
    return f"{statistics.mean(scores):.4f} ({' '.join(f'{score:.4f}' for score in scores)})"


def fast(front: list[dict[str, Any]]) -> str:
    """The most accurate schedule of a front that keeps nine tenths of its promise; if none does, what keeps most."""
    kept = {point["schedule"]: point["flops_ratio"] / point["latency_ratio"] for point in front}
    best = max(front, key=lambda point: (min(kept[point["schedule"]], 0.9), point["top1"]))
    found: str = best["schedule"]
    return found


def main() -> None:
    """Do what is missing and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="cvmh_unet_nano")
    parser.add_argument("--img-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--finetune-epochs", type=int, default=4)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--images", type=int, default=150, help="tiles of val that the search runs over")
    parser.add_argument("--budget", type=float, default=0.7, help="share of the dense FLOPs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--speed", action="store_true", help="measure the speed alone")
    parser.add_argument("--latency", action="store_true", help="search by the running time, too, and choose by it")
    parser.add_argument("--schedule", help="take this schedule in place of a searched one")
    a = parser.parse_args()
    name = a.model + "-latency" * a.latency + (f"-{a.schedule}" if a.schedule else "")
    data, here = f"segmentation:{a.data}", a.out / name
    weights, schedule = a.out / a.model / "dense" / "model.safetensors", here / "schedule.json"
    study = ("--study", name, "--db", f"sqlite:///{a.out / 'studies.db'}")
    batch = ("--batch-size", str(a.batch_size))
    here.mkdir(parents=True, exist_ok=True)
    if not a.speed:
        if not weights.exists():
            prunefront(
                "train", "--model", a.model, "--data", data, "--img-size", str(a.img_size), "--epochs", str(a.epochs),
                *batch, "--out", str(weights.parent),
            )  # fmt: skip
        if a.schedule:
            schedule.write_text(json.dumps({"model": a.model, **PruningSchedule.parse(a.schedule).as_dict()}))
        elif not schedule.exists():
            prunefront(
                "search", "--model", a.model, "--checkpoint", str(weights), "--data", data, *study,
                "--flops-budget", f"{a.budget - (0.1 if a.latency else 0.02):g}:{a.budget:g}",
                "--objective", "miou", "--objective", "flops", *("--objective", "latency") * a.latency,
                "--trials", str(a.trials), "--images", str(a.images), "--workers", "1",
            )  # fmt: skip
            chosen = ("--max-flops", f"{a.budget:g}")
            if a.latency:
                chosen = ("--schedule", fast(prunefront("front", *study, "--format", "json")))
            prunefront("export", *study, *chosen, "--out", str(schedule))
        nothing = here / "no_schedule.json"
        nothing.write_text(json.dumps({**json.loads(schedule.read_text()), "steps": [], "method": {}}))
        for run, seed, file in [("dense", a.seeds[0], nothing), *(("seed", seed, schedule) for seed in a.seeds)]:
            target = here / f"{run}{seed}"
            if not (target / "finetune.json").exists():
                prunefront(
                    "finetune", str(file), "--data", data, "--checkpoint", str(weights), "--epochs",
                    str(a.finetune_epochs), "--seed", str(seed), *batch, "--out", str(target),
                )  # fmt: skip
    speed = prunefront(
        "evaluate", "--model", a.model, "--checkpoint", str(weights), "--data", data, "--schedule", str(schedule),
        "--format", "json",
    )  # fmt: skip
    runs, control = (
        [json.loads((here / f"{run}{seed}" / "finetune.json").read_text()) for seed in seeds]
        for run, seeds in (("seed", a.seeds), ("dense", a.seeds[:1]))
    )
    dense, before = runs[0]["dense_top1"], runs[0]["before_top1"]
    gain, promise = 1 / speed["latency_ratio"], 1 / speed["flops_ratio"]
    print(
        f"{name}: dense mIoU {dense:.4f}, fine-tuned {spread(control)}; {speed['schedule']} at "
        f"{speed['flops_ratio']:.3f} of the FLOPs: {before:.4f}, fine-tuned {spread(runs)}; "
        f"{gain:.3f} times as fast, promised {promise:.3f}, kept {gain / promise:.3f}"
    )


if __name__ == "__main__":
    main()
