"""Threads that share the chunks of a vector."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

CHUNK = 1 << 19  # elements that a thread takes at a time
MOST = 1 << 30  # elements that 32-bit counts are sure to hold
S = TypeVar("S")
T = TypeVar("T")


def in_threads(work: Callable[[Iterator[slice]], T], n: int) -> list[T]:
    """Run `work(chunks)` in as many threads as torch uses; they share the chunks of n elements.

    A thread that has to wait for its core, as after an operation of torch whose threads still
    spin, takes fewer chunks and holds nobody up.
    """
    results: list[T] = []
    for first in range(0, n, MOST):
        starts = range(first, min(first + MOST, n), CHUNK)
        chunks = iter([slice(start, min(start + CHUNK, n)) for start in starts])
        results += shared(work, chunks, min(torch.get_num_threads(), len(starts) // 2))
    return results


def copied(array: NDArray[Any]) -> NDArray[Any]:
    """A copy of a vector; of a long one in threads, for new memory is slow to begin with."""
    out = np.empty_like(array)

    def work(chunks: Iterator[slice]) -> None:
        for chunk in chunks:
            out[chunk] = array[chunk]

    in_threads(work, len(array))
    return out


def shared(work: Callable[[Iterator[S]], T], items: Iterator[S], threads: int) -> list[T]:
    """Run `work(items)` in some threads; each item goes to one of them.

    After an error too, no thread goes on when this returns.
    """
    waiting = _begun(work, items, threads - 1)
    try:
        own = work(items)
    finally:
        # one that still waits for its thread, which others have busy, is not needed any more
        running = [each for each in waiting if not each.cancel()]
        wait(running)
    return [own, *(each.result() for each in running)]


def _begun(work: Callable[[Iterator[S]], T], items: Iterator[S], threads: int) -> list[Future[T]]:
    """What other threads do; none where Python ends, and lets no thread begin."""
    begun: list[Future[T]] = []
    try:
        for _ in range(threads):
            begun.append(_pool().submit(work, items))
    except RuntimeError as error:
        if "cannot schedule" not in str(error):
            raise
    return begun


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that are kept: a new one begins on its parent's core, and is moved too late."""
    return ThreadPoolExecutor(os.cpu_count(), "gradstats")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # whose threads stay with the parent
