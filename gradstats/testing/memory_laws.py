"""The laws on states: whose they are, what leaves them alone, and what memories conserve."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors import Compressor, ErrorFeedback, Memory, Rng
from gradstats.compressors.rounds import alone
from gradstats.compressors.states import plain
from gradstats.exchange import simulate
from gradstats.testing.comparing import HOLDS, close, within
from gradstats.testing.laws import Facts

WORKERS, STEPS = 2, 4


def separate_states(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """Two gradients in turn are encoded as each would be alone."""
    other = grad.reshape(-1).flip(0) * 3
    alone = [_two_steps(compressor, [each], rng)[0] for each in (grad, other)]
    yield "tensors do not share a state", _two_steps(compressor, [grad, other], rng) == alone


def _two_steps(compressor: Compressor, grads: list[Tensor], rng: Rng) -> list[list[bytes]]:
    states = [compressor.init(grad) for grad in grads]
    sent: list[list[bytes]] = [[] for _ in grads]
    for step in range(2):
        for i, grad in enumerate(grads):
            payload, states[i] = compressor.encode(grad, states[i], replace(rng, step=step))
            sent[i].append(payload.to_bytes())
    return sent


def conservation(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """Error feedback around the method sends, forgets or keeps every gradient."""
    memory = compressor if isinstance(compressor, ErrorFeedback) else ErrorFeedback(compressor)
    grads = [(grad * (step + 1)).double().roll(step) for step in range(4)]
    state = memory.init(grads[0])
    sent = torch.zeros(grad.numel(), dtype=torch.float64)
    forgotten = torch.zeros_like(sent)
    for step, each in enumerate(grads):
        forgotten += (1 - memory.gamma) * state.residual.reshape(-1)
        payload, state = memory.encode(each, state, replace(rng, step=step))
        payload.add_to(sent)
    total = torch.stack(grads).sum(0).reshape(-1)
    yield (
        "what was sent, forgotten and left over adds up to the gradients",
        close(sent + forgotten + state.residual.reshape(-1), total, 1e-12),
    )


def conserves(compressor: Compressor) -> bool:
    """Whether the law of conservation binds: another memory conserves something else."""
    return not isinstance(compressor, Memory) or isinstance(compressor, ErrorFeedback)


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
            yield "uncompressed is the first step", within(alike, expected, tolerance)
        exchanges = [
            compressor.dense(each, state) for each, state in zip(grads, states, strict=True)
        ]
        results = simulate(exchanges)
        states = [result.state for result in results]
        updates = [result.update.double() for result in results]
        yield (
            "where everything is dense it is the optimizer without compression",
            next(
                (off for each in updates if not (off := within(each, expected, tolerance))), HOLDS
            ),
        )


def adds_all_up(compressor: Compressor) -> bool:
    """Whether it is a memory that clips nothing."""
    return isinstance(compressor, Memory) and not vars(compressor).get("clip")


def _same(state: Any, other: Any) -> bool:
    """Equality of plain states, bit by bit."""
    if isinstance(state, dict):
        return all(_same(each, other[name]) for name, each in state.items())
    if isinstance(state, tuple | list):
        return all(map(_same, state, other))
    if isinstance(state, Tensor):
        return torch.equal(state.nan_to_num(), other.nan_to_num())
    return bool(state == other or state != state)
