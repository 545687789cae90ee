from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.checks import check_whole
from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.quantizing import (
    bucket_of,
    check_bucket,
    coded_bits,
    quantized,
    scaled,
    within_float32,
)
from gradstats.compressors.short_forms import Stateless, needs_rng
from gradstats.kernels import coding
from gradstats.kernels.coding_scaled import ScaleRule
from gradstats.payloads.codebooks import Exponential, Powers
from gradstats.payloads.quantized import Coded
from gradstats.rng import Rng


@dataclass(frozen=True)
class Natural(Stateless):
    """Natural compression: one of the two neighbouring powers of 2, at random; 9 bits.

    Unbiased, with ω = 1/8, reached at 4/3 of a power.

    References:
        Horváth et al., "Natural compression for distributed deep learning", 2019.
    """

    name = "natural"
    contract = Contract(
        "all_gather",
        omega=Bound("1/8", lambda payload: 1 / 8),
        bits=coded_bits("9 d"),
        unbiased=True,
        random=True,
        host_reads=0,
        fixed_length=True,
    )

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Round exponents."""
        flat = within_float32(flat)
        bucket = bucket_of(0, flat.numel())
        largest = coding.bucket_norms(flat, bucket, "max")
        one = torch.where(largest.isfinite(), 1.0, torch.nan)  # a NaN must not become a level
        key = needs_rng(self, rng).own.key
        return quantized(flat, Powers(), one, bucket, rounding="stochastic", key=key)


@dataclass(frozen=True)
class NUQSGD(Stateless):
    r"""Stochastic rounding to levels that halve: 0, ±2^-s, …, ±1/2, ±1 times the bucket's norm.

    Unbiased, with :math:`\omega = 1/8 + \min(B/2^{2s+2}, \sqrt B/2^s)`: above the least level a
    power of 2 is off by at most an eighth, below it as QSGD is.

    Args:
        steps: s.
        bucket: B, 0 for the whole vector.

    References:
        Ramezani-Kebrya et al., "NUQSGD", JMLR 2021.
    """

    steps: int = 3
    bucket: int = 512
    name = "nuqsgd"

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 1, 120)
        check_bucket(self.bucket)

    @property
    def contract(self) -> Contract:
        """Unbiased."""
        least = 2.0**-self.steps

        def omega(payload: Coded) -> float:
            size = payload.bucket
            return 1 / 8 + min(size * least**2 / 4, math.sqrt(size) * least)

        return Contract(
            "all_gather",
            omega=Bound("1/8 + min(B/4^(s+1), √B/2^s)", omega),
            bits=coded_bits("d log₂(2s+3) + 32 d/B"),
            unbiased=True,
            random=True,
            host_reads=0,
            fixed_length=True,
        )

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Norms, then rounding."""
        flat = within_float32(flat)
        bucket = bucket_of(self.bucket, flat.numel())
        key, rule = needs_rng(self, rng).own.key, ScaleRule("l2")
        levels = Exponential(self.steps)
        return scaled(flat, levels, bucket, rule, rounding="stochastic", key=key)
