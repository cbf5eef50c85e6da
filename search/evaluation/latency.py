"""How long a forward pass takes: dense and pruned runs in turn, so that the machine's load weighs on both alike."""

import time
from statistics import median

import torch
from torch import Tensor

from search.evaluation.metrics import Latency
from spaces import PruningSchedule
from ssm_models import PrunableModel

LEAST_PAIRS, MOST_PAIRS = 5, 25  # of timed runs, a dense and a pruned one each
ENOUGH_SECONDS = 2.0  # after which the least number of pairs is enough


@torch.inference_mode()
def measure_latency(model: PrunableModel, schedule: PruningSchedule, images: Tensor) -> Latency:
    """Time forward passes after a warm-up, with whatever else runs on the machine.

    Args:
        model: in eval mode; its schedule is set at will.
        schedule: to compare with the dense model.
        images: (B, 3, H, W), on the model's device.

    Raises:
        ScheduleError: the schedule does not fit the model.
    """
    pairs: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(pairs) < LEAST_PAIRS + 1 or (len(pairs) <= MOST_PAIRS and time.perf_counter() - began < ENOUGH_SECONDS):
        pairs.append((_seconds(model, PruningSchedule(), images), _seconds(model, schedule, images)))
    pairs.pop(0)  # the warm-up: kernels are compiled and memory is allocated there
    ms = 1e3 * median(pruned for _, pruned in pairs) / len(images)
    return Latency(ms, median(pruned / dense for dense, pruned in pairs))


def _seconds(model: PrunableModel, schedule: PruningSchedule, images: Tensor) -> float:
    model.set_schedule(schedule)
    started = time.perf_counter()
    model(images).cpu()  # waits for the device, so the clock covers the computation
    return time.perf_counter() - started
