"""Rotations in numba: each thread takes blocks that stay in its cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from gradstats.kernels import rotating_cpu_loops as loops
from gradstats.kernels.counting_cpu import CHUNK, _in_threads

FLOAT32 = torch.float32


def rotate(values: Tensor, block: int, key: tuple[int, int]) -> Tensor:
    """See `rotating.rotate`."""
    array = values.to(FLOAT32).numpy()
    out = np.empty(-(-len(array) // block) * block, np.float32)
    words = np.array(key, np.uint32)

    def work(run: slice) -> None:
        loops.rotate(array[run], run.start, block, words[0], words[1], out[run])

    _in_runs(work, len(out), math.lcm(block, 128))
    return torch.from_numpy(out)


def unrotate(rotated: Tensor, n: int, block: int, key: tuple[int, int]) -> Tensor:
    """See `rotating.unrotate`."""
    array, words = rotated.numpy(), np.array(key, np.uint32)
    out = np.empty(len(array), np.float32)

    def work(run: slice) -> None:
        loops.unrotate(array[run], run.start, block, words[0], words[1], out[run])

    _in_runs(work, len(out), math.lcm(block, 128))
    return torch.from_numpy(out[:n])


def _in_runs(work: Callable[[slice], None], n: int, unit: int) -> None:
    """Share runs of a multiple of `unit` elements, about as many as a chunk has, among threads."""
    size = max(unit, CHUNK // unit * unit)

    def runs(chunks: Iterator[slice]) -> None:
        for chunk in chunks:
            start = chunk.start // CHUNK * size
            work(slice(start, min(start + size, n)))

    _in_threads(runs, -(-n // size) * CHUNK)
