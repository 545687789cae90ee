from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.quantizing import bucket_of
from gradstats.compressors.short_forms import Stateless
from gradstats.kernels import coding
from gradstats.kernels.ranges import in_range
from gradstats.payloads.codebooks import Uniform
from gradstats.payloads.quantized import Coded
from gradstats.payloads.symbol_codes import ZeroRuns
from gradstats.rng import Rng


@dataclass(frozen=True)
class ThreeLC(Stateless):
    """Rounded to minus, 0 or plus a multiple of the maximum; zeros are folded.

    M = s max|x|, x̂ = M round(x/M); five ternary symbols in a byte, and 2 to 14 bytes of zeros in
    one. No element is moved further than it is from 0.

    Args:
        sparsity: s, in [1, 2): the larger, the more zeros.

    References:
        Lim et al., "3LC: Lightweight and effective traffic compression for distributed machine
        learning", MLSys 2019.
    """

    sparsity: float = 1.0
    name = "3lc"
    contract = Contract("all_gather", delta=Bound("0", lambda payload: 0.0), wants_feedback=True)

    def __post_init__(self) -> None:
        if not 1 <= self.sparsity < 2:
            raise ValueError(f"sparsity must lie in [1, 2), got {self.sparsity!r}")

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Round, then fold."""
        flat, unit = in_range(flat)
        bucket = bucket_of(0, flat.numel())
        scales = coding.bucket_norms(flat, bucket, "max") * self.sparsity
        levels = Uniform(1).levels(flat.device)
        symbols = coding.to_symbols(flat, scales, bucket, levels, rounding="nearest")
        coder = ZeroRuns.of(symbols)
        return Coded(coder, flat.numel(), Uniform(1), scales, bucket, unit)
