"""What a worker asks of all in a round, and what drives the rounds of one worker."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from gradstats.payloads.base import Bundle, Payload

State = Any


@dataclass(frozen=True)
class AllReduce:
    """Combine equal-shaped tensors of all workers element by element; the result is a tensor.

    Attributes:
        tensor: floating-point; integers in [0, levels) where there are levels.
        op: what is done; a mean of integers is float32.
        levels: of the integers of one worker; 0 for a floating-point tensor. Their sums over n
            workers travel in base n (levels - 1) + 1, so that they cannot overflow.
    """

    tensor: Tensor
    op: Literal["sum", "mean", "max"] = "sum"
    levels: int = 0


@dataclass(frozen=True)
class AllGather:
    """Give every worker the payloads of all, which may differ in length: a list, by worker."""

    payload: Payload


@dataclass(frozen=True)
class Broadcast:
    """Give every worker the payload of worker `root`; the result is that payload.

    Attributes:
        payload: of the root; None on the others, or anything.
        root: a worker.
    """

    payload: Payload | None
    root: int


Collective = AllReduce | AllGather | Broadcast
T = TypeVar("T")
Exchange = Generator[Collective, Any, T]


@dataclass(frozen=True)
class Step:
    """What an exchange leaves.

    Attributes:
        update: the mean over workers that the optimizer gets, shaped as the gradient.
        sent: what this worker's memory must count as delivered.
        state: for the next step.
    """

    update: Tensor
    sent: Payload
    state: State


def answer(request: Collective) -> Any:
    """The result of a collective of a worker that is alone."""
    if isinstance(request, AllReduce):
        mean_of_integers = request.levels and request.op == "mean"
        return request.tensor.float() if mean_of_integers else request.tensor.clone()
    return [request.payload] if isinstance(request, AllGather) else request.payload


def alone(exchange: Generator[Collective, Any, Step]) -> Step:
    """The step of a worker that has no other to exchange with."""
    result: Any = None
    while True:
        try:
            request = exchange.send(result)
        except StopIteration as end:
            step: Step = end.value
            return step
        result = answer(request)


def fused(exchanges: Sequence[Exchange[T]]) -> Exchange[list[T]]:
    """Several exchanges of one worker as one: what they ask for in a round goes together.

    All-reduces of one operation, dtype and number of levels become one of the concatenated
    tensors, gathers one of a bundle of payloads.

    Args:
        exchanges: such as those of a bucket's parameters, on every worker in the same order.

    Returns:
        An exchange that returns what each of them returns, in order.
    """
    ended: dict[int, T] = {}
    running = dict(enumerate(exchanges))
    results: dict[int, Any] = dict.fromkeys(running)
    while running:
        requests: dict[int, Collective] = {}
        for place, exchange in list(running.items()):
            try:
                requests[place] = exchange.send(results[place])
            except StopIteration as end:
                ended[place] = end.value
                del running[place]
        results = {}
        for places in _alike(requests):
            together = [requests[place] for place in places]
            found = yield from _together(together)
            results |= zip(places, found, strict=True)
    return [ended[place] for place in range(len(exchanges))]


def _alike(requests: dict[int, Collective]) -> Iterator[list[int]]:
    """Places of the requests that can be one, in the order of the first of each."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for place, request in requests.items():
        key: tuple[Any, ...] = (type(request),)
        if isinstance(request, AllReduce):
            key += (request.op, request.tensor.dtype, request.levels)
        if isinstance(request, Broadcast):
            key += (request.root,)
        found.setdefault(key, []).append(place)
    yield from found.values()


def _together(requests: list[Any]) -> Generator[Collective, Any, list[Any]]:
    """The results of requests of one kind, by one collective."""
    first = requests[0]
    if len(requests) == 1:
        return [(yield first)]
    if isinstance(first, AllReduce):
        tensors = [request.tensor for request in requests]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        reduced: Tensor = yield AllReduce(flat, first.op, first.levels)
        pieces = torch.split(reduced, [tensor.numel() for tensor in tensors])
        return [piece.view(each.shape) for piece, each in zip(pieces, tensors, strict=True)]
    if isinstance(first, AllGather):
        bundles: list[Bundle] = yield AllGather(_bundle(requests))
        return [list(parts) for parts in zip(*(each.parts for each in bundles), strict=True)]
    root: bool = first.payload is not None
    bundle: Bundle = yield Broadcast(_bundle(requests) if root else None, first.root)
    return list(bundle.parts)


def _bundle(requests: Sequence[AllGather | Broadcast]) -> Bundle:
    payloads: list[Payload] = [request.payload for request in requests]  # type: ignore[misc]
    return Bundle(tuple(payloads))
