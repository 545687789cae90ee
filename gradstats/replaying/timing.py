"""What compressing and decompressing a gradient costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors import (
    AllGather,
    AllToAll,
    Collective,
    Compressor,
    Rng,
    Step,
    from_bytes,
)
from gradstats.compressors.rounds import answer
from gradstats.exchange import Exchange
from gradstats.replaying.folding import Row

Clock = Callable[[Callable[[], Any]], tuple[float, Any]]
WARM_UP = 3
REPETITIONS = 9
TIMING_SECONDS = 1.0


def time_compressor(compressor: Compressor, grad: Tensor, *, seed: int = 0) -> Row:
    """Seconds that encoding and decoding take: warm-up, then the medians of several runs.

    Encoding ends with what is handed to the network: the bytes of a payload that is gathered, the
    tensor of the last all-reduce. Decoding begins there, and ends in a buffer to which one payload
    is added, or with the update that follows an all-reduce. Of a two-shot exchange one worker does
    all: it encodes and decodes the gradient and encodes the sum, in `encode_seconds`, and decodes
    the sum; n workers share the second encoding. On a CUDA device times are those of events.

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
        if compressor.contract.collective != "all_gather":
            encoding, decoding, state = _timed_rounds(compressor.exchange(grad, state, rng), clock)
        else:
            encoding, (payload, state) = clock(
                lambda s=state: _to_network(compressor, grad, s, rng)  # type: ignore[misc]
            )
            decoding, _ = clock(lambda p=payload: from_bytes(p).to(out.device).add_to(out))  # type: ignore[misc]
        encodings.append(encoding)
        decodings.append(decoding)
        if i > WARM_UP + 1 and time.perf_counter() > deadline:
            break
    return {
        "encode_seconds": median(encodings[WARM_UP:]),
        "decode_seconds": median(decodings[WARM_UP:]),
    }


def _timed_rounds(exchange: Exchange[Step], clock: Clock) -> tuple[float, float, Any]:
    """Seconds up to the last collective and after it, with those of messages, and the state."""
    encoding, reading, result = 0.0, 0.0, None
    while True:
        seconds, answered = clock(lambda r=result: _next(exchange, r))  # type: ignore[misc]
        if isinstance(answered, Step):
            return encoding, reading + seconds, answered.state
        encoding += reading + seconds
        writing, reading = _seconds_of_messages(answered, clock)
        encoding += writing
        result = answer(answered)


def _seconds_of_messages(request: Collective, clock: Clock) -> tuple[float, float]:
    """Seconds of writing the bytes that a collective sends, and of reading them."""
    if isinstance(request, AllToAll):
        payloads = [payload for payload in request.payloads if payload]
    elif isinstance(request, AllGather):
        payloads = [request.payload]
    else:
        return 0.0, 0.0
    writing, messages = clock(lambda: [payload.to_bytes() for payload in payloads])
    reading, _ = clock(lambda: [from_bytes(message) for message in messages])
    return writing, reading


def _next(exchange: Exchange[Step], result: Any) -> Collective | Step:
    try:
        return exchange.send(result)
    except StopIteration as end:
        step: Step = end.value
        return step


def _to_network(compressor: Compressor, grad: Tensor, state: Any, rng: Rng) -> tuple[bytes, Any]:
    payload, state = compressor.encode(grad, state, rng)
    return payload.to_bytes(), state


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
