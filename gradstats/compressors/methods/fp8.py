from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors.checks import check_choice
from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.quantizing import (
    bucket_of,
    check_bucket,
    coded_bits,
    scaled_in_range,
)
from gradstats.compressors.short_forms import Stateless
from gradstats.kernels.coding_scaled import ScaleRule
from gradstats.payloads.codebooks import E4M3, E5M2
from gradstats.payloads.quantized import Coded
from gradstats.rng import Rng

FORMATS = {"e4m3": E4M3, "e5m2": E5M2}


@dataclass(frozen=True)
class FP8(Stateless):
    """8-bit floats, scaled so that the largest magnitude of a bucket is the largest of the format.

    Rounded to nearest, ties to even: a relative error of 2⁻⁴ (e4m3) or 2⁻³ (e5m2) for normal
    numbers, and half the smallest subnormal below them.

    Args:
        format: "e4m3" of range 2⁻⁹ … 448, or "e5m2" of range 2⁻¹⁶ … 57344.
        bucket: elements that share a scale, 0 for the whole vector.

    References:
        Micikevicius et al., "FP8 formats for deep learning", 2022.
    """

    format: str = "e4m3"
    bucket: int = 0
    name = "fp8"

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)
        check_bucket(self.bucket)

    @property
    def contract(self) -> Contract:
        """The rounding of normal numbers, and of B that are not."""
        relative, subnormal = {
            "e4m3": (2.0**-8, (2.0**-10 / 448) ** 2),
            "e5m2": (2.0**-6, (2.0**-17 / 57344) ** 2),
        }[self.format]
        return Contract(
            "all_gather",
            delta=Bound(
                f"1 - {relative:.2g} - {subnormal:.1g} B",
                lambda payload: 1 - relative - subnormal * payload.bucket,
            ),
            bits=coded_bits("8 d + 32 d/B"),
            host_reads=1,
            fixed_length=True,
        )

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Largest magnitudes of the buckets, then rounding."""
        bucket = bucket_of(self.bucket, flat.numel())
        alphabet = FORMATS[self.format]
        rule = ScaleRule("max", divisor=alphabet.largest)
        return scaled_in_range(flat, alphabet, bucket, rule, rounding="nearest-even")
