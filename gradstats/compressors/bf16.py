from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor, Contract, State
from gradstats.compressors.payloads import Dense
from gradstats.compressors.rng import Rng


@dataclass(frozen=True)
class BF16(Compressor):
    """Every element rounded to the nearest bfloat16: the fair baseline, half the bytes of float32.

    The relative error of a normal number is at most 2⁻⁹, so ‖x - C(x)‖² <= 2⁻¹⁸ ‖x‖².
    """

    name = "bf16"
    contract = Contract("all_reduce", delta=lambda payload: 1 - 2.0**-18)

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Dense, State]:
        """Round to nearest, ties to even."""
        flat = grad.detach().reshape(-1)
        return Dense(flat.to(torch.bfloat16, copy=True), grad.numel()), state
