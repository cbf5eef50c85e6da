"""Roughly how much memory a search needs on this machine, so that a container that is too small is no riddle.

A control group's limit ends whatever exceeds it by SIGKILL, and neither Python nor Ray can say why.
"""

from search.config import SearchConfig
from search.data.decoding import MEMORY_LIMIT
from search.runtime.limits import available_cpus, usable_memory
from ssm_models import PrunableModel

PROCESS = 700 * 2**20  # bytes of the driver or a worker: torch, Ray and the compiled scan, without model and images
RAY = 400 * 2**20  # of Ray's own processes
ONE_WORKER = RAY + 2 * PROCESS  # the least that a search with a small model runs in


def memory_needed(config: SearchConfig, model: PrunableModel, images: int, workers: int) -> int:
    """Return roughly the bytes that a search needs.

    Args:
        config: gives the batch size and the prefix cache.
        model: with its weights.
        images: that an evaluation runs over.
        workers: how many run at a time.
    """
    height, width = model.img_size
    weights: int = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    pixels = min(images * model.in_chans * height * width, MEMORY_LIMIT)
    features: int = 4 * model.layout.stages[0].tokens * model.num_features  # of an image, after one block
    cache = min(config.prefix_cache_bytes, images * features * sum(stage.blocks for stage in model.layout.stages))
    forward = 10 * config.batch_size * features  # what a block has in memory at once
    return RAY + (workers + 1) * (PROCESS + weights + pixels + forward) + workers * cache


def memory_note(config: SearchConfig, model: PrunableModel, images: int) -> str | None:
    """Return a line if a search on this machine needs more memory than it may use; None if not, or if unknown."""
    usable = usable_memory()
    if config.ray_address is not None or usable is None:
        return None
    workers = config.workers or max(1, available_cpus() // config.cpus_per_trial)
    needed = memory_needed(config, model, images, workers)
    if needed <= usable:
        return None
    return (
        f"warning: this search needs about {needed / 2**30:.1f} GiB of memory with {workers} "
        f"{'worker' if workers == 1 else 'workers'}, and may use {usable / 2**30:.1f} GiB here: a process beyond "
        "that is killed without a word; lower --workers, --prefix-cache or --batch-size, or raise the limit"
    )
