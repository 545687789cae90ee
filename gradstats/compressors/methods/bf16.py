from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradstats.compressors.contracts import DENSE_BITS, Bound, Contract
from gradstats.compressors.short_forms import Stateless
from gradstats.kernels.ranges import bounded
from gradstats.payloads.base import Dense
from gradstats.rng import Rng


@dataclass(frozen=True)
class BF16(Stateless):
    """Every element rounded to the nearest bfloat16: the fair baseline, half the bytes of float32.

    The relative error of a normal number is at most 2⁻⁸, so ‖x - C(x)‖² <= 2⁻¹⁶ ‖x‖².
    """

    dtype: ClassVar[torch.dtype] = torch.bfloat16
    name = "bf16"
    contract = Contract(
        "all_reduce",
        delta=Bound("1 - 2⁻¹⁶", lambda payload: 1 - 2.0**-16),
        bits=DENSE_BITS,
        host_reads=0,
        fixed_length=True,
    )

    def averages_in(self, dtype: torch.dtype) -> torch.dtype | None:
        """Return the dtype that is sent; None for 16-bit gradients, whose mean is in float32."""
        return self.dtype if dtype.itemsize > 2 else None

    def message(self, flat: Tensor, rng: Rng | None = None) -> Dense:
        """Round to nearest, ties to even; what is beyond the range becomes its largest number."""
        flat = bounded(flat, self.dtype)
        return Dense(flat.to(self.dtype, copy=True))


class FP16(BF16):
    """Every element rounded to the nearest float16.

    More exact than bfloat16 between 6·10⁻⁵ and 65,504, relative error 2⁻¹¹; what is above it
    becomes 65,504, below 6·10⁻⁸ it is 0. So there is no promise for every input; loss scaling is
    what it needs.
    """

    dtype = torch.float16
    name = "fp16"
    contract = Contract(
        "all_reduce", bits=DENSE_BITS, scaling=None, host_reads=0, fixed_length=True
    )
