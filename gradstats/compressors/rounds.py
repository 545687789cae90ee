"""Collectives that a worker requests in a round, and the driver of one worker's rounds."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from gradstats.compressors.steps import Step as Step  # where its exchanges are
from gradstats.payloads.base import Payload
from gradstats.payloads.bundle import Bundle

State = Any
Terms = tuple[Tensor, Tensor] | None  # whose sum is a gradient


@dataclass(frozen=True)
class AllReduce:
    """Combine equal-shaped tensors of all workers element by element; the result is a tensor.

    Attributes:
        tensor: floating-point; integers in [0, levels) if levels is not 0.
        op: what is done; a mean of integers is float32.
        levels: of the integers of one worker; 0 for a floating-point tensor. Their sums over n
            workers travel in base n (levels - 1) + 1, so that they cannot overflow.
    """

    tensor: Tensor
    op: Literal["sum", "mean", "max"] = "sum"
    levels: int = 0


@dataclass(frozen=True)
class AllGather:
    """Give every worker a list of all workers' payloads, which may differ in length.

    Attributes:
        payload: of this worker.
        alike: payloads as long as those of the workers, where their lengths are known; without
            them the workers exchange lengths first.
    """

    payload: Payload
    alike: tuple[Payload, ...] = ()


@dataclass(frozen=True)
class Broadcast:
    """Give every worker the payload of worker `root`; the result is that payload.

    Attributes:
        payload: of the root; None on the others, or anything.
        root: a worker.
    """

    payload: Payload | None
    root: int


@dataclass(frozen=True)
class AllToAll:
    """Give worker i the i-th payload of every worker; the result is a list by sender.

    Attributes:
        payloads: one per worker, by rank. Where nothing goes to a worker it is None; worker w
            sends something to worker w + j (modulo n) on all workers or on none.
    """

    payloads: tuple[Payload | None, ...]


@dataclass(frozen=True)
class ReduceScatter:
    """Combine the i-th tensors of all workers element by element; worker i gets the result.

    Attributes:
        tensors: floating-point vectors, one per worker by rank, of equal lengths on all workers.
        rank: of this worker.
        op: what is done.
    """

    tensors: tuple[Tensor, ...]
    rank: int
    op: Literal["sum", "mean"] = "sum"


Collective = AllReduce | AllGather | AllToAll | Broadcast | ReduceScatter


@dataclass(frozen=True)
class Several:
    """Collectives of one round, which `fused` joins where it can; the result is a list of theirs.

    Attributes:
        requests: in the same order on every worker.
    """

    requests: tuple[Collective, ...]


T = TypeVar("T")
Exchange = Generator[Collective, Any, T]
Exchanges = Generator[Collective | Several, Any, T]  # what `fused` takes


def answer(request: Collective) -> Any:
    """Return the result of a collective on a worker that is alone."""
    if isinstance(request, AllReduce):
        mean_of_integers = request.levels and request.op == "mean"
        return request.tensor.float() if mean_of_integers else request.tensor.clone()
    if isinstance(request, ReduceScatter):
        return request.tensors[0].clone()
    if isinstance(request, AllToAll):
        return list(request.payloads)
    return [request.payload] if isinstance(request, AllGather) else request.payload


class Worker(Generic[T]):
    """One worker's exchange under way, from collective to collective.

    Args:
        exchange: what `Compressor.exchange` or `fused` returned.

    Attributes:
        request: the collective that comes next, or those of one round; None at the end.
        value: what the exchange returned, at the end.
    """

    request: Any
    value: T

    def __init__(self, exchange: Exchanges[T]) -> None:
        self._exchange = exchange
        self.advance(None)

    def advance(self, result: Any) -> None:
        """Go on to the next collective, given the result of the last one."""
        try:
            self.request = self._exchange.send(result)
        except StopIteration as end:
            self.request, self.value = None, end.value


def alone(exchange: Exchange[T]) -> T:
    """Return what an exchange returns on a worker that has no other to exchange with."""
    worker = Worker(exchange)
    while worker.request is not None:
        worker.advance(answer(worker.request))
    return worker.value


def several(exchanges: Sequence[Exchange[T]]) -> Exchanges[list[T]]:
    """Run several exchanges of one worker side by side, for a `fused` around it to join."""
    running = [Worker(exchange) for exchange in exchanges]
    while asking := [each for each in running if each.request is not None]:
        results = yield Several(tuple(each.request for each in asking))
        for each, result in zip(asking, results, strict=True):
            each.advance(result)
    return [each.value for each in running]


def fused(exchanges: Sequence[Exchanges[T]]) -> Exchange[list[T]]:
    """Run several exchanges of one worker as one: what they request in a round travels together.

    All-reduces of the same operation, dtype and number of levels become one all-reduce of the
    concatenated tensors; gathers become one gather of a bundle of payloads.

    Args:
        exchanges: for example of the parameters of a bucket, in the same order on every worker.

    Returns:
        An exchange that returns what each of them returns, in order.
    """
    running = [Worker(exchange) for exchange in exchanges]
    while asking := [each for each in running if each.request is not None]:
        requests = [request for each in asking for request in _requests(each)]
        results: dict[int, Any] = {}
        for indices in _alike(requests):
            together = yield from _together([requests[index] for index in indices])
            results |= zip(indices, together, strict=True)
        in_order = iter([results[index] for index in range(len(requests))])
        for each in asking:
            own = [next(in_order) for _ in _requests(each)]
            each.advance(own if isinstance(each.request, Several) else own[0])
    return [each.value for each in running]


def _requests(worker: Worker[Any]) -> tuple[Collective, ...]:
    """The collectives that a worker requests in this round."""
    request = worker.request
    return request.requests if isinstance(request, Several) else (request,)


def _alike(requests: Sequence[Collective]) -> Iterator[list[int]]:
    """Indices of the requests that can be one, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, request in enumerate(requests):
        key: tuple[Any, ...] = (type(request),)
        if isinstance(request, AllReduce):
            key += (request.op, request.tensor.dtype, request.levels)
        if isinstance(request, Broadcast):
            key += (request.root,)
        if isinstance(request, ReduceScatter):
            key += (request.op, request.tensors[0].dtype)
        if isinstance(request, AllToAll):
            key += tuple(payload is None for payload in request.payloads)
        groups.setdefault(key, []).append(index)
    yield from groups.values()


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
        alike = tuple(map(Bundle, zip(*(each.alike for each in requests), strict=False)))
        bundles: list[Bundle] = yield AllGather(_bundle(requests), alike)
        return [list(parts) for parts in zip(*(each.parts for each in bundles), strict=True)]
    if isinstance(first, ReduceScatter):
        return (yield from _scattered_together(requests))
    if isinstance(first, AllToAll):
        return (yield from _sent_together(requests))
    root: bool = first.payload is not None
    bundle: Bundle = yield Broadcast(_bundle(requests) if root else None, first.root)
    return list(bundle.parts)


def _scattered_together(
    requests: Sequence[ReduceScatter],
) -> Generator[Collective, Any, list[Tensor]]:
    first = requests[0]
    tensors = tuple(map(torch.cat, zip(*(each.tensors for each in requests), strict=True)))
    own: Tensor = yield ReduceScatter(tensors, first.rank, first.op)
    return list(torch.split(own, [each.tensors[first.rank].numel() for each in requests]))


def _sent_together(requests: Sequence[AllToAll]) -> Generator[Collective, Any, list[Any]]:
    columns = zip(*(each.payloads for each in requests), strict=True)
    bundles: list[Bundle | None] = yield AllToAll(tuple(map(_bundle_or_none, columns)))
    parts = [each.parts if each else (None,) * len(requests) for each in bundles]
    return [list(received) for received in zip(*parts, strict=True)]


def _bundle_or_none(payloads: tuple[Payload | None, ...]) -> Bundle | None:
    return None if payloads[0] is None else Bundle(payloads)  # type: ignore[arg-type]


def _bundle(requests: Sequence[AllGather | Broadcast]) -> Bundle:
    payloads: list[Payload] = [request.payload for request in requests]  # type: ignore[misc]
    return Bundle(tuple(payloads))
