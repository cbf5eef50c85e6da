"""Segmentation, from a dense model to a fine-tuned schedule: the mIoU that pruning costs and the time that it saves.

For each model: train it, search at the budget, fine-tune the best schedule with several seeds, and measure the speed.
As a control, the dense model is fine-tuned in the same way with the first seed. The search runs over tiles of val and
all scores are of test: other images, because tiles of one image are alike. All steps are commands that a user
would type; they are printed, and steps that are done already are skipped.

    python benchmarks/prepare/dubai_aerial.py "Semantic segmentation dataset" dubai
    nice -n 19 python benchmarks/beds/segmentation.py dubai runs --model cvmh_unet_nano
    nice -n 19 python benchmarks/beds/segmentation.py dubai runs --model vmamba_nano_segmenter
    nice -n 19 python benchmarks/beds/segmentation.py dubai runs --model vmamba_nano_segmenter --latency
    nice -n 19 python benchmarks/beds/segmentation.py dubai runs --model vmamba_nano_segmenter --schedule 3:0.1

Timing needs an idle machine; `--speed` repeats only that. The figure `kept` is the speed-up as a share of what the
FLOPs promise.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spaces import PruningSchedule


def prunefront(*arguments: str) -> Any:
    """Run a command and return the JSON that it printed; None if it printed none."""
    print("+ prunefront", shlex.join(arguments), file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "search", *arguments], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout) if done.stdout.strip().startswith(("{", "[")) else None


def spread(runs: list[dict[str, Any]]) -> str:
    """Return the mean and all scores of some runs."""
    scores = [run["top1"] for run in runs]
    return f"{statistics.mean(scores):.4f} ({' '.join(f'{score:.4f}' for score in scores)})"


def fast(front: list[dict[str, Any]]) -> str:
    """Return the most accurate schedule of a front that keeps 90 % of the promised speed-up, or else keeps most."""
    kept = {point["schedule"]: point["flops_ratio"] / point["latency_ratio"] for point in front}
    best = max(front, key=lambda point: (min(kept[point["schedule"]], 0.9), point["top1"]))
    found: str = best["schedule"]
    return found


@dataclass(frozen=True)
class Bed:
    """One model on one data set, and the folder of its results."""

    arguments: argparse.Namespace

    @property
    def name(self) -> str:
        """Name of the study, and of the folder."""
        a = self.arguments
        return f"{a.model}{'-latency' * a.latency}" + (f"-{a.schedule}" if a.schedule else "")

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return Path(self.arguments.out / self.name)

    @property
    def data(self) -> str:
        """Name of the data set."""
        return f"segmentation:{self.arguments.data}"

    @property
    def weights(self) -> Path:
        """The dense model's weights, shared by all beds of a model."""
        return Path(self.arguments.out / self.arguments.model / "dense" / "model.safetensors")

    @property
    def schedule(self) -> Path:
        """The schedule to fine-tune under."""
        return self.folder / "schedule.json"

    @property
    def batch(self) -> tuple[str, str]:
        """The option of the batch size."""
        return ("--batch-size", str(self.arguments.batch_size))

    def train(self) -> None:
        """Train the dense model."""
        a = self.arguments
        if not self.weights.exists():
            prunefront(
                "train", "--model", a.model, "--data", self.data, "--img-size", str(a.img_size),
                "--epochs", str(a.epochs), *self.batch, "--out", str(self.weights.parent),
            )  # fmt: skip

    def find_schedule(self) -> None:
        """Write the given schedule, or the best one of a search."""
        a = self.arguments
        if a.schedule:
            content = {"model": a.model, **PruningSchedule.parse(a.schedule).as_dict()}
            self.schedule.write_text(json.dumps(content))
        elif not self.schedule.exists():
            study = ("--study", self.name, "--db", f"sqlite:///{a.out / 'studies.db'}")
            prunefront(
                "search", "--model", a.model, "--checkpoint", str(self.weights), "--data", self.data, *study,
                "--flops-budget", f"{a.budget - (0.1 if a.latency else 0.02):g}:{a.budget:g}",
                "--objective", "miou", "--objective", "flops", *("--objective", "latency") * a.latency,
                "--trials", str(a.trials), "--images", str(a.images), "--workers", "1",
            )  # fmt: skip
            chosen = ("--max-flops", f"{a.budget:g}")
            if a.latency:
                chosen = ("--schedule", fast(prunefront("front", *study, "--format", "json")))
            prunefront("export", *study, *chosen, "--out", str(self.schedule))

    def finetune(self) -> None:
        """Fine-tune under the schedule with each seed, and the dense model with the first."""
        a = self.arguments
        dense = self.folder / "no_schedule.json"
        dense.write_text(json.dumps({**json.loads(self.schedule.read_text()), "steps": [], "method": {}}))
        runs = [("dense", a.seeds[0], dense), *(("seed", seed, self.schedule) for seed in a.seeds)]
        for run, seed, file in runs:
            out = self.folder / f"{run}{seed}"
            if not (out / "finetune.json").exists():
                prunefront(
                    "finetune", str(file), "--data", self.data, "--checkpoint", str(self.weights), "--epochs",
                    str(a.finetune_epochs), "--seed", str(seed), *self.batch, "--split", "test", "--out", str(out),
                )  # fmt: skip

    def report(self) -> None:
        """Measure the speed and print all figures."""
        a = self.arguments
        speed = prunefront(
            "evaluate", "--model", a.model, "--checkpoint", str(self.weights), "--data", self.data, "--schedule",
            str(self.schedule), "--split", "test", "--format", "json",
        )  # fmt: skip
        runs, control = (
            [json.loads((self.folder / f"{run}{seed}" / "finetune.json").read_text()) for seed in seeds]
            for run, seeds in (("seed", a.seeds), ("dense", a.seeds[:1]))
        )
        dense, before = runs[0]["dense_top1"], runs[0]["before_top1"]
        gain, promise = 1 / speed["latency_ratio"], 1 / speed["flops_ratio"]
        if any(run["scored_on"]["split"] != "test" for run in [*runs, *control]):
            raise SystemExit(f"{self.folder}: fine-tuned by an earlier version, scored on val; choose another OUT")
        print(
            f"{self.name}: dense mIoU {dense:.4f}, fine-tuned {spread(control)}; {speed['schedule']} at "
            f"{speed['flops_ratio']:.3f} of the FLOPs: {before:.4f}, fine-tuned {spread(runs)}; "
            f"{gain:.3f} times as fast, promised {promise:.3f}, kept {gain / promise:.3f}"
        )


def main() -> None:
    """Do the steps that are missing and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="cvmh_unet_nano")
    parser.add_argument("--img-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--finetune-epochs", type=int, default=4)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--images", type=int, default=150, help="val tiles to search on")
    parser.add_argument("--budget", type=float, default=0.7, help="share of the dense FLOPs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--speed", action="store_true", help="only measure the speed")
    parser.add_argument("--latency", action="store_true", help="search by latency as well, and choose by it")
    parser.add_argument("--schedule", help="take this schedule instead of searching one")
    bed = Bed(parser.parse_args())
    bed.folder.mkdir(parents=True, exist_ok=True)
    if not bed.arguments.speed:
        bed.train()
        bed.find_schedule()
        bed.finetune()
    bed.report()


if __name__ == "__main__":
    main()
