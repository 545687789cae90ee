from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradstats import kernels
from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import SPARSIFIER
from gradstats.compressors.rounds import State
from gradstats.compressors.states import Mean, first_state
from gradstats.payloads.base import Dense
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import kept_count
from gradstats.rng import Rng


@dataclass(frozen=True)
class HardThreshold(Compressor):
    """The elements above a magnitude that the first gradient fixes so that it keeps k.

    The state is that magnitude. How far k̂/k drifts afterwards is what the method costs. A
    gradient of at most k non-zero elements fixes nothing: they are sent, and the next one is
    tried.

    Args:
        ratio: k/d of the gradient that fixes it, in (0, 1].

    References:
        Dryden et al., MLHPC 2016; Sahu et al., NeurIPS 2021 (threshold-v).
    """

    ratio: float
    name = "threshold"
    contract = replace(SPARSIFIER, has_memory=True, host_reads=3)
    resharded = first_state

    def init(self, grad: Tensor) -> Mean:
        """Return the (k+1)-th largest finite magnitude, or 0."""
        magnitudes = self.flattened(grad).abs()
        k = kept_count(magnitudes.numel(), self.ratio)
        if k >= magnitudes.numel():
            return Mean()
        finite = torch.where(magnitudes.isfinite(), magnitudes, -1)
        return Mean(finite.topk(k + 1).values[-1].clamp(min=0))  # 0 where fewer are finite

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Sparse, State]:
        """Select the elements above the calibrated magnitude."""
        flat = self.flattened(grad)
        state = state or self.init(flat)
        return Sparse.above(flat, state), state

    def encode_sum(
        self, terms: tuple[Tensor, Tensor], total: Tensor, state: State, rng: Rng | None = None
    ) -> tuple[Sparse, State]:
        """Select the elements of a sum above the calibrated magnitude while it is written."""
        if not state:
            return super().encode_sum(terms, total, state, rng)  # type: ignore[return-value]
        first, second, flat = (each.view(-1) for each in (*terms, total))
        indices, values = kernels.compact_sum(first, second, flat, state)
        return Sparse(Dense(values), flat.numel(), indices), state
