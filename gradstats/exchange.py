"""Drives the exchanges of several workers; here n simulated ones, in lock-step."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors import AllGather, AllReduce, Broadcast, Collective, Step

Exchange = Generator[Collective, Any, Step]


def simulate(exchanges: Sequence[Exchange]) -> list[Step]:
    """Run one exchange a worker to its end, all of them in lock-step.

    Sums run in worker order and in the dtype of the tensors, as one process group would see them.

    Args:
        exchanges: what `Compressor.exchange` returned, one a worker.

    Returns:
        One Step a worker, in the same order.

    Raises:
        RuntimeError: the workers ask for different collectives, on which a process group would
            hang.

    Example:
        >>> from gradstats.compressors import compressor
        >>> top = compressor("topk(0.5)")
        >>> workers = [torch.tensor([4.0, 1.0]), torch.tensor([0.0, 2.0])]
        >>> simulate([top.exchange(grad, None) for grad in workers])[0].update
        tensor([2., 1.])
    """
    results: list[Any] = [None] * len(exchanges)
    while True:
        requests: list[Collective] = []
        steps: list[Step] = []
        for exchange, result in zip(exchanges, results, strict=True):
            try:
                requests.append(exchange.send(result))
            except StopIteration as end:
                steps.append(end.value)
        if not requests:
            return steps
        kinds = [_kind(request) for request in requests] + ["done"] * len(steps)
        if len(set(kinds)) > 1:
            raise RuntimeError(f"workers must ask for the same collective, got {', '.join(kinds)}")
        results = _collect(requests)


def _kind(request: Collective) -> str:
    name = type(request).__name__
    if isinstance(request, AllReduce):
        return f"{name}({request.op}, {request.tensor.dtype}, {list(request.tensor.shape)})"
    return f"{name}(root={request.root})" if isinstance(request, Broadcast) else name


def _collect(requests: list[Any]) -> list[Any]:
    first = requests[0]
    if isinstance(first, AllReduce):
        return [_reduce([request.tensor for request in requests], first.op)] * len(requests)
    if isinstance(first, AllGather):
        return [[request.payload for request in requests]] * len(requests)
    return [requests[first.root].payload] * len(requests)


def _reduce(tensors: list[Tensor], op: str) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total = torch.maximum(total, tensor) if op == "max" else total + tensor
    return total / len(tensors) if op == "mean" else total
