from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gradstats.compressors.contracts import SPARSIFIER
from gradstats.compressors.short_forms import Stateless
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import kept_count
from gradstats.rng import Rng


@dataclass(frozen=True)
class TopK(Stateless):
    """The k largest magnitudes, exactly, by `torch.topk`.

    ‖x - C(x)‖² <= (1 - k/d)‖x‖², tight where all magnitudes are equal.

    Args:
        ratio: k/d, in (0, 1].

    References:
        Aji and Heafield, EMNLP 2017; Stich et al., NeurIPS 2018.
    """

    ratio: float
    name = "topk"
    contract = replace(SPARSIFIER, host_reads=1)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """Select exactly k elements."""
        k = kept_count(flat.numel(), self.ratio)
        return Sparse.at(flat, flat.abs().topk(k, sorted=False).indices)
