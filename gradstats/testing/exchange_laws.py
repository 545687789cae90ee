"""The laws on several workers: one update for all, the mean of what was sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gradstats.compressors import Compressor, Rng, Step
from gradstats.compressors.wrappers.two_shot import owned_by
from gradstats.exchange import simulate
from gradstats.testing.comparing import (
    HOLDS,
    Evidence,
    close,
    equal,
    equals,
    is_finite,
    same,
    within,
)
from gradstats.testing.laws import Facts

WORKERS = 3
TEAMS = (2, 8)


def several_workers(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """Three workers get one update, the mean of what they sent; see `_delivered`."""
    grads = [grad.roll(worker) * (worker + 1) for worker in range(WORKERS)]
    steps = exchanged(compressor, grads, rng)
    updates, sent = [step.update for step in steps], [step.sent.decode() for step in steps]
    yield "all workers get the same update", _one_update(updates, same)
    kinds = ((tuple(each.shape), each.dtype) for each in (updates[0], grad))
    yield "the update is like the gradient", equals(*kinds)
    precision = max(torch.finfo(each.dtype).eps for each in (grad, sent[0]))
    mean = torch.stack(sent).double().mean(0)
    if compressor.contract.update == "majority":
        mean = mean.sign()
    yield (
        "the update is the mean of what was sent",
        close(_delivered(steps), mean, 4 * precision),
    )


def near_the_range(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """Workers whose 16-bit gradients are near the end of the range get one finite mean."""
    for workers in TEAMS:
        for name, grads in _teams(grad, workers):
            steps = exchanged(compressor, grads, rng)
            updates = [step.update for step in steps]
            team = f"{workers} workers, {name}"
            yield f"the update is finite for {team}", is_finite(updates[0])
            yield f"all workers get the same update for {team}", _one_update(updates, equal)
            yield f"the mean of what was sent for {team}", _is_mean(compressor, steps)


def _one_update(updates: list[Tensor], compare: Callable[[Tensor, Tensor], Evidence]) -> Evidence:
    """Whether the updates of all workers are those of the first."""
    return next((apart for each in updates if not (apart := compare(each, updates[0]))), HOLDS)


def exchanged(compressor: Compressor, grads: list[Tensor], rng: Rng) -> list[Step]:
    """One step of all workers, from fresh states."""
    rngs = [replace(rng, worker=worker, workers=len(grads)) for worker in range(len(grads))]
    return simulate(
        [
            compressor.exchange(grad, compressor.init_under_memory(grad), own)
            for grad, own in zip(grads, rngs, strict=True)
        ]
    )


def _teams(grad: Tensor, workers: int) -> Iterator[tuple[str, list[Tensor]]]:
    ones, signs = torch.ones_like(grad), grad.sign()
    for dtype, value in ((torch.float16, 4e4), (torch.float16, 65504.0), (torch.bfloat16, 3e38)):
        name = f"{value:g} in {dtype}"
        yield f"all {name}", [(ones * value).to(dtype) for _ in range(workers)]
        yield f"± {name}", [(signs * value).to(dtype).roll(w) for w in range(workers)]
        yield f"one {name}", [(ones * (1 if w else value)).to(dtype) for w in range(workers)]


def _delivered(steps: list[Step]) -> Tensor:
    """The update, float64 `[d]`, and what the owners of chunks keep of it for the next step."""
    update = steps[0].update.reshape(-1).double()
    return sum((owned.reshape(-1).double() for owned in _kept(steps)), update)


def _kept(steps: list[Step]) -> list[Tensor]:
    """The residuals of the owners of chunks; none without a two-shot exchange."""
    return [owned for step in steps for owned in owned_by(step.state)]


def _is_mean(compressor: Compressor, steps: list[Step]) -> Evidence:
    if compressor.contract.update == "majority":
        return HOLDS
    update = steps[0].update
    sent = torch.stack([step.sent.decode() for step in steps]).double()
    kept = _kept(steps)  # also what the range of the update has cut off
    most = math.inf if kept else torch.finfo(update.dtype).max
    inside = (sent.abs() < torch.finfo(steps[0].sent.decode().dtype).max).all(0)
    for owned in kept:
        inside &= owned.reshape(-1).abs() < torch.finfo(owned.dtype).max
    mean = sent.mean(0).clamp(-most, most)
    # where values travel in 16 bits each of them is rounded once more
    limit = 4 * torch.finfo(update.dtype).eps * sent.abs().mean(0).max()
    return within(_delivered(steps)[inside], mean[inside], limit)
