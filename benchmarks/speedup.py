"""Whether fewer FLOPs mean less time: the speed-up of a pruned model over the one that its FLOPs promise.

Dense and pruned models run in turn in this process, with random weights; what counts is the ratio of
the medians. Run it on an idle machine:

    python benchmarks/speedup.py [--model vim_small] [--schedule 5:0.8,10:0.8,15:0.8] [--batch 8]
"""

import argparse
import statistics
import time

import torch

import ssm_models
from spaces import PruningSchedule


def main() -> None:
    """Print times, ratios and the share of the promise that is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vim_small")
    parser.add_argument("--schedule", default="5:0.8,10:0.8,15:0.8")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = ssm_models.build(a.model, "random").to(device)
    schedule = PruningSchedule.parse(a.schedule)
    table = ssm_models.cost_table(model)
    images = torch.randn(a.batch, 3, *model.img_size, device=device)
    times: dict[str, list[float]] = {"dense": [], "pruned": []}
    with torch.inference_mode():
        for index in range(a.rounds + 1):
            for name, chosen in (("dense", None), ("pruned", schedule)):
                model.set_schedule(chosen)
                began = time.perf_counter()
                model(images).sum().item()
                if index:
                    times[name].append(time.perf_counter() - began)
    dense, pruned = (statistics.median(times[name]) for name in times)
    promised, kept = table.dense / table.flops(schedule), dense / pruned
    print(f"{a.model}, {schedule}, batch {a.batch}, {device}, {torch.get_num_threads()} threads")
    print(f"dense {1e3 * dense:.0f} ms, pruned {1e3 * pruned:.0f} ms")
    print(f"speed-up {kept:.3f}, promised by FLOPs {promised:.3f}, kept {kept / promised:.3f}")


if __name__ == "__main__":
    main()
