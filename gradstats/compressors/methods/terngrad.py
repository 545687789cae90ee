from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
from gradstats.kernels import coding, deviation
from gradstats.kernels.coding_scaled import ScaleRule
from gradstats.payloads.codebooks import Uniform
from gradstats.payloads.quantized import Coded
from gradstats.rng import Rng


@dataclass(frozen=True)
class TernGrad(Stateless):
    r"""Minus the maximum, 0 or plus the maximum, at random: 1.6 bits.

    After clipping to c standard deviations, :math:`\hat x_i = m \operatorname{sign}(x_i)
    \operatorname{Bernoulli}(|x_i|/m)` with m the largest magnitude. Without clipping it is
    unbiased, and :math:`E\|\hat x\|^2 = \|x\|_\infty \|x\|_1 \le (1 + \omega)\|x\|^2` with
    ω = (√B - 1)/2.

    Args:
        clip: c; 0 for no clipping.
        bucket: B, 0 for the whole vector.

    References:
        Wen et al., "TernGrad", NeurIPS 2017.
    """

    clip: float = 2.5
    bucket: int = 0
    name = "terngrad"

    def __post_init__(self) -> None:
        if not self.clip >= 0:
            raise ValueError(f"clip must be at least 0, got {self.clip!r}")
        check_bucket(self.bucket)

    @property
    def contract(self) -> Contract:
        """Unbiased without clipping."""
        bits = coded_bits("1.6 d + 32 d/B")
        if self.clip:
            return Contract("all_gather", bits=bits, random=True, host_reads=0, fixed_length=True)
        omega = Bound("(√B - 1)/2", lambda payload: (math.sqrt(payload.bucket) - 1) / 2)
        return Contract(
            "all_gather",
            omega=omega,
            bits=bits,
            unbiased=True,
            random=True,
            host_reads=0,
            fixed_length=True,
        )

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Clip, then draw."""
        flat = within_float32(flat).contiguous()
        bucket, levels = bucket_of(self.bucket, flat.numel()), Uniform(1)
        how: Any = {"rounding": "stochastic", "key": needs_rng(self, rng).own.key}
        limit = limit_of(flat, self.clip)
        if limit is None:
            return scaled(flat, levels, bucket, ScaleRule("max"), **how)
        # what is beyond its scale is rounded to it, and need not be clipped before
        scales = torch.minimum(coding.bucket_norms(flat, bucket, "max"), limit.float())
        return quantized(flat, levels, scales, bucket, **how)


def clipped(flat: Tensor, clip: float) -> Tensor:
    """The elements, none beyond `clip` standard deviations from 0; 0: as they are."""
    limit = limit_of(flat, clip)
    return flat if limit is None else flat.clamp(-limit, limit)


def limit_of(flat: Tensor, clip: float) -> Tensor | None:
    """So many standard deviations, `[]` in the dtype of the elements; None: nothing is clipped."""
    if not clip or flat.numel() < 2:
        return None
    return (clip * deviation(flat)).clamp(max=torch.finfo(flat.dtype).max).to(flat.dtype)
