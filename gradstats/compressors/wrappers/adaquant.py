from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import Contract
from gradstats.compressors.methods.qsgd import QSGD
from gradstats.compressors.rounds import State
from gradstats.compressors.states import first_state
from gradstats.payloads.base import Payload
from gradstats.rng import Rng


@dataclass(frozen=True)
class Losses:
    """Loss at the start of training, and now; NaN if it is unknown.

    Attributes:
        first: F₀.
        last: F.
    """

    first: float = math.nan
    last: float = math.nan


@dataclass(frozen=True)
class AdaQuant(Compressor):
    r"""A policy: the number of levels rises as the loss falls, :math:`s = s_0 \sqrt{F_0/F}`.

    `observe` passes the loss of each step before it; without a loss s stays unchanged.

    Args:
        compressor: `qsgd`, whose levels are s₀.
        most: largest s.

    References:
        Jhunjhunwala et al., "Adaptive quantization of model updates for communication-efficient
        federated learning" (AdaQuantFL), ICASSP 2021.
    """

    compressor: QSGD
    most: int = 127
    name = "adaquant"
    resharded = first_state

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, QSGD):
            raise ValueError(f"compressor must be qsgd, got {self.compressor}")
        if not isinstance(self.most, int) or self.most < self.compressor.s:
            raise ValueError(f"most must be at least {self.compressor.s}, got {self.most!r}")

    @property
    def contract(self) -> Contract:
        """Contract of QSGD, with a memory and the need of a loss."""
        return replace(
            self.compressor.contract,
            omega=None,
            bits=None,
            has_memory=True,
            needs=("loss",),
            fixed_length=False,
        )

    def init(self, grad: Tensor) -> Losses:
        """Start without a loss."""
        return Losses()

    def observe(self, state: Losses, loss: float) -> Losses:
        """Return the state once the loss of a step is known."""
        return Losses(loss if math.isnan(state.first) else state.first, loss)

    def steps_at(self, state: Losses) -> int:
        """Return s for these losses.

        Example:
            >>> AdaQuant(QSGD(bits=3)).steps_at(Losses(first=4.0, last=1.0))
            6
        """
        share = state.first / state.last if state.last else math.inf
        wanted = self.compressor.s * math.sqrt(share) if share >= 0 else self.compressor.s
        return max(1, round(min(wanted, self.most)))

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Quantise with the current number of levels."""
        payload, _ = replace(self.compressor, steps=self.steps_at(state)).encode(grad, None, rng)
        return payload, state
