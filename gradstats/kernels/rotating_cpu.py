"""Rotations in numba: each thread takes blocks that stay in its cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gradstats.kernels import rotating_cpu_levels as over_levels
from gradstats.kernels import rotating_cpu_loops as loops
from gradstats.kernels.coding_eager import boundaries
from gradstats.kernels.packing import packing
from gradstats.kernels.rotating_cpu_levels import Book
from gradstats.kernels.rotating_cpu_loops import SQUARE, Place
from gradstats.kernels.threads import CHUNK, in_threads

FLOAT32 = torch.float32
NO_WEIGHT = np.float32(0)
RUN = 1 << 16  # elements that are rotated, then rounded
HEADS = 1 << 16
COMPARED = 4  # bits of a symbol up to which every boundary is compared
NARROWEST = 64  # elements of blocks that are coded in one pass, up to SQUARE


def rotate(values: Tensor, block: int, key: tuple[int, int]) -> Tensor:
    """See `rotating.rotate`."""
    array = values.to(FLOAT32).numpy()
    out = np.empty(-(-len(array) // block) * block, np.float32)
    words = np.array(key, np.uint32)

    def work(runs: Iterator[slice]) -> None:
        for run in runs:
            loops.rotate(array[run], Place(run.start, block, words), out[run])

    _in_runs(work, len(out), block)
    return torch.from_numpy(out)


def unrotate(rotated: Tensor, n: int, block: int, key: tuple[int, int]) -> Tensor:
    """See `rotating.unrotate`."""
    array, words = rotated.numpy(), np.array(key, np.uint32)
    out = np.empty(n, np.float32)

    def work(runs: Iterator[slice]) -> None:
        for run in runs:
            loops.unrotate(array[run], Place(run.start, block, words), NO_WEIGHT, out[run])

    _in_runs(work, len(array), block)
    return torch.from_numpy(out)


def takes(block: int, levels: int) -> bool:
    """Whether `quantize` and `decode` do blocks of that size to so many levels."""
    rule = packing(levels)
    return NARROWEST <= block <= SQUARE and rule.bits <= 8 and levels == 1 << rule.bits


def quantize(
    values: Tensor, block: int, key: tuple[int, int], levels: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotate, round at the scale of each block, and pack, while a run is in the cache.

    Returns:
        Packed symbols, and float64 `[⌈n/B⌉, 4]`: Σx², the scale, Σxq and Σq² of each block.
    """
    array, book = values.to(FLOAT32).numpy(), _book(tuple(levels.tolist()))
    words, blocks = np.array(key, np.uint32), -(-len(array) // block)
    packed = np.empty(blocks * block // 8 * book.bits, np.uint8)
    of_blocks = np.zeros((blocks, 4))

    def work(runs: Iterator[slice]) -> None:
        held = np.empty(RUN, np.float32)
        for run in runs:
            turned = held[: run.stop - run.start]
            loops.rotate(array[run], Place(run.start, block, words), turned)
            rows = of_blocks[run.start // block : run.stop // block]
            over_levels.quantize(turned, block, book, packed[_bytes(run, book)], rows)

    _in_runs(work, blocks * block, block)
    return torch.from_numpy(packed), torch.from_numpy(of_blocks)


def decode(
    packed: Tensor,
    scales: Tensor,
    block: int,
    levels: Tensor,
    key: tuple[int, int],
    out: Tensor,
    weight: float | None,
) -> None:
    """Add `weight` times the elements that were quantised to float32 `out`; None: write them."""
    data, factors, target = packed.numpy(), scales.numpy(), out.numpy()
    book, words = _book(tuple(levels.tolist())), np.array(key, np.uint32)
    factor = NO_WEIGHT if weight is None else np.float32(weight)

    def work(runs: Iterator[slice]) -> None:
        held = np.empty(RUN, np.float32)
        for run in runs:
            turned = held[: run.stop - run.start]
            rows = factors[run.start // block : run.stop // block]
            over_levels.look_up(data[_bytes(run, book)], block, book, rows, turned)
            loops.unrotate(turned, Place(run.start, block, words), factor, target[run])

    _in_runs(work, len(factors) * block, block)


def _bytes(run: slice, book: Book) -> slice:
    """The bytes of the symbols of a run."""
    return slice(run.start // 8 * book.bits, run.stop // 8 * book.bits)


@lru_cache(maxsize=64)
def _book(levels: tuple[float, ...]) -> Book:
    tensor, bits = torch.tensor(levels), packing(len(levels)).bits
    bounds, above = boundaries(tensor, "nearest").numpy(), tensor.numpy()[1:]
    if bits <= COMPARED:
        missing = (0, -len(bounds) % 3)
        both = np.pad(bounds, missing, constant_values=np.inf), np.pad(above, missing)
        steps = np.stack([each.reshape(-1, 3) for each in both], axis=1)
        return Book(tensor.numpy(), steps, bounds[:0], np.zeros(0, np.uint8), bits)
    heads = np.arange(HEADS, dtype=np.uint32) << 16
    ends = heads.view(np.float32), (heads | 0xFFFF).view(np.float32)
    first = np.searchsorted(bounds, np.fmin(*ends), side="left").astype(np.uint8)
    infinite = np.append(bounds, np.float32(np.inf))
    return Book(tensor.numpy(), np.zeros((0, 2, 3), np.float32), infinite, first, bits)


def _in_runs(work: Callable[[Iterator[slice]], None], n: int, block: int) -> None:
    """Share runs of whole blocks and draws among threads."""
    size = math.lcm(block, SQUARE)
    size = max(size, RUN // size * size)
    together = max(CHUNK // size, 1) * size  # what a thread takes at a time

    def runs(chunks: Iterator[slice]) -> None:
        starts = (chunk.start // CHUNK * together for chunk in chunks)
        work(run for start in starts for run in _parts(start, min(start + together, n), size))

    in_threads(runs, -(-n // together) * CHUNK)


def _parts(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
