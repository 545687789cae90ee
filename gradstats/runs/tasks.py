"""Tasks in processes, their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

import torch

AHEAD = 16  # tasks whose results may wait to be read
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    task: Callable[[Item], Result], items: Iterable[Item], executor: Executor | None = None
) -> Iterator[Result]:
    """Yield results in the order of the items, from tasks that run a little ahead of the reader.

    Unlike `Executor.map` it submits only a few tasks before their results are taken, so that
    neither items nor results pile up.
    """
    if executor is None:
        yield from map(task, items)
        return
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(executor.submit(task, item))
        if len(waiting) >= AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def workers(jobs: int) -> Iterator[Executor | None]:
    """Start an executor of `jobs` processes with one thread each; None for one job."""
    if jobs == 1:
        yield None
        return
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield pool
