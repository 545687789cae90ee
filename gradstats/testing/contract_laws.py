"""The laws on what a contract promises: contraction, variance, bias, bits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.compressors import Bound, Compressor, Payload, Rng
from gradstats.testing.comparing import HOLDS, Evidence, at_most
from gradstats.testing.laws import Facts, encode

HEADER = 64  # bytes that the formula need not count
DRAWS = 100  # of the random numbers, where a contract holds in expectation
STANDARD_ERRORS = 5  # by which the mean over the draws may miss: one false alarm in 3 million


def contraction(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """The contraction, on every finite input."""
    if grad.any():
        yield "‖x - C(x)‖² <= (1 - delta)‖x‖²", _contraction(compressor, grad, rng)


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


def _contracts(compressor: Compressor, drawn: _Drawn) -> Evidence:
    delta = compressor.contract.delta
    if delta is None:
        return HOLDS
    return _bounded(drawn.errors, [1 - delta(payload) for payload in drawn.payloads], 1.0)


def _varies(omega: Bound, drawn: _Drawn) -> Evidence:
    bounds = [omega(payload) for payload in drawn.payloads]
    # float32 values of d/k times the gradient are rounded in proportion to it
    return _bounded(drawn.errors, bounds, 1 + np.asarray(bounds, np.float64))


def _unbiased(drawn: _Drawn) -> Facts:
    x, errors = drawn.x, drawn.decoded - drawn.x
    for name, along in (("x", x), ("sign x", x.sign()), ("ones", torch.ones_like(x))):
        projections = (errors @ along / (along @ along)).numpy()
        limit = STANDARD_ERRORS * projections.std() / math.sqrt(DRAWS)
        limit += 1e-6 * float(x.abs().max())
        error = abs(float(projections.mean()))
        yield f"E C(x) = x, along {name}: the error", at_most(error, float(limit))
    error = DRAWS * float(errors.mean(0).square().sum())
    limit = _largest_sum(errors) + 1e-9 * float(x @ x)
    yield "E C(x) = x, in every element: the sum of squared errors", at_most(error, limit)


def _largest_sum(errors: Tensor) -> float:
    r"""What :math:`n ‖\bar e‖²` of n errors of mean 0 stays below, Laurent and Massart 2000.

    It is near :math:`\sum_i \lambda_i z_i^2` with the eigenvalues λ of the covariance Σ of the
    elements, few of which are large where errors lie in few directions. Products of different
    errors have the mean square tr Σ².
    """
    variance, around = errors.var(0), errors - errors.mean(0)  # a bias must not raise its limit
    products = (around @ around.T).square()
    traced = float(products.sum() - products.trace()) / (DRAWS * (DRAWS - 1))
    total = float(variance.sum())
    eigenvalue = max(float(variance.max()), traced / total if total else 0.0)
    spread = math.sqrt(2 * traced) + STANDARD_ERRORS * eigenvalue
    return total + STANDARD_ERRORS * spread


def _draws(rng: Rng) -> list[Rng]:
    return [replace(rng, step=rng.step + step) for step in range(DRAWS)]


def _bounded(
    errors: list[float], bounds: list[float], units: float | NDArray[np.float64]
) -> Evidence:
    """Whether the mean error may be the mean bound or less, as far as the draws show."""
    excess = (np.asarray(errors, np.float64) - np.asarray(bounds, np.float64)) / units
    limit = STANDARD_ERRORS * float(np.std(excess)) / math.sqrt(DRAWS) + 1e-6
    if float(np.mean(excess)) <= limit:
        return HOLDS
    means = (float(np.mean(each)) for each in (errors, bounds))
    return Evidence(False, "got a mean of {!r}, at most {!r}".format(*means))


def _contraction(compressor: Compressor, grad: Tensor, rng: Rng) -> Evidence:
    """‖x - C(x)‖²/‖x‖² against 1 - delta."""
    delta = compressor.contract.delta
    if delta is None:
        return HOLDS
    payload = encode(compressor, grad, rng)
    error, limit = _relative_error(payload, grad), 1 - delta(payload)
    return HOLDS if error - limit <= 1e-9 else at_most(error, limit)


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
        holds = -0.05 * bits <= excess <= 0.05 * bits + 8 * HEADER
        values = f"got {payload.nbytes} bytes, expected {bits / 8:.1f}"
        yield "its bytes are within 5 % of bits", Evidence(holds, values)
