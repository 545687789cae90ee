from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradstats.compressors.checks import check_choice, check_whole
from gradstats.compressors.contracts import Contract
from gradstats.compressors.max_quantizer import levels
from gradstats.compressors.quantizing import coded_bits, own_levels
from gradstats.compressors.short_forms import Stateless
from gradstats.families import DWeibull, Family, FitError, GenNorm, Laplace
from gradstats.kernels import coding
from gradstats.kernels.ranges import in_range_of_squares, in_unit, unit_of
from gradstats.payloads.quantized import Coded
from gradstats.rng import Rng
from gradstats.summary import summarize

LAWS: dict[str, type[Family]] = {"gennorm": GenNorm, "dweibull": DWeibull}
GRID = 64  # shapes are multiples of 1/64, so that levels are computed once


@dataclass(frozen=True)
class LloydMax(Stateless):
    r"""Levels that lose least of a fitted distribution, where an error counts by |x|^M.

    Minimises :math:`E |X|^M (X - Q(X))^2` over quantisers of 2^bits symmetric levels. M = 0 is
    Lloyd and Max (and TinyScript, with the double Weibull distribution); the larger M, the more it
    protects large elements. From M = 2 on it is of use on kept elements only, behind a sparsifier:
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
    contract = Contract(
        "all_gather",
        bits=coded_bits("bits · d"),
        wants_feedback=True,
        host_reads=3,
        fixed_length=True,
    )

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 1, 8)
        if not 0 <= self.m <= 16:
            raise ValueError(f"m must lie in [0, 16], got {self.m!r}")
        check_choice("law", self.law, LAWS)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Fit, place levels, round to the nearest."""
        bucket = max(flat.numel(), 1)
        shape, scale = self._fitted(flat)
        positive = levels(self.law, shape, self.bits, self.m)
        unit = unit_of(min(scale * float(positive[-1]), sys.float_info.max))
        half = scale / unit * positive
        book = torch.from_numpy(np.concatenate([-half[::-1], half])).to(torch.float32)
        rising = book if bool((book.diff() > 0).all()) else torch.linspace(-1, 1, len(book))
        one = torch.ones(-(-flat.numel() // bucket), device=flat.device)
        steps, book = torch.stack([rising, book]).to(flat.device)
        symbols = coding.to_symbols(in_unit(flat, unit), one, bucket, steps, rounding="nearest")
        payload = own_levels(flat, symbols, book[None][: len(one)], bucket, trusted=True)
        return replace(payload, unit=unit)

    def _fitted(self, flat: Tensor) -> tuple[float, float]:
        """Shape on the grid, and scale; NaN where the gradient is not finite."""
        scaled, unit = in_range_of_squares(flat)
        summary = summarize(scaled)
        if summary.nonfinite:
            return 1.0, float("nan")
        if not summary.nonzero:
            return 1.0, 0.0
        try:
            law = LAWS[self.law].fit(summary, method="moments")
            return round(law.parameters["shape"] * GRID) / GRID, law.parameters["scale"] * unit
        except FitError:
            return 1.0, Laplace.fit(summary).scale * unit
