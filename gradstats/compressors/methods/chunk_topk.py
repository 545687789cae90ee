from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.checks import check_whole
from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.quantizing import bucket_of, in_buckets
from gradstats.compressors.short_forms import Stateless
from gradstats.kernels.ranges import in_range
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import kept_count
from gradstats.rng import Rng


@dataclass(frozen=True)
class ChunkTopK(Stateless):
    """The chunks of most energy, whole, as many as hold k elements.

    ‖x - C(x)‖² <= (1 - m/c)‖x‖² with m of c chunks kept.

    Args:
        ratio: k/d, in (0, 1].
        chunk: elements of a chunk.

    References:
        Sun et al., "Optimizing network performance for distributed DNN training on GPU clusters",
        2019; Han et al., "Beyond throughput and compression ratios", 2024.
    """

    ratio: float
    chunk: int = 64
    name = "chunk-topk"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("chunk", self.chunk, 1)

    @property
    def contract(self) -> Contract:
        """A contraction by the share of chunks."""

        def share(payload: Sparse) -> float:
            size = bucket_of(self.chunk, payload.numel)
            return -(-payload.count // size) / max(-(-payload.numel // size), 1)

        return Contract("all_gather", delta=Bound("m/c", share), wants_feedback=True, host_reads=3)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """Energies, then chunks."""
        size = bucket_of(self.chunk, flat.numel())
        scaled, _ = in_range(flat.double())
        energy = in_buckets(scaled, size).square().sum(1)
        most = max(1, round(kept_count(flat.numel(), self.ratio) / size))
        chunks = energy.topk(min(most, len(energy))).indices
        indices = chunks[:, None] * size + torch.arange(size, device=flat.device)
        if flat.numel() % size:
            return Sparse.at(flat, indices[indices < flat.numel()])
        return Sparse.at(flat, indices.view(-1))
