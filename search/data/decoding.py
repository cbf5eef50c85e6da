"""Decoding images in threads, as a stream of chunks or as one tensor."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

MEMORY_LIMIT = 2**30  # default of how many bytes of a split's uint8 pixels are kept in memory


def stream_images(read: Callable[[int], Tensor], chunks: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Yield each chunk of images as one tensor (B, P, H, W), decoding two chunks ahead.

    Threads suffice, because Pillow releases the interpreter's lock while it decodes and resizes. They need no shared
    memory, which containers are short of, and errors propagate as they were raised.

    Args:
        read: returns an image by its index, as planes (P, H, W) uint8.
        chunks: the indices of each chunk.
    """
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        waiting: deque[Any] = deque()
        for chunk in chunks:
            waiting.append([pool.submit(read, index) for index in chunk])
            if len(waiting) > 2:
                yield torch.stack([image.result() for image in waiting.popleft()])
        for images in waiting:
            yield torch.stack([image.result() for image in images])
    finally:
        pool.shutdown(cancel_futures=True)


def read_images(read: Callable[[int], Tensor], indices: Sequence[int], batch_size: int) -> Tensor:
    """Return images as one (N, P, H, W) tensor; arguments as for `stream_images`, in chunks of `batch_size`."""
    chunks = chunked(indices, batch_size)
    return torch.cat(list(stream_images(read, chunks)))


def chunked(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Return the indices in chunks of `size`; the last may be shorter.

    >>> chunked(range(5), 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [indices[start : start + size] for start in range(0, len(indices), size)]
