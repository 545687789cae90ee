from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import DENSE_BITS, Bound, Contract
from gradstats.compressors.rounds import State
from gradstats.payloads.base import Dense
from gradstats.rng import Rng


@dataclass(frozen=True)
class NoCompression(Compressor):
    """The gradient as it is: the baseline of every comparison."""

    name = "none"
    contract = Contract(
        "all_reduce",
        delta=Bound("1", lambda payload: 1.0),
        omega=Bound("0", lambda payload: 0.0),
        bits=DENSE_BITS,
        unbiased=True,
    )

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Dense, State]:
        """A copy of the gradient."""
        return Dense(grad.detach().reshape(-1).clone()), state
