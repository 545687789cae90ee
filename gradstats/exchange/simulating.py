"""What collectives give to simulated workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors import AllGather, AllReduce, Collective, Payload
from gradstats.exchange.counts import Traffic
from gradstats.exchange.reducing import incoming, outgoing


def simulated(
    requests: Sequence[Collective], ledgers: Sequence[Traffic], *, fp16: bool = False
) -> list[Any]:
    """The result for each of n workers; sums run in worker order, in the dtype of the tensors.

    Args:
        requests: One collective per worker, all alike.
        ledgers: One per worker, to count what it sends.
        fp16: Also measure what float sums would lose in float16.
    """
    n, first = len(requests), requests[0]
    if isinstance(first, AllReduce):
        tensors = [outgoing(request, n) for request in requests]  # type: ignore[arg-type]
        for ledger in ledgers:
            ledger.reduced(first, tensors[0].nbytes, n)
            if fp16 and first.op != "max" and not first.levels:
                error = _fp16_error(requests)  # type: ignore[arg-type]
                ledger.fp16_error = max(error, _zero_if_nan(ledger.fp16_error))
        result = incoming(_combined(tensors, first.op), first, n)
        return [result, *(result.clone() for _ in range(n - 1))]  # one may be worked on in place
    if isinstance(first, AllGather):
        payloads: list[Payload] = [request.payload for request in requests]  # type: ignore[misc,union-attr]
        longest = max(payload.nbytes for payload in payloads)
        for ledger, payload in zip(ledgers, payloads, strict=True):
            ledger.count("all_gather", payload.nbytes, (n - 1) * longest)
        return [_received(payloads, worker) for worker in range(n)]
    sent = requests[first.root].payload  # type: ignore[union-attr]
    assert sent is not None
    for worker, ledger in enumerate(ledgers):
        own = sent.nbytes if worker == first.root else 0
        ledger.count("broadcast", own, sent.nbytes if n > 1 else 0)
    return [sent if worker == first.root else deepcopy(sent) for worker in range(n)]


def _received(payloads: Sequence[Payload], worker: int) -> list[Payload]:
    """The payloads that one worker gets: those of others are copies, as over a network."""
    return [each if at == worker else deepcopy(each) for at, each in enumerate(payloads)]


def _combined(tensors: Sequence[Tensor], op: str) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total = torch.maximum(total, tensor) if op == "max" else total.add_(tensor)
    return total


def _fp16_error(requests: Sequence[AllReduce]) -> float:
    """The relative error of the same sum, or mean, in float16."""

    def total(dtype: torch.dtype) -> Tensor:
        tensors = [replace(request, tensor=request.tensor.to(dtype)) for request in requests]
        return _combined([outgoing(each, len(requests)) for each in tensors], "sum").double()

    exact, half = total(torch.float64), total(torch.float16)
    error = float((half - exact).norm() / exact.norm()) if exact.any() else 0.0
    return error if math.isfinite(error) else math.inf


def _zero_if_nan(value: float) -> float:
    return 0.0 if math.isnan(value) else value
