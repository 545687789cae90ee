"""Drives the exchanges of several workers: n simulated ones in lock-step, or a process group."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any, Generic, TypeVar

from gradstats.compressors import AllReduce, Collective, Step
from gradstats.compressors.rounds import Exchange, Worker, fused
from gradstats.exchange.collectives import Group
from gradstats.exchange.counts import Traffic
from gradstats.exchange.messaging import CollectiveError, Header, MessageError, describe, digest
from gradstats.exchange.simulating import simulated
from gradstats.kernels.moving import are_finite

__all__ = ["DisagreementError", "Exchange", "Rounds", "drive", "fused", "simulate"]

T = TypeVar("T")
R = TypeVar("R")


def simulate(
    exchanges: Sequence[Exchange[T]],
    ledgers: Sequence[Traffic] | None = None,
    *,
    fp16: bool = False,
) -> list[T]:
    """Run the exchanges of several workers to their end in this process, without a network.

    An exchange is the generator of one worker's part of a step: it yields collectives (all-reduce,
    all-gather, broadcast) and receives their results. All workers advance together, one collective
    at a time. Sums run in worker order and in the dtype of the tensors.

    Args:
        exchanges: Exchanges from `Compressor.exchange` or `fused`, one per worker.
        ledgers: `Traffic` objects, one per worker, to which the calls and bytes of that worker are
            added; None: nothing is counted.
        fp16: Whether `Traffic.fp16_error` is measured too: the relative error that the sums of
            floats would have in float16.

    Returns:
        The return values of the exchanges, in the order of the workers: a `Step` for
        `Compressor.exchange`, a list of them for `fused`.

    Raises:
        RuntimeError: the workers ask for different collectives; a process group would hang.

    Example:
        >>> import torch
        >>> from gradstats.compressors import compressor
        >>> top = compressor("topk(0.5)")
        >>> workers = [torch.tensor([4.0, 1.0]), torch.tensor([0.0, 2.0])]
        >>> simulate([top.exchange(grad, None) for grad in workers])[0].update
        tensor([2., 1.])
    """
    ledgers = [Traffic() for _ in exchanges] if ledgers is None else ledgers
    workers = [Worker(exchange) for exchange in exchanges]
    while requests := [each.request for each in workers if each.request is not None]:
        ended = ["done"] * (len(workers) - len(requests))
        kinds = [describe(request) for request in requests] + ended
        if len(set(kinds)) > 1:
            raise RuntimeError(f"workers must ask for the same collective, got {', '.join(kinds)}")
        results = simulated(requests, ledgers, fp16=fp16)
        for worker, result in zip(workers, results, strict=True):
            worker.advance(result)
    return [each.value for each in workers]


class Rounds(Generic[T]):
    """One worker's exchange over a process group, collective by collective.

    Making it runs the exchange up to its first collective; until it is closed or at its end the
    state that the exchange was given is as it was.

    Args:
        exchange: what `Compressor.exchange` or `fused` returned.
        group: counts seconds.

    Attributes:
        request: the collective that comes next; None at the end.
        value: what the exchange returned, at the end.
    """

    request: Collective | None
    value: T

    def __init__(self, exchange: Exchange[T], group: Group) -> None:
        self._exchange, self._group = exchange, group
        self.advance(None)

    @property
    def asks_finite(self) -> bool:
        """Whether the next collective is an all-reduce of numbers that are finite here."""
        return isinstance(self.request, AllReduce) and bool(are_finite([self.request.tensor]))

    def advance(self, result: Any) -> None:
        """Go on to the next collective, given the result of the last one."""
        start = time.perf_counter()
        try:
            self.request = self._exchange.send(result)
            self._group.seconds.encode += time.perf_counter() - start
        except StopIteration as end:
            self.request, self.value = None, end.value
            self._group.seconds.decode += time.perf_counter() - start

    def close(self) -> None:
        """Call it off."""
        self._exchange.close()

    def finish(self, headers: Sequence[Header] | None = None, *, check: bool = False) -> T:
        """Run it to its end; whether messages arrived intact, the group's `check` says.

        Args:
            headers: of the messages of all workers in the first collective, where they are known.
            check: agree on each collective first.
        """
        while self.request is not None:
            if check:
                headers = _agree(self._group, describe(self.request), self.request)
            result = self._group.perform(self.request, headers)
            headers = None
            self.decoding(self.advance, result)
        return self.value

    def decoding(self, call: Callable[..., R], *args: Any) -> R:
        """Call what reads messages; a damaged one may be any error of a decoder."""
        try:
            return call(*args)
        except Exception:
            self._group.check()
            raise


def drive(exchange: Exchange[T], group: Group, *, check: bool = True) -> T:
    """Run this worker's exchange over a process group, where every worker runs its own.

    Args:
        exchange: what `Compressor.exchange` or `fused` returned.
        group: counts bytes and seconds.
        check: before each collective let the workers tell each other, in four numbers, what they
            ask for and how long their messages are; without it workers that disagree hang until
            the group's timeout.

    Returns:
        What the exchange returns.

    Raises:
        RuntimeError: the workers ask for different collectives, or one of them failed.
    """
    try:
        value = Rounds(exchange, group).finish(check=check)
        group.check()
        _decode(value)
        if check:
            _agree(group, "done")
        return value
    except BaseException as error:
        group.forget()
        known = isinstance(error, DisagreementError | CollectiveError)
        if check and (isinstance(error, MessageError) or not known):
            group.share(digest("failed"), *astuple(Header()))
        raise


def _decode(value: Any) -> None:
    """Decode the updates of steps now, where an error is one that the other workers learn."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, Step):
            _ = each.update


class DisagreementError(RuntimeError):
    """Workers ask for different things; all of them know."""


def _agree(group: Group, what: str, request: Collective | None = None) -> list[Header]:
    """Compare what the workers ask for; returns the headers of their messages."""
    own = digest(what)
    shared = group.share(own, *astuple(group.header(request)))
    others = [worker for worker, (other, *_) in enumerate(shared) if other != own]
    if others:
        fact = f"worker {group.rank} asks for {what}, not so workers {others}"
        raise DisagreementError(f"workers must ask for the same collective: {fact}")
    return [Header(*facts) for _, *facts in shared]
