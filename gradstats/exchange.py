"""Drives the exchanges of several workers: n simulated ones in lock-step, or a process group."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

from gradstats.collectives import Group, Traffic, describe, digest, simulated
from gradstats.compressors import Collective
from gradstats.compressors.fusing import Exchange, fused

__all__ = ["Exchange", "drive", "fused", "simulate"]

T = TypeVar("T")


def simulate(
    exchanges: Sequence[Exchange[T]],
    ledgers: Sequence[Traffic] | None = None,
    *,
    fp16: bool = False,
) -> list[T]:
    """Run one exchange a worker to its end, all of them in lock-step.

    Sums run in worker order and in the dtype of the tensors, as one process group would see them.

    Args:
        exchanges: what `Compressor.exchange` or `fused` returned, one a worker.
        ledgers: one a worker, to count what it moves.
        fp16: also find what the float sums would lose in float16, see `Traffic`.

    Returns:
        What each exchange returns, in the same order.

    Raises:
        RuntimeError: the workers ask for different collectives, on which a process group would
            hang.

    Example:
        >>> import torch
        >>> from gradstats.compressors import compressor
        >>> top = compressor("topk(0.5)")
        >>> workers = [torch.tensor([4.0, 1.0]), torch.tensor([0.0, 2.0])]
        >>> simulate([top.exchange(grad, None) for grad in workers])[0].update
        tensor([2., 1.])
    """
    ledgers = [Traffic() for _ in exchanges] if ledgers is None else ledgers
    results: list[Any] = [None] * len(exchanges)
    while True:
        requests: list[Collective] = []
        ended: list[T] = []
        for exchange, result in zip(exchanges, results, strict=True):
            try:
                requests.append(exchange.send(result))
            except StopIteration as end:
                ended.append(end.value)
        if not requests:
            return ended
        kinds = [describe(request) for request in requests] + ["done"] * len(ended)
        if len(set(kinds)) > 1:
            raise RuntimeError(f"workers must ask for the same collective, got {', '.join(kinds)}")
        results = simulated(requests, ledgers, fp16=fp16)


def drive(exchange: Exchange[T], group: Group, *, check: bool = True) -> T:
    """Run this worker's exchange over a process group, where every worker runs its own.

    Args:
        exchange: what `Compressor.exchange` or `fused` returned.
        group: counts bytes and seconds.
        check: before each collective let the workers tell each other, in 8 bytes, what they ask
            for; without it workers that disagree hang until the group's timeout.

    Returns:
        What the exchange returns.

    Raises:
        RuntimeError: the workers ask for different collectives, or one of them failed.
    """
    result: Any = None
    try:
        while True:
            start, before = time.perf_counter(), group.seconds.total
            request = exchange.send(result)
            if check:
                _agree(group, describe(request))
            result = group.perform(request)
            elsewhere = group.seconds.total - before
            group.seconds.encode += time.perf_counter() - start - elsewhere
    except StopIteration as end:
        group.seconds.decode += time.perf_counter() - start
        if check:
            _agree(group, "done")
        found: T = end.value
        return found
    except _DisagreementError:
        raise
    except Exception:
        if check:
            group.tell(digest("failed"))
        raise


class _DisagreementError(RuntimeError):
    """Workers ask for different things; all of them know."""


def _agree(group: Group, what: str) -> None:
    own = digest(what)
    others = [worker for worker, (told,) in enumerate(group.tell(own)) if told != own]
    if others:
        fact = f"worker {group.rank} asks for {what}, not so workers {others}"
        raise _DisagreementError(f"workers must ask for the same collective: {fact}")
