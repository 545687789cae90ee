from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors.contracts import KEPT_SHARE, Bound, Contract
from gradstats.compressors.short_forms import Stateless, needs_rng
from gradstats.kernels.ranges import times
from gradstats.payloads.base import Dense
from gradstats.payloads.sparse import Masked
from gradstats.ratios import kept_count
from gradstats.rng import Rng

VALUE_BITS = Bound("b k", lambda payload: 8.0 * payload.values.nbytes)
AS_THEY_ARE = Contract(
    "all_reduce",
    delta=KEPT_SHARE,
    bits=VALUE_BITS,
    in_expectation=True,
    wants_feedback=True,
    random=True,
    host_reads=1,
)
SCALED = Contract(
    "all_reduce",
    omega=Bound("d/k - 1", lambda payload: payload.numel / max(payload.count, 1) - 1),
    bits=VALUE_BITS,
    unbiased=True,
    random=True,
    host_reads=1,
)


@dataclass(frozen=True)
class RandomK(Stateless):
    """k random elements, the same on every worker, so that their values can be all-reduced.

    As they are, E‖x - C(x)‖² = (1 - k/d)‖x‖² exactly; scaled by d/k they are unbiased, with
    E‖C(x) - x‖² = (d/k - 1)‖x‖² exactly.

    Args:
        ratio: k/d, in (0, 1].
        scaled: by d/k.

    References:
        Stich et al., "Sparsified SGD with memory", NeurIPS 2018; scaled: Wangni et al., NeurIPS
        2018.
    """

    ratio: float
    scaled: bool = False
    name = "randomk"

    @property
    def contract(self) -> Contract:
        """A contraction as they are, unbiased if scaled."""
        return SCALED if self.scaled else AS_THEY_ARE

    def message(self, flat: Tensor, rng: Rng | None = None) -> Masked:
        """Select the subset that the shared stream draws."""
        stream = needs_rng(self, rng).shared
        indices = stream.subset(kept_count(flat.numel(), self.ratio), flat.numel(), flat.device)
        values = flat[indices]
        if self.scaled:
            values = times(values, flat.numel() / max(values.numel(), 1))
        return Masked(Dense(values), flat.numel(), stream, drawn=indices)
