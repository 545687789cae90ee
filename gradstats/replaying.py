"""Fold compressors over captured gradients: what each would have sent, and how far off."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean, linear_regression, median
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors import Compressor, ErrorFeedback, Payload, Rng, from_bytes
from gradstats.metrics import closeness

Row = dict[str, Any]
SETTLED_CHANGE = 0.05
STEPS_TO_SETTLE = 200
WARM_UP = 3
REPETITIONS = 9
TIMING_SECONDS = 1.0


def replay_rows(
    grads: Iterable[tuple[int, Tensor]],
    compressors: Sequence[Compressor],
    *,
    seed: int = 0,
    losses: Mapping[int, float] | None = None,
) -> Iterator[Row]:
    """Run compressors over gradients in order, each with its own state from step to step.

    Args:
        grads: (step, flat gradient) in the order of training.
        compressors: all see every gradient.
        seed: of the random methods.
        losses: of the steps, for the methods that need them.

    Yields:
        A row a step and compressor: what `measure` gives, with index (of the compressor), step and
        status: "ok", or why there is no measurement. A compressor that fails is not called again.
    """
    states: list[Any] = [None] * len(compressors)
    failed: dict[int, str] = {}
    started = False
    for step, grad in grads:
        broken = int((~grad.isfinite()).sum())
        if not started and not broken:
            started = True
            for index, compressor in enumerate(compressors):
                try:
                    states[index] = compressor.init(grad)
                except Exception as error:
                    failed[index] = failure(error, "in init")
        for index, compressor in enumerate(compressors):
            where = {"index": index, "step": step}
            status = failed.get(index, "ok")
            if broken:
                status = f"skipped: {broken} of {grad.numel()} elements are NaN or inf"
            row: Row = {**NOT_MEASURED, "n": grad.numel()}
            if status == "ok" and "loss" in compressor.contract.needs:
                loss = (losses or {}).get(step, math.nan)
                if math.isnan(loss):
                    status = "skipped: the loss of this step was not captured"
                else:
                    states[index] = compressor.observe(states[index], loss)
            if status == "ok":
                try:
                    row, states[index] = measure(compressor, grad, states[index], Rng(seed, step))
                except Exception as error:  # anyone's compressor may run here
                    status = failed[index] = failure(error, f"at step {step}")
            yield {**where, **row, "status": status}


def compensated(
    grads: Iterable[tuple[int, Tensor]], compressor: ErrorFeedback, *, seed: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """What a compressor with error feedback gets to see: (step, gradient + residual).

    Steps with a NaN or inf are left out, as a replay skips them.

    Args:
        grads: (step, flat gradient) in the order of training.
        compressor: with its feedback.
        seed: of a random method.
    """
    state = None
    for step, grad in grads:
        if not grad.isfinite().all():
            continue
        state = compressor.init(grad) if state is None else state
        yield step, compressor.gamma * state.residual + grad
        _, state = compressor.encode(grad, state, Rng(seed, step))


def failure(error: Exception, where: str) -> str:
    """The status of a compressor that raised."""
    return f"failed {where}: {type(error).__name__}: {error}"


MEASURED = (
    "k",
    "khat_over_k",
    "error",
    "error_compensated",
    "cosine",
    "nbytes",
    "bits",
    "residual_ratio",
)
NOT_MEASURED: Row = dict.fromkeys(MEASURED, math.nan)


def measure(compressor: Compressor, grad: Tensor, state: Any, rng: Rng) -> tuple[Row, Any]:
    """One step of one compressor, and how good it was.

    Returns:
        The row and the next state. khat_over_k counts the elements sent, NaN without a target;
        error = ‖g - ĝ‖/‖g‖ and cosine are against the gradient; error_compensated is against
        gradient + residual; nbytes and bits (an element) are those of the payload;
        residual_ratio = ‖e‖/‖g‖ after the step, NaN where nothing is held back.
    """
    payload, state = compressor.encode(grad, state, rng)
    sent = compressor.received(payload, state)
    k, asked = compressor.target_count(grad.numel()), compressor.ratio_asked is not None
    row = {
        "n": grad.numel(),
        "k": k,
        "khat_over_k": payload.count / k if k and asked else math.nan,
        "nbytes": payload.nbytes,
        "bits": 8 * payload.nbytes / max(grad.numel(), 1),
        **closeness(grad, sent, getattr(state, "residual", None)),
    }
    return row, state


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


def time_compressor(compressor: Compressor, grad: Tensor, *, seed: int = 0) -> Row:
    """Seconds that encoding and decoding take: warm-up, then the medians of several runs.

    Encoding ends with what is handed to the network: the bytes of a payload that is gathered, the
    values of one that is all-reduced. Decoding begins there and ends in a buffer to which it is
    added. On a CUDA device times are those of events.

    Returns:
        encode_seconds and decode_seconds; NaN where the compressor fails (a replay says why).
    """
    try:
        return _timed(compressor, grad, Rng(seed))
    except Exception:  # anyone's compressor may run here
        return {"encode_seconds": math.nan, "decode_seconds": math.nan}


def _timed(compressor: Compressor, grad: Tensor, rng: Rng) -> Row:
    state = compressor.init(grad)
    out = torch.zeros_like(grad)
    clock = _cuda_seconds if grad.is_cuda else _wall_seconds
    encodings: list[float] = []
    decodings: list[float] = []
    deadline = time.perf_counter() + TIMING_SECONDS
    for i in range(WARM_UP + REPETITIONS):
        seconds, (payload, state) = clock(lambda s=state: _to_network(compressor, grad, s, rng))  # type: ignore[misc]
        encodings.append(seconds)
        decodings.append(clock(lambda p=payload: _from_network(p, out))[0])  # type: ignore[misc]
        if i > WARM_UP + 1 and time.perf_counter() > deadline:
            break
    return {
        "encode_seconds": median(encodings[WARM_UP:]),
        "decode_seconds": median(decodings[WARM_UP:]),
    }


def _to_network(
    compressor: Compressor, grad: Tensor, state: Any, rng: Rng
) -> tuple[Payload | bytes, Any]:
    payload, state = compressor.encode(grad, state, rng)
    return payload if payload.summable else payload.to_bytes(), state


def _from_network(received: Payload | bytes, out: Tensor) -> None:
    payload = from_bytes(received) if isinstance(received, bytes) else received
    payload.add_to(out)


def _wall_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _cuda_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    result = work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, result
