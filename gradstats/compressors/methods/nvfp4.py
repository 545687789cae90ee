from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.quantizing import coded_bits, peak_of, scaled
from gradstats.compressors.short_forms import Stateless
from gradstats.kernels.coding_scaled import ScaleRule
from gradstats.kernels.ranges import in_unit, saturated, unit_of
from gradstats.payloads.codebooks import E2M1
from gradstats.payloads.quantized import Coded
from gradstats.rng import Rng

BLOCK = 16
LARGEST = 6.0  # of E2M1
LARGEST_SCALE = 448.0  # of E4M3


@dataclass(frozen=True)
class NVFP4(Stateless):
    """4-bit floats (E2M1) in blocks of 16 with a scale in 8 bits (E4M3), and one for the vector.

    unit = max|x| / (6 · 448), scale = max|x of the block| / (6 unit) rounded to E4M3; elements are
    rounded to nearest, ties to even, and saturate.

    A block whose scale is a normal number loses at most 0.0715 of its energy, one with a smaller
    scale is at most (2⁻⁶/448)² of the largest element's squared in each of its elements.

    References:
        NVIDIA, "Introducing NVFP4 for efficient and accurate low-precision inference", 2025.
    """

    name = "nvfp4"
    contract = Contract(
        "all_gather",
        delta=Bound("0.928 - 1.3·10⁻⁹ d", lambda payload: 0.928 - 1.3e-9 * payload.numel),
        bits=coded_bits("4.5 d"),
        host_reads=1,
        fixed_length=True,
    )

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Scales of the blocks, then rounding."""
        peak = peak_of(flat)
        power = unit_of(peak)
        flat = in_unit(flat, power)
        unit = _in_float32(peak / power) / (LARGEST * LARGEST_SCALE) if len(flat) else 1.0
        rule = ScaleRule("e4m3", divisor=LARGEST * unit or 1.0, unit=unit)
        payload = scaled(flat, E2M1, BLOCK, rule, rounding="nearest-even")
        return replace(payload, unit=unit * power)


def _in_float32(number: float) -> float:
    """The number as `bucket_norms` rounds it, so that the largest norm need not be read."""
    return float(saturated(torch.tensor(number, dtype=torch.float64), torch.float32))
