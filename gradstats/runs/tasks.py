"""Tasks in processes, their results in order."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
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
    others = active_children()
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin)
    try:
        yield pool
    except BaseException:  # nobody waits for the results of tasks that still run
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(active_children()).difference(others):
            process.terminate()
        raise
    pool.shutdown()


def _begin() -> None:
    """Begin a process of the pool: Ctrl-C in a terminal reaches all, and ends the first one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
