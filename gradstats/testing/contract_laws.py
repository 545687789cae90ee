"""The laws on what a contract promises: contraction, variance, bias, bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradstats.compressors import Bound, Compressor, Payload, Rng

HEADER = 64  # bytes that the formula need not count
DRAWS = 100  # of the random numbers, where a contract holds in expectation
STANDARD_ERRORS = 5  # by which the mean over the draws may miss: one false alarm in 3 million

Facts = Iterator[tuple[str, bool]]

EXTREMAL = 512  # elements of a gradient at which a bound is reached
FREQUENT = ("constant", "4/3", "one large of 64, the rest small", "of equal singular values")
RARE = "one large of 512, the rest small"  # in 100 draws a sampler may never take it


def extremal() -> dict[str, Tensor]:
    """Gradients at which the bounds of published methods are reached, or nearly.

    An average gradient is far from any bound: a variance that is declared at half its value holds
    there. The constant is the worst for sparsifiers, sampling and levels that are wider than the
    elements; x = 4/3 of a power of 2 for exponents, where (x - 1)(2 - x)/x² is 1/8; one element
    of 1 and the rest 1/(√B + 1) for a scale that is the maximum, where max|x| ‖x‖₁/‖x‖² is
    (√B + 1)/2; elements midway between two levels for what rounds to the nearest.
    """
    flat = {"constant": 0.7, "4/3": 4 / 3, "just below a power of 2": 2 - 2.0**-6}
    found = {name: torch.full((EXTREMAL,), value) for name, value in flat.items()}
    for every in (64, EXTREMAL):
        name = f"one large of {every}, the rest small"
        found[name] = _peaks(every, 1.0, 1 / (math.sqrt(every) + 1))
    found["a sixteenth of the largest"] = _peaks(32, 1.0, 1 / 16)
    found["midway in 3 bits of mantissa"] = _peaks(EXTREMAL, 1.75, 17 / 16)
    found["midway in 2 bits of mantissa"] = _peaks(EXTREMAL, 1.75, 9 / 8)
    found["midway in 1 bit of mantissa"] = _peaks(16, 6.0, 5.0)
    normal = torch.randn(32, 32, generator=torch.Generator().manual_seed(4))
    found["of equal singular values"] = torch.linalg.qr(normal).Q[:16].contiguous()
    return found


def _peaks(every: int, peak: float, rest: float) -> Tensor:
    grad = torch.full((EXTREMAL,), rest)
    grad[every // 2 :: every] = peak
    return grad


def encode(compressor: Compressor, grad: Tensor, rng: Rng) -> Payload:
    """One step from a fresh state."""
    return compressor.encode(grad, compressor.init(grad), rng)[0]


def contraction(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """The contraction, on every finite input."""
    if compressor.contract.in_expectation or not grad.any():
        return
    excess = _excess_error(compressor, grad, rng)
    yield "‖x - C(x)‖² <= (1 - delta)‖x‖²", excess <= 1e-9


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
    if not (contract.in_expectation or contract.omega or contract.unbiased):
        return
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
