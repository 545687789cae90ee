from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.checks import check_whole
from gradstats.compressors.contracts import Contract
from gradstats.compressors.quantizing import bucket_of, in_buckets, quantized
from gradstats.compressors.rounds import State
from gradstats.compressors.states import own_share
from gradstats.kernels.ranges import added, from_unit, in_range, saturated
from gradstats.payloads.codebooks import Sign
from gradstats.payloads.sparse import Sparse
from gradstats.rng import Rng


@dataclass(frozen=True)
class AdaComp(Compressor):
    r"""Elements that would exceed the largest of their bin if the gradient came again.

    All are sent with one magnitude.

    With r the residue of the steps before and G = r + g, element i is sent where
    :math:`|G_i + g_i| \ge \max_{bin} |G|`, as its sign times the mean over bins of these maxima.
    The method needs gradient and residue apart, so that it keeps its own: error feedback around it
    would be a second one.

    Args:
        bin: elements of a bin; 50 for convolutions and 500 for others in the paper.

    References:
        Chen et al., "AdaComp", AAAI 2018.
    """

    bin: int = 500
    name = "adacomp"
    contract = Contract("all_gather", has_memory=True, host_reads=3)

    def __post_init__(self) -> None:
        check_whole("bin", self.bin, 1)

    def init(self, grad: Tensor) -> Tensor:
        """Start with no residue."""
        return grad.detach().new_zeros(grad.numel())

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Tensor:
        """Add up the residues."""
        return own_share(states, worker, workers)

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Sparse, State]:
        """Select by bin, send signs, keep the rest."""
        flat = self.flattened(grad)
        compensated = added(state, flat)
        size = bucket_of(self.bin, flat.numel())
        largest = in_buckets(compensated.abs(), size).amax(1)
        expected = in_buckets((compensated + flat).abs(), size)
        chosen = ~(expected < largest[:, None]) & (largest[:, None] != 0)
        indices = chosen.view(-1)[: flat.numel()].nonzero().squeeze(1)
        maxima, unit = in_range(largest)
        scale = saturated(from_unit(maxima.mean().reshape(1), unit), torch.float32)
        kept = quantized(
            compensated[indices], Sign(), scale[: indices.numel()], max(indices.numel(), 1)
        )
        payload = Sparse(kept, flat.numel(), indices)
        payload.remove_from(compensated)
        return payload, compensated
