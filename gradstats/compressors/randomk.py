from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors.base import Compressor, Contract, State, kept_share, needs_rng
from gradstats.compressors.payloads import Masked
from gradstats.compressors.rng import Rng
from gradstats.summary import kept_count


@dataclass(frozen=True)
class RandomK(Compressor):
    """k random elements, the same on every worker, so that their values can be all-reduced.

    Values are not rescaled: E‖x - C(x)‖² = (1 - k/d)‖x‖² exactly.

    Args:
        ratio: k/d, in (0, 1].

    References:
        Stich et al., "Sparsified SGD with memory", NeurIPS 2018.
    """

    ratio: float
    name = "randomk"
    contract = Contract(
        "all_reduce", delta=kept_share, in_expectation=True, wants_feedback=True, random=True
    )

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Masked, State]:
        """The subset that the shared stream draws."""
        flat = grad.detach().reshape(-1)
        stream = needs_rng(self, rng).shared
        indices = stream.subset(kept_count(flat.numel(), self.ratio), flat.numel(), flat.device)
        return Masked(flat[indices], flat.numel(), stream, drawn=indices), state
