"""Whether fewer FLOPs mean less time: the speed-up of a pruned model over the one that its FLOPs promise.

Dense and pruned models run in turn in this process, with random weights; what counts is the median of the
rounds' ratios. Run it on an idle machine:

    python benchmarks/speedup.py [--model vim_small --schedule 5:0.8,10:0.8,15:0.8] [--batch 8] [--profile]

Without --model it takes Vim-S with the schedule of its paper, and PlainMamba-L3 at -41.6 % FLOPs.
"""

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

import ssm_models
from spaces import PruningSchedule

CASES = (("vim_small", "5:0.8,10:0.8,15:0.8"), ("plain_mamba_l3", "9:0.58,18:0.58,27:0.58"))


def measure(name: str, text: str, batch: int, rounds: int, profiled: bool) -> None:
    """Print times, ratios and the share of the promise that is kept."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = ssm_models.build(name, "random").to(device)
    schedule = PruningSchedule.parse(text)
    table = ssm_models.cost_table(model)
    images = torch.randn(batch, 3, *model.img_size, device=device)
    times: dict[str, list[float]] = {"dense": [], "pruned": []}
    chosen = {"dense": None, "pruned": schedule}
    with torch.inference_mode():
        for index in range(rounds + 1):
            for key in times:
                model.set_schedule(chosen[key])
                began = time.perf_counter()
                model(images).sum().item()
                if index:
                    times[key].append(time.perf_counter() - began)
        dense, pruned = (statistics.median(times[key]) for key in times)
        promised = table.dense / table.flops(schedule)
        kept = statistics.median(d / p for d, p in zip(times["dense"], times["pruned"], strict=True))
        print(f"{name}, {schedule}, batch {batch}, {device}, {torch.get_num_threads()} threads")
        print(f"  dense {1e3 * dense:.0f} ms, pruned {1e3 * pruned:.0f} ms")
        print(f"  speed-up {kept:.3f}, promised by FLOPs {promised:.3f}, kept {kept / promised:.3f}", flush=True)
        for key in times if profiled else ():
            model.set_schedule(chosen[key])
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
            with profile(activities=activities) as found:
                model(images).sum().item()
            print(f"  {key}:")
            print(found.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=12))


def main() -> None:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--schedule", default=CASES[0][1])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    a = parser.parse_args()
    batch = a.batch or (128 if torch.cuda.is_available() else 8)
    for name, text in [(a.model, a.schedule)] if a.model else CASES:
        measure(name, text, batch, a.rounds, a.profile)


if __name__ == "__main__":
    main()
