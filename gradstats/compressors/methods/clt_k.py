from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.contracts import SPARSIFIER
from gradstats.compressors.methods.exact_threshold import ExactThreshold
from gradstats.compressors.rounds import AllReduce, Broadcast, Collective, State, Step
from gradstats.compressors.short_forms import Stateless, needs_rng
from gradstats.payloads.base import Constant
from gradstats.payloads.sparse import Sparse
from gradstats.rng import Rng


@dataclass(frozen=True)
class CLTK(Stateless):
    """Cyclic local Top-k: the workers take turns to choose the indices for all.

    In step t worker t mod n broadcasts the indices of its k largest magnitudes; an all-reduce
    averages the values of all workers at these indices. So the update has k elements for any n,
    whereas Top-k per worker has up to n k. The loss depends on how alike the workers' gradients
    are: nothing is promised except for the leader, who is the only worker of a replay.

    Args:
        ratio: k/d, in (0, 1].

    References:
        Chen et al., "ScaleCom: Scalable sparsified gradient compression for
        communication-efficient distributed training", NeurIPS 2020. Its memory is `lowpass`.
    """

    ratio: float
    name = "clt-k"
    contract = replace(SPARSIFIER, collective="all_reduce", rounds=2, random=True, host_reads=2)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """Select the k largest, as the leader does."""
        needs_rng(self, rng)
        return ExactThreshold(self.ratio).message(flat)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Exchange indices, then values; the memory counts this worker's values as sent."""
        rng = needs_rng(self, rng)
        leader = rng.step % rng.workers
        flat = self.flattened(grad)
        chosen: Sparse | None = None
        if rng.worker == leader:
            largest = ExactThreshold(self.ratio).message(flat)
            one = Constant(flat.new_ones(1), largest.count)
            chosen = largest.with_kept(one)  # the indices only
        chosen = yield Broadcast(chosen, leader)
        assert chosen is not None
        sent = Sparse.at(flat, chosen.indices)
        mean = yield AllReduce(sent.values, "mean")
        update = torch.zeros_like(flat)
        update[sent.indices] = mean
        return Step(update.view(grad.shape), sent, state)
