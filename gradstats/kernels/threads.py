"""Threads that share the chunks of a vector."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

CHUNK = 1 << 19  # elements that a thread takes at a time
MOST = 1 << 30  # elements that 32-bit counts are sure to hold
S, T = TypeVar("S"), TypeVar("T")


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


def shared(work: Callable[[Iterator[S]], T], items: Iterator[S], threads: int) -> list[T]:
    """Run `work(items)` in some threads; each item goes to one of them."""
    others = threads - 1
    if others < 1:
        return [work(items)]
    waiting = [_pool(others).submit(work, items) for _ in range(others)]
    own = work(items)
    # one that still waits for its thread, which others have busy, is not needed any more
    return [own, *(each.result() for each in waiting if not each.cancel())]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that are kept: a new one begins on its parent's core, and is moved too late."""
    return ThreadPoolExecutor(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # whose threads stay with the parent
