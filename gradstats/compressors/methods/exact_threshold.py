from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gradstats import kernels
from gradstats.compressors.contracts import SPARSIFIER
from gradstats.compressors.rounds import State
from gradstats.compressors.short_forms import Stateless
from gradstats.payloads.base import Dense
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import kept_count
from gradstats.rng import Rng


@dataclass(frozen=True)
class ExactThreshold(Stateless):
    """The k largest magnitudes, exactly; on a CPU at the cost of a threshold method.

    A sample gives a magnitude that somewhat more than k elements reach; one pass compacts those,
    and only they are ranked. Where the sample misleads, or one value is frequent, passes that
    count 16 bits of the magnitudes each find the k-th instead. k̂ = k on every input; ties are
    filled in the order of the elements.

    Args:
        ratio: k/d, in (0, 1].

    References:
        Ours.
    """

    ratio: float
    name = "exact-threshold"
    contract = replace(SPARSIFIER, host_reads=2)  # triton reads a count

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """Select exactly k elements."""
        indices, values = kernels.largest(flat, kept_count(flat.numel(), self.ratio))
        return Sparse(Dense(values), flat.numel(), indices)

    def encode_sum(
        self, terms: tuple[Tensor, Tensor], total: Tensor, state: State, rng: Rng | None = None
    ) -> tuple[Sparse, State]:
        """Select exactly k elements of a sum while it is written."""
        first, second, flat = (each.view(-1) for each in (*terms, total))
        k = kept_count(flat.numel(), self.ratio)
        indices, values = kernels.largest_of_sum(first, second, flat, k)
        return Sparse(Dense(values), flat.numel(), indices), state
