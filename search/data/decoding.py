"""Decoding images in threads: as a stream of chunks, or as one tensor where a split fits in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

MEMORY_LIMIT = 2**30  # bytes of uint8 pixels of a split that are kept


def stream_images(read: Callable[[int], Tensor], chunks: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Yield each chunk of images as one tensor, decoding two chunks ahead.

    Threads do, since Pillow decodes and resizes without the interpreter's lock; they need no shared
    memory, which containers are short of, and an error arrives as it was raised.
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
    """Return images as one (N, 3, H, W) tensor."""
    chunks = chunked(indices, batch_size)
    return torch.cat(list(stream_images(read, chunks)))


def chunked(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Return the indices in runs of `size`; the last may be shorter."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]
