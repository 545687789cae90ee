from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors.checks import check_whole
from gradstats.compressors.contracts import Contract
from gradstats.compressors.quantizing import (
    bucket_of,
    check_bucket,
    coded_bits,
    scaled_in_range,
)
from gradstats.compressors.short_forms import Stateless, needs_rng
from gradstats.kernels.coding_scaled import ScaleRule
from gradstats.payloads.codebooks import Uniform
from gradstats.payloads.quantized import Coded
from gradstats.rng import Rng


@dataclass(frozen=True)
class Affine(Stateless):
    r"""2^bits - 1 equidistant levels from the least to the largest element of a bucket.

    :math:`|x_i - \hat x_i| \le \frac{\max - \min}{2 (L - 1)}` where rounding is to nearest;
    stochastic rounding is unbiased.

    Args:
        bits: of a symbol, 2 to 8.
        bucket: elements that share a range, 0 for the whole vector.
        stochastic: rounds at random.

    References:
        As in torch's quantization hooks and CGX, with an odd number of levels.
    """

    bits: int = 8
    bucket: int = 512
    stochastic: bool = False
    name = "affine"

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 2, 8)
        check_bucket(self.bucket)

    @property
    def contract(self) -> Contract:
        """Unbiased if stochastic."""
        bits = coded_bits("bits d + 64 d/B")
        return Contract(
            "all_gather",
            bits=bits,
            unbiased=self.stochastic,
            random=self.stochastic,
            host_reads=1,
            fixed_length=True,
        )

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Move each range to [-1, 1], then round."""
        bucket = bucket_of(self.bucket, flat.numel())
        rounding = "stochastic" if self.stochastic else "nearest"
        key = needs_rng(self, rng).own.key if self.stochastic else None
        levels = Uniform((1 << (self.bits - 1)) - 1)
        rule = ScaleRule("range")
        return scaled_in_range(flat, levels, bucket, rule, rounding=rounding, key=key)
