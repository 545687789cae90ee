from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gradstats.compressors.checks import check_choice
from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.quantizing import coded_bits, scaled_in_range
from gradstats.compressors.short_forms import Stateless
from gradstats.kernels.coding_scaled import ScaleRule
from gradstats.payloads.codebooks import E2M1, E4M3
from gradstats.payloads.quantized import Coded
from gradstats.rng import Rng

BLOCK = 32
FORMATS = {"mxfp4": (E2M1, 2), "mxfp8": (E4M3, 8)}  # with the exponent of the largest level
DELTAS = {
    # in [0, 1/2 scale] steps are as long as the scale, which is at most a quarter of the maximum
    "mxfp4": Bound("13/16", lambda payload: 13 / 16),
    "mxfp8": Bound("1 - 2⁻⁶ - 2⁻³¹", lambda payload: 1 - 2.0**-6 - 2.0**-31),
}


@dataclass(frozen=True)
class MX(Stateless):
    """Microscaling floats: blocks of 32 share a power of 2 as their scale, in 8 bits.

    scale = 2^(⌊log₂ max|x|⌋ - e), with e the exponent of the format's largest level; elements are
    rounded to nearest, ties to even, and saturate. MXFP4 is E2M1, MXFP8 is E4M3.

    Args:
        format: "mxfp4" or "mxfp8"; part of the name in the grammar.

    References:
        Open Compute Project, "OCP microscaling formats (MX) specification", version 1.0, 2023.
    """

    format: str = field(default="mxfp4", metadata={"in_name": True})

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)

    @property
    def name(self) -> str:
        """Name in the grammar: the format."""
        return self.format

    @property
    def contract(self) -> Contract:
        """Rounding and saturation of one block."""
        bits = coded_bits(f"{4.25 if self.format == 'mxfp4' else 8.25} d")
        return Contract(
            "all_gather", delta=DELTAS[self.format], bits=bits, host_reads=1, fixed_length=True
        )

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Scales of the blocks, then rounding."""
        alphabet, exponent = FORMATS[self.format]
        rule = ScaleRule("power", power=exponent)
        return scaled_in_range(flat, alphabet, BLOCK, rule, rounding="nearest-even")
