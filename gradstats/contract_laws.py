"""The laws on what a contract promises: contraction, variance, bias, bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gradstats.compressors import Compressor, Payload, Rng

HEADER = 64  # bytes that the formula need not count
DRAWS = 100  # of the random numbers, where a contract holds in expectation
STANDARD_ERRORS = 5  # by which the mean over the draws may miss: one false alarm in 3 million

Facts = Iterator[tuple[str, bool]]


def encode(compressor: Compressor, grad: Tensor, rng: Rng) -> Payload:
    """One step from a fresh state."""
    return compressor.encode(grad, compressor.init(grad), rng)[0]


def contraction(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """The contraction, on every finite input."""
    if compressor.contract.in_expectation or not grad.any():
        return
    excess = _excess_error(compressor, grad, rng)
    yield "‖x - C(x)‖² <= (1 - delta)‖x‖²", excess <= 1e-9


def expected_contraction(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """The contraction in expectation."""
    if compressor.contract.in_expectation:
        draws = [_excess_error(compressor, grad, each) for each in _draws(rng)]
        yield "E‖x - C(x)‖² <= (1 - delta)‖x‖²", _at_most_zero(draws)


def expected_variance(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """The variance of an unbiased method."""
    omega = compressor.contract.omega
    if omega is None:
        return
    payloads = [encode(compressor, grad, each) for each in _draws(rng)]
    excess = [_relative_error(payload, grad) - omega(payload) for payload in payloads]
    yield "E‖C(x) - x‖² <= omega ‖x‖²", _at_most_zero(excess)


def unbiasedness(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """The mean over draws of the random numbers is the gradient."""
    if not compressor.contract.unbiased:
        return
    x = grad.reshape(-1).double()
    decoded = torch.stack([encode(compressor, grad, each).decode() for each in _draws(rng)])
    errors = decoded.double() - x
    for name, along in (("x", x), ("sign x", x.sign()), ("ones", torch.ones_like(x))):
        projections = (errors @ along / (along @ along)).numpy()
        limit = STANDARD_ERRORS * projections.std() / math.sqrt(DRAWS) + 1e-6 * float(
            x.abs().max()
        )
        yield f"E C(x) = x, along {name}", abs(projections.mean()) <= limit
    variance, off = errors.var(0), errors.mean(0)
    # off² DRAWS / variance is near chi-squared for each element, so its sum has this deviation
    spread = math.sqrt(2 * float(variance @ variance)) + float(variance.max()) * STANDARD_ERRORS
    limit = float(variance.sum()) + STANDARD_ERRORS * spread + 1e-9 * float(x @ x)
    yield "E C(x) = x, in every element", DRAWS * float(off @ off) <= limit


def _draws(rng: Rng) -> list[Rng]:
    return [replace(rng, step=rng.step + step) for step in range(DRAWS)]


def _at_most_zero(draws: list[float]) -> bool:
    """Whether the mean of draws may be 0 or less."""
    limit = STANDARD_ERRORS * float(np.std(draws)) / math.sqrt(DRAWS) + 1e-6
    return float(np.mean(draws)) <= limit


def _excess_error(compressor: Compressor, grad: Tensor, rng: Rng) -> float:
    """‖x - C(x)‖²/‖x‖² - (1 - delta): how far the contraction is missed."""
    delta = compressor.contract.delta
    if delta is None:
        return -math.inf
    payload = encode(compressor, grad, rng)
    return _relative_error(payload, grad) - (1 - delta(payload))


def _relative_error(payload: Payload, grad: Tensor) -> float:
    flat = grad.reshape(-1).double()
    error = flat - payload.decode().double()
    return float((error @ error) / (flat @ flat))


def size(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """The bytes are those of the formula."""
    formula = compressor.contract.bits
    if formula is not None:
        payload = encode(compressor, grad, rng)
        bits = formula(payload)
        excess = 8 * payload.nbytes - bits
        yield (
            "its bytes are within 5 % of bits",
            -0.05 * bits <= excess <= 0.05 * bits + 8 * HEADER,
        )
