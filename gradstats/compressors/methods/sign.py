from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.quantizing import (
    bucket_of,
    check_bucket,
    coded_bits,
    within_float32,
)
from gradstats.compressors.short_forms import Stateless
from gradstats.kernels.coding_scaled import quantize_signs
from gradstats.payloads.codebooks import Sign
from gradstats.payloads.quantized import Coded
from gradstats.payloads.symbol_codes import Packed
from gradstats.rng import Rng


@dataclass(frozen=True)
class ScaledSign(Stateless):
    """The sign of every element times the mean magnitude of its bucket; zero counts as negative.

    ‖x - C(x)‖² = ‖x‖² - ‖x‖₁²/d for a single bucket, which is at most (1 - 1/B)‖x‖² in each of B
    elements.

    Args:
        bucket: B, 0 for the whole vector as published.

    References:
        Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019.
    """

    bucket: int = 0
    name = "sign"
    contract = Contract(
        "all_gather",
        delta=Bound("1/B", lambda payload: 1 / payload.bucket),
        bits=coded_bits("d + 32 d/B"),
        wants_feedback=True,
        host_reads=0,
        fixed_length=True,
    )

    def __post_init__(self) -> None:
        check_bucket(self.bucket)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Signs, and the means of the buckets."""
        flat = within_float32(flat)
        bucket = bucket_of(self.bucket, flat.numel())
        signs, means = quantize_signs(flat, bucket)
        return Coded(Packed(signs), flat.numel(), Sign(), means, bucket)
