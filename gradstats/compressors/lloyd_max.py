from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gamma, gammainc
from torch import Tensor

from gradstats.compressors.base import Compressor, Contract, State
from gradstats.compressors.coded import Coded
from gradstats.compressors.quantizing import coded_bits, own_levels
from gradstats.compressors.rng import Rng
from gradstats.families import DWeibull, Family, FitError, GenNorm, Laplace
from gradstats.kernels import codes
from gradstats.summary import summarize

Floats = NDArray[np.float64]
LAWS: dict[str, type[Family]] = {"gennorm": GenNorm, "dweibull": DWeibull}
ITERATIONS, PRECISE = 20_000, 1e-10
GRID = 64  # shapes are multiples of 1/64, so that levels are found once


@dataclass(frozen=True)
class LloydMax(Compressor):
    r"""Levels that lose least of a fitted law, where an error counts by |x|^M.

    Minimises :math:`E |X|^M (X - Q(X))^2` over quantisers of 2^bits symmetric levels. M = 0 is
    Lloyd and Max (and TinyScript, with the double Weibull law); the larger M, the more it protects
    large elements. From M = 2 on it is of use on kept elements only, behind a sparsifier:
    `topk(0.1) | lloyd-max(bits=2, m=2)`.

    Args:
        bits: of a symbol, 1 to 8.
        m: M, 0 or more.
        law: "gennorm" or "dweibull".

    References:
        Liu et al., "M22: A communication-efficient algorithm for federated learning inspired by
        rate-distortion", 2023; Fu et al., "TinyScript", ICML 2020.
    """

    bits: int = 4
    m: float = 0.0
    law: str = "gennorm"
    name = "lloyd-max"
    contract = Contract("all_gather", bits=coded_bits("bits · d"), wants_feedback=True)

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be a whole number from 1 to 8, got {self.bits!r}")
        if not 0 <= self.m <= 16:
            raise ValueError(f"m must lie in [0, 16], got {self.m!r}")
        if self.law not in LAWS:
            raise ValueError(f"law must be one of {', '.join(LAWS)}, got {self.law!r}")

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Coded, State]:
        """Fit, place levels, round to the nearest."""
        flat = grad.detach().reshape(-1).contiguous()
        bucket = max(flat.numel(), 1)
        shape, scale = self._fitted(flat)
        half = scale * levels(self.law, shape, self.bits, self.m)
        book = torch.from_numpy(np.concatenate([-half[::-1], half])).to(torch.float32)
        rising = book if bool((book.diff() > 0).all()) else torch.linspace(-1, 1, len(book))
        one = torch.ones(-(-flat.numel() // bucket))
        symbols = codes.to_symbols(flat, one, bucket, rising.to(flat.device), rounding="nearest")
        return own_levels(flat, symbols, book[None][: len(one)].to(flat.device), bucket), state

    def _fitted(self, flat: Tensor) -> tuple[float, float]:
        """Shape on the grid, and scale; NaN where the gradient is not finite."""
        summary = summarize(flat)
        if summary.nonfinite:
            return 1.0, float("nan")
        if not summary.nonzero:
            return 1.0, 0.0
        try:
            law = LAWS[self.law].fit(summary, method="moments")
            return round(law.parameters["shape"] * GRID) / GRID, law.parameters["scale"]
        except FitError:
            return 1.0, Laplace.fit(summary).scale


@cache
def levels(law: str, shape: float, bits: int, m: float = 0.0) -> Floats:
    r"""The positive levels of the best symmetric quantiser of a law of scale 1, `[2^(bits-1)]`.

    A level is :math:`\int x^{M+1} f / \int x^M f` over its cell, and cells meet halfway.

    Args:
        law: "gennorm" or "dweibull".
        shape: of the law.
        bits: for 2^bits levels.
        m: M.

    Example:
        >>> (levels("gennorm", 2.0, 2) * 2**0.5).round(4).tolist()  # of the standard normal law
        [0.4528, 1.5104]
    """
    moment = MOMENTS[law]
    n = 1 << (bits - 1)
    found = np.arange(1, n + 1) * moment(m + 1, np.array(np.inf), shape) * 2
    found = found / (moment(m, np.array(np.inf), shape) * (n + 1))
    for _ in range(ITERATIONS):
        edges = np.concatenate([[0.0], (found[1:] + found[:-1]) / 2, [np.inf]])
        below = np.diff(moment(m, edges, shape))
        means = np.diff(moment(m + 1, edges, shape)) / np.maximum(below, 1e-300)
        means = np.where(below > 0, means, found)
        moved, found = float(np.abs(means - found).max()), means
        if moved < PRECISE * found[-1]:
            break
    return found


def _gennorm(k: float, x: Floats, shape: float) -> Floats:
    """∫₀ˣ t^k f of GenNorm(shape, 1)."""
    a = (k + 1) / shape
    return np.asarray(gamma(a) / gamma(1 / shape) / 2 * gammainc(a, x**shape))


def _dweibull(k: float, x: Floats, shape: float) -> Floats:
    """∫₀ˣ t^k f of the double Weibull law of scale 1."""
    a = 1 + k / shape
    return np.asarray(gamma(a) / 2 * gammainc(a, x**shape))


MOMENTS: dict[str, Callable[[float, Floats, float], Floats]] = {
    "gennorm": _gennorm,
    "dweibull": _dweibull,
}
