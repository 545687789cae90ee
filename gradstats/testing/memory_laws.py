"""The laws on states: what leaves them alone, and what memories do where everything is dense."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors import Compressor, Memory, Rng
from gradstats.compressors.rounds import alone
from gradstats.compressors.states import plain
from gradstats.exchange import simulate

Facts = Iterator[tuple[str, bool]]
WORKERS, STEPS = 2, 4


def untouched_states(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """An exchange may be called off, also after its last collective."""
    _, state = compressor.encode(grad, compressor.init(grad), rng)
    for name, step in (
        ("exchange", compressor.exchange(grad, state, replace(rng, step=rng.step + 1))),
        ("dense", compressor.dense(grad, state)),
    ):
        before = copy.deepcopy(plain(state))
        alone(step)
        yield f"{name} leaves the state it was given as it was", _same(plain(state), before)
    before = copy.deepcopy(plain(state))
    compressor.uncompressed(grad, state)
    yield "uncompressed leaves the state as it was", _same(plain(state), before)


def nothing_compressed(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """A memory with everything sent is the optimizer without compression.

    A memory that is a part of the optimizer has its settings as torch.optim.SGD names them,
    `momentum` and `nesterov`; any other has no part in it.
    """
    if not isinstance(compressor, Memory) or vars(compressor).get("clip"):
        return
    momentum: float = getattr(compressor, "momentum", 0.0)
    nesterov = bool(getattr(compressor, "nesterov", False))
    weights = torch.zeros(grad.shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=1.0, momentum=momentum, nesterov=nesterov)
    states: list[Any] = [compressor.init(grad) for _ in range(WORKERS)]
    for step in range(STEPS):
        grads = [(grad * (step + 1)).roll(step + worker) for worker in range(WORKERS)]
        mean = torch.stack(grads).double().mean(0)
        weights.grad, before = mean, weights.detach().clone()
        optimizer.step()
        expected = before - weights.detach()
        alike = compressor.uncompressed(mean.to(grad.dtype), states[0]).double()
        tolerance = 16 * torch.finfo(grad.dtype).eps * float(expected.abs().max())
        if step == 0:
            yield "uncompressed is the first step", _near(alike, expected, tolerance)
        exchanges = [
            compressor.dense(each, state) for each, state in zip(grads, states, strict=True)
        ]
        results = simulate(exchanges)
        states = [result.state for result in results]
        updates = [result.update.double() for result in results]
        yield (
            "where everything is dense it is the optimizer without compression",
            all(_near(update, expected, tolerance) for update in updates),
        )


def _near(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool(((actual - expected).abs() <= tolerance).all())


def _same(state: Any, other: Any) -> bool:
    """Equality of plain states, bit by bit."""
    if isinstance(state, dict):
        return all(_same(each, other[name]) for name, each in state.items())
    if isinstance(state, tuple | list):
        return all(map(_same, state, other))
    if isinstance(state, Tensor):
        return torch.equal(state.nan_to_num(), other.nan_to_num())
    return bool(state == other or state != state)


LAWS = (untouched_states, nothing_compressed)
