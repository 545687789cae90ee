from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors.contracts import Contract
from gradstats.compressors.quantizing import (
    bucket_of,
    check_bucket,
    coded_bits,
    scaled,
    within_float32,
)
from gradstats.compressors.short_forms import Stateless
from gradstats.kernels.coding_scaled import ScaleRule
from gradstats.payloads import codebooks as alphabets
from gradstats.payloads.quantized import Coded
from gradstats.rng import Rng


@dataclass(frozen=True)
class DynamicTree(Stateless):
    """8 bits over seven decades below the largest magnitude, finest in the first.

    The nearest level of `alphabets.DynamicTree` times the largest magnitude of the bucket.

    Args:
        bucket: elements that share a scale, 0 for the whole vector.

    References:
        Dettmers, "8-bit approximations for parallelism in deep learning", ICLR 2016.
    """

    bucket: int = 0
    name = "dynamic-tree"
    contract = Contract(
        "all_gather", bits=coded_bits("8 d + 32 d/B"), host_reads=0, fixed_length=True
    )

    def __post_init__(self) -> None:
        check_bucket(self.bucket)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Largest magnitudes, then rounding."""
        flat = within_float32(flat)
        bucket = bucket_of(self.bucket, flat.numel())
        return scaled(flat, alphabets.DynamicTree(), bucket, ScaleRule("max"))
