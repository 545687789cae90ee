from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors.checks import check_choice, check_whole
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

NORMS = ("l2", "max")


@dataclass(frozen=True)
class QSGD(Stateless):
    r"""Stochastic rounding to 2s + 1 equidistant levels between minus and plus the bucket's norm.

    .. math:: \hat x_i = \frac{N}{s} \operatorname{sign}(x_i) \Big(\Big\lfloor \frac{s|x_i|}{N}
              \Big\rfloor + \operatorname{Bernoulli}\Big(\text{frac}\,\frac{s|x_i|}{N}\Big)\Big)

    Unbiased, with ω <= min(B/4s², √B/s) under the L2 norm and min(B/4s², (√B + 1)/2s) under the
    maximum, each for buckets of B elements: an element is off by at most N²/4s² and by at most
    |x| N/s in the mean square, and N ‖x‖₁ <= (√B + 1)/2 ‖x‖² where N is the maximum.

    Args:
        bits: of a symbol, 2 or more: s = 2^(bits - 1) - 1.
        norm: N, "l2" as published or "max".
        bucket: B, 0 for the whole vector.
        steps: s, where it is not to follow from bits.

    References:
        Alistarh et al., "QSGD", NeurIPS 2017.
    """

    bits: int = 4
    norm: str = "l2"
    bucket: int = 512
    steps: int = 0
    name = "qsgd"

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 2, 16)
        check_choice("norm", self.norm, NORMS)
        check_whole("steps", self.steps, 0, 32767)
        check_bucket(self.bucket)

    @property
    def s(self) -> int:
        """Levels on each side of 0."""
        return self.steps or (1 << (self.bits - 1)) - 1

    @property
    def contract(self) -> Contract:
        """Unbiased, with the variance of its norm."""
        text = "min(B/4s², √B/s)" if self.norm == "l2" else "min(B/4s², (√B + 1)/2s)"
        return Contract(
            "all_gather",
            omega=Bound(text, lambda payload: self._omega(payload.bucket)),
            bits=coded_bits("d log₂(2s+1) + 32 d/B"),
            unbiased=True,
            random=True,
            host_reads=0,
            fixed_length=True,
        )

    def _omega(self, bucket: int) -> float:
        root = math.sqrt(bucket)
        few = (root + 1) / 2 if self.norm == "max" else root
        return min(bucket / (4 * self.s**2), few / self.s)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Norms of the buckets, then rounding by this worker's own numbers."""
        flat = within_float32(flat)
        bucket = bucket_of(self.bucket, flat.numel())
        key, rule = needs_rng(self, rng).own.key, ScaleRule(self.norm)
        return scaled(flat, Uniform(self.s), bucket, rule, rounding="stochastic", key=key)
