from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.contracts import DENSE_BITS, Bound, Contract
from gradstats.compressors.short_forms import Stateless
from gradstats.payloads.base import Dense
from gradstats.rng import Rng


@dataclass(frozen=True)
class NoCompression(Stateless):
    """The gradient as it is: the baseline of every comparison."""

    name = "none"
    contract = Contract(
        "all_reduce",
        delta=Bound("1", lambda payload: 1.0),
        omega=Bound("0", lambda payload: 0.0),
        bits=DENSE_BITS,
        unbiased=True,
        host_reads=0,
        fixed_length=True,
    )

    def averages_in(self, dtype: torch.dtype) -> torch.dtype:
        """Return the gradients' own."""
        return dtype

    def message(self, flat: Tensor, rng: Rng | None = None) -> Dense:
        """Copy the gradient."""
        return Dense(flat.clone())
