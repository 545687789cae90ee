"""Fold compressors over captured gradients: what each would have sent, and how far off."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, linear_regression
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors import Compressor, Memory, PerParameter, Rng
from gradstats.compressors.wrappers.two_shot import owned_by
from gradstats.exchange import simulate
from gradstats.exchange.counts import Traffic
from gradstats.metrics import closeness
from gradstats.replaying.columns import Measured

Row = dict[str, Any]
SETTLED_CHANGE = 0.05
STEPS_TO_SETTLE = 200


def replay_rows(
    grads: Iterable[tuple[int, Tensor | Sequence[Tensor]]],
    compressors: Sequence[Compressor],
    *,
    seed: int = 0,
    losses: Mapping[int, float] | None = None,
) -> Iterator[Row]:
    """Run compressors over gradients in order, each with its own state from step to step.

    Args:
        grads: (step, flat gradient, or those of several workers) in the order of training.
        compressors: all see every gradient.
        seed: of the random methods.
        losses: of the steps, for the methods that need them.

    Yields:
        A row per step and compressor: what `measure` gives, index (of the compressor), step and
        status: "ok", or why there is no measurement. A compressor that fails is not called again.
    """
    positions = [Position() for _ in compressors]
    for step, given in grads:
        one = Given.of(step, given, seed, losses or {})
        for index, compressor in enumerate(compressors):
            row, positions[index] = advanced(compressor, positions[index], one)
            yield {"index": index, **row}


@dataclass(frozen=True)
class Given:
    """What every compressor gets at one step.

    Attributes:
        step: of the training.
        workers: flat gradients, one per worker.
        broken: how many of their elements are NaN or infinite.
        seed: of the random methods.
        loss: of the step; NaN if it is not known.
    """

    step: int
    workers: Sequence[Tensor]
    broken: int
    seed: int
    loss: float

    @classmethod
    def of(
        cls,
        step: int,
        given: Tensor | Sequence[Tensor],
        seed: int = 0,
        losses: Mapping[int, float] = MappingProxyType({}),
    ) -> Given:
        """Count the broken elements and look up the loss."""
        workers = [given] if isinstance(given, Tensor) else list(given)
        broken = sum(map(_broken, workers))
        return cls(step, workers, broken, seed, losses.get(step, math.nan))


def _broken(grad: Tensor) -> int:
    """Elements that are NaN or infinite: their sum is not finite, of finite ones it may be."""
    return 0 if grad.sum().isfinite() else int((~grad.isfinite()).sum())


@dataclass(frozen=True)
class Position:
    """How far a compressor has come on its way through the steps.

    Attributes:
        done: number of steps that it has seen.
        states: one per worker; None before the first gradient without NaN or inf.
        failed: why it is not called any more; "" while it works.
    """

    done: int = 0
    states: Sequence[Any] | None = None
    failed: str = ""


def advanced(compressor: Compressor, position: Position, given: Given) -> tuple[Row, Position]:
    """Run one compressor on one step; the position that it gets stays as it is.

    Returns:
        The columns of `Measured` with step and status, and the position after the step.
    """
    numel = given.workers[0].numel()
    if not numel:
        measured, status, after = None, "skipped: there is no element", position
    elif given.broken:
        total = numel * len(given.workers)
        status = f"skipped: {given.broken} of {total} elements are NaN or inf"
        measured, after = None, position
    else:
        measured, status, after = _encoded(compressor, position, given)
    row = {"step": given.step, **vars(measured or Measured(n=numel)), "status": status}
    return row, replace(after, done=position.done + 1)


def _encoded(
    compressor: Compressor, position: Position, given: Given
) -> tuple[Measured | None, str, Position]:
    """What was measured on finite gradients, the status, and the position with new states."""
    if position.failed:
        return None, position.failed, position
    states, where = position.states, "in init"
    try:
        if states is None:
            states = [compressor.init(grad) for grad in given.workers]
        if "loss" in compressor.contract.needs:
            if math.isnan(given.loss):
                reason = "skipped: the loss of this step was not captured"
                return None, reason, replace(position, states=states)
            states = [compressor.observe(state, given.loss) for state in states]
        where = f"at step {given.step}"
        rng = Rng(given.seed, given.step, workers=len(given.workers))
        measured, states = measure(compressor, given.workers, states, rng)
    except Exception as error:  # anyone's compressor may run here
        failed = failure(error, where)
        return None, failed, replace(position, failed=failed)
    return measured, "ok", replace(position, states=states)


def failure(error: Exception, where: str) -> str:
    """The status of a compressor that raised."""
    return f"failed {where}: {type(error).__name__}: {error}"


def measure(
    compressor: Compressor, grads: Sequence[Tensor], states: Sequence[Any], rng: Rng
) -> tuple[Measured, list[Any]]:
    r"""One step of one compressor on all workers, and how good the update was.

    With g, v and e the means over the workers of their gradients :math:`g_w`, of their compensated
    gradients (`Memory.compensated`: gradient + residual before the step, as the method's memory
    holds it back) and of their residuals after the step, and ĝ the update (of two-shot exchanges v
    and e include what the owners of chunks hold back of earlier means):

    .. math:: \text{error} = \|g - \hat g\| / \|g\|, \quad
              \text{error\_compensated} = \|v - \hat g\| / \|v\|, \quad
              \text{residual\_ratio} = \|e\| / \|g\|

    Args:
        compressor: on every worker.
        grads: g_w, flat and alike.
        states: of the workers.
        rng: of worker 0.

    Returns:
        The row and the next states. error and cosine are against the mean gradient, as an
        optimizer sees it; nmse = ‖g - ĝ‖²/‖g‖², and nmse_workers = ‖g - ĝ‖²/mean ‖g_w‖² as the
        literature on mean estimation has it. error_compensated is error for a method without
        memory, residual_ratio NaN where nothing is held back. Means over the workers: khat_over_k
        counts the elements sent, NaN without a target; nbytes and bits (per element) go to
        collectives, reduced_bits of them to all-reduces, which are alike on all workers; wire is
        what a ring makes of nbytes. sum_bits is the width of the widest sum
        of integers, 0 without one; fp16_error what float sums over several workers would lose in
        float16.
    """
    n, numel = len(grads), grads[0].numel()
    ledgers = [Traffic() for _ in grads]
    waiting = _compensated(compressor, grads, states)
    exchanges = [
        compressor.exchange(grad, state, replace(rng, worker=worker))
        for worker, (grad, state) in enumerate(zip(grads, states, strict=True))
    ]
    steps = simulate(exchanges, ledgers, fp16=n > 1)
    after = [step.state for step in steps]
    mean = _mean(grads)
    residuals = [state.residual.reshape(-1) for state in after if hasattr(state, "residual")]
    held = _with_owned(compressor, _mean(residuals), after) if residuals else None
    near = closeness(mean, steps[0].update, held, waiting)
    k, asked = compressor.target_count(numel), compressor.ratio_asked is not None
    nmse, nbytes = near["error"] * near["error"], fmean(ledger.nbytes for ledger in ledgers)
    row = Measured(
        n=numel,
        k=k,
        khat_over_k=fmean(s.sent.count for s in steps) / k if k and asked else math.nan,
        nbytes=nbytes,
        bits=8 * nbytes / max(numel, 1),
        reduced_bits=8 * ledgers[0].volumes["all_reduce"].nbytes / max(numel, 1),
        wire=fmean(ledger.wire for ledger in ledgers),
        sum_bits=ledgers[0].sum_bits,
        fp16_error=ledgers[0].fp16_error,
        nmse=nmse,
        nmse_workers=nmse * _agreement(mean, grads),
        **near,
    )
    return row, after


def _compensated(
    compressor: Compressor, grads: Sequence[Tensor], states: Sequence[Any]
) -> Tensor | None:
    """v, the mean over the workers, flat; None without a memory around the method."""
    if not isinstance(compressor, Memory):
        return None
    pairs = zip(grads, states, strict=True)
    mean = _mean([compressor.compensated(grad, state).reshape(-1) for grad, state in pairs])
    return _with_owned(compressor, mean, states)


def _with_owned(compressor: Compressor, mean: Tensor, states: Sequence[Any]) -> Tensor:
    """The mean over workers, and what the owners of chunks hold back of earlier means."""
    if not owned_by(list(states)):
        return mean
    inside = compressor.compressor if isinstance(compressor, Memory) else compressor
    if not isinstance(inside, PerParameter):
        return _plus_owned(mean, states)
    pieces = torch.split(mean, [part.numel for part in inside.parts])
    of_parts = zip(*(state.inner for state in states), strict=True)
    return torch.cat(list(map(_plus_owned, pieces, of_parts)))


def _plus_owned(mean: Tensor, states: Sequence[Any]) -> Tensor:
    return sum((each.reshape(-1) for state in states for each in owned_by(state)), mean)


def _agreement(mean: Tensor, grads: Sequence[Tensor]) -> float:
    """‖g‖²/mean ‖g_w‖²: 1 where all workers have the same gradient."""
    squares = fmean(float(grad.double().square().sum()) for grad in grads) if grads[1:] else 0.0
    return float(mean.double().square().sum()) / squares if squares else 1.0


def _mean(vectors: Sequence[Tensor]) -> Tensor:
    """Itself where there is one, else the mean in float64."""
    return vectors[0] if len(vectors) == 1 else torch.stack(list(vectors)).double().mean(0)


def settled(residual_ratios: Sequence[float], target_ratio: float = 1.0) -> bool:
    """Whether the trend of ‖e‖/‖g‖ moved less than 5 % over the last quarter of the steps.

    Never after fewer than 200 steps or than 1/ratio, the time in which every element has its turn:
    with feedback the first steps mislead, however flat.

    Example:
        >>> settled([1.0] * 400), settled([1.0] * 20), settled(list(range(400)))
        (True, False, False)
        >>> settled([1.0] * 400, target_ratio=0.001)
        False
    """
    known = [ratio for ratio in residual_ratios if not math.isnan(ratio)]
    if len(known) < max(STEPS_TO_SETTLE, 1 / target_ratio):
        return False
    last = known[-len(known) // 4 :]
    trend = linear_regression(range(len(last)), last).slope  # single steps are too noisy
    return abs(trend) * len(last) < SETTLED_CHANGE * fmean(last) or not any(last)
