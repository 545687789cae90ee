"""The laws on what a contract promises: contraction, variance, bias, bits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradstats.compressors import Bound, Compressor, Payload, Rng
from gradstats.testing.laws import Facts, encode

HEADER = 64  # bytes that the formula need not count
DRAWS = 100  # of the random numbers, where a contract holds in expectation
STANDARD_ERRORS = 5  # by which the mean over the draws may miss: one false alarm in 3 million


def contraction(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """The contraction, on every finite input."""
    if grad.any():
        excess = _excess_error(compressor, grad, rng)
        yield "‖x - C(x)‖² <= (1 - delta)‖x‖²", excess <= 1e-9


def contracts(compressor: Compressor) -> bool:
    """Whether the contract promises a contraction in every step."""
    return compressor.contract.delta is not None and not compressor.contract.in_expectation


def promises_a_mean(compressor: Compressor) -> bool:
    """Whether the contract promises something of the mean over draws."""
    contract = compressor.contract
    return bool(contract.in_expectation or contract.omega or contract.unbiased)


def promises_a_variance(compressor: Compressor) -> bool:
    """Whether the contract has an ω."""
    return compressor.contract.omega is not None


def promises_a_size(compressor: Compressor) -> bool:
    """Whether the contract has a formula for the bits."""
    return compressor.contract.bits is not None


@dataclass(frozen=True)
class _Drawn:
    """A gradient, and what 100 draws of the random numbers made of it."""

    x: Tensor
    payloads: list[Payload]
    decoded: Tensor

    @classmethod
    def of(cls, compressor: Compressor, grad: Tensor, rng: Rng) -> _Drawn:
        payloads = [encode(compressor, grad, each) for each in _draws(rng)]
        decoded = torch.stack([payload.decode().double() for payload in payloads])
        return cls(grad.reshape(-1).double(), payloads, decoded)

    @property
    def errors(self) -> list[float]:
        """‖x - C(x)‖²/‖x‖² of each."""
        lost: Tensor = (self.decoded - self.x).square().sum(1) / (self.x @ self.x)
        return [float(each) for each in lost]


def expectation(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """What holds in the mean over draws: the contraction, the variance, the gradient itself."""
    contract = compressor.contract
    drawn = _Drawn.of(compressor, grad, rng)
    if contract.in_expectation:
        yield "E‖x - C(x)‖² <= (1 - delta)‖x‖²", _contracts(compressor, drawn)
    if contract.omega:
        yield "E‖C(x) - x‖² <= omega ‖x‖²", _varies(contract.omega, drawn)
    if contract.unbiased:
        yield from _unbiased(drawn)


def variance(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """The variance of an unbiased method alone."""
    omega = compressor.contract.omega
    if omega is not None:
        drawn = _Drawn.of(compressor, grad, rng)
        yield "E‖C(x) - x‖² <= omega ‖x‖²", _varies(omega, drawn)


def _contracts(compressor: Compressor, drawn: _Drawn) -> bool:
    delta = compressor.contract.delta
    if delta is None:
        return True
    pairs = zip(drawn.errors, drawn.payloads, strict=True)
    return _at_most_zero([error - (1 - delta(payload)) for error, payload in pairs])


def _varies(omega: Bound, drawn: _Drawn) -> bool:
    bounds = [omega(payload) for payload in drawn.payloads]
    pairs = zip(drawn.errors, bounds, strict=True)
    # float32 values of d/k times the gradient are rounded in proportion to it
    return _at_most_zero([(error - bound) / (1 + bound) for error, bound in pairs])


def _unbiased(drawn: _Drawn) -> Facts:
    x, errors = drawn.x, drawn.decoded - drawn.x
    for name, along in (("x", x), ("sign x", x.sign()), ("ones", torch.ones_like(x))):
        projections = (errors @ along / (along @ along)).numpy()
        limit = STANDARD_ERRORS * projections.std() / math.sqrt(DRAWS)
        limit += 1e-6 * float(x.abs().max())
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
