from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.quantizing import (
    bucket_of,
    check_bucket,
    coded_bits,
    scaled,
    within_float32,
)
from gradstats.compressors.short_forms import Stateless, needs_rng
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
        flat = clipped(within_float32(flat), self.clip)
        bucket = bucket_of(self.bucket, flat.numel())
        key, rule = needs_rng(self, rng).own.key, ScaleRule("max")
        return scaled(flat, Uniform(1), bucket, rule, rounding="stochastic", key=key)


def clipped(flat: Tensor, clip: float) -> Tensor:
    """The elements, none beyond `clip` standard deviations from 0; 0: as they are."""
    if not clip or flat.numel() < 2:
        return flat
    limit = (clip * flat.double().std()).clamp(max=torch.finfo(flat.dtype).max)
    return flat.clamp(-limit, limit)
