"""What collectives give to simulated workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors import (
    AllGather,
    AllReduce,
    AllToAll,
    Collective,
    Payload,
    ReduceScatter,
)
from gradstats.exchange.counts import Traffic
from gradstats.exchange.reducing import check_parts, incoming, message_nbytes, outgoing, share_of


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
        sizes = [payload.nbytes for payload in payloads]
        for ledger, nbytes in zip(ledgers, sizes, strict=True):
            ledger.count("all_gather", nbytes, (n - 1) * max(sizes))
        return [_received(payloads, worker) for worker in range(n)]
    if isinstance(first, AllToAll):
        return _exchanged(requests, ledgers)  # type: ignore[arg-type]
    if isinstance(first, ReduceScatter):
        return _scattered(requests, ledgers)  # type: ignore[arg-type]
    sent = requests[first.root].payload  # type: ignore[union-attr]
    assert sent is not None
    for worker, ledger in enumerate(ledgers):
        own = sent.nbytes if worker == first.root else 0
        ledger.count("broadcast", own, sent.nbytes if n > 1 else 0)
    return [sent if worker == first.root else deepcopy(sent) for worker in range(n)]


def _exchanged(requests: Sequence[AllToAll], ledgers: Sequence[Traffic]) -> list[Any]:
    """Column w of the payloads for worker w, by sender; copies, as over a network."""
    rows = [request.payloads for request in requests]
    check_parts(rows[0], len(requests))
    longest = max((each.nbytes for row in rows for each in row if each), default=0)
    for worker, (row, ledger) in enumerate(zip(rows, ledgers, strict=True)):
        others = [each for at, each in enumerate(row) if each and at != worker]
        nbytes = sum(each.nbytes for each in row if each)
        ledger.count("all_to_all", nbytes, len(others) * message_nbytes(longest))
    return [
        _received([row[worker] for row in rows], worker)  # type: ignore[misc]
        for worker in range(len(rows))
    ]


def _scattered(requests: Sequence[ReduceScatter], ledgers: Sequence[Traffic]) -> list[Tensor]:
    """The combined tensors, that of each worker."""
    n, results = len(requests), []
    check_parts(requests[0].tensors, n)
    for worker, ledger in enumerate(ledgers):
        shares = [share_of(request.tensors[worker], request.op, n) for request in requests]
        results.append(_combined(shares, "sum"))
        widest = max(tensor.nbytes for tensor in requests[0].tensors)
        ledger.count("reduce_scatter", n * widest, (n - 1) * widest)
    return results


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
