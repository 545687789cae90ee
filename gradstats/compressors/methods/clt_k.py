from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.base import Stateless, needs_rng
from gradstats.compressors.contracts import SPARSIFIER
from gradstats.compressors.methods.exact_threshold import ExactThreshold
from gradstats.compressors.rounds import AllReduce, Broadcast, Collective, State, Step
from gradstats.payloads.base import Constant
from gradstats.payloads.sparse import Sparse, sparse
from gradstats.rng import Rng


@dataclass(frozen=True)
class CLTK(Stateless):
    """Cyclic local Top-k: the workers take turns to choose the places of all, whose values add up.

    In step t worker t mod n broadcasts the places of its k largest magnitudes; everyone sends its
    values there by an all-reduce. So the update has k elements whatever n is, where Top-k of each
    has up to n k. How much it loses goes with how alike the workers' gradients are: nothing is
    promised but for the leader, who is the one worker of a replay.

    Args:
        ratio: k/d, in (0, 1].

    References:
        Chen et al., "ScaleCom: Scalable sparsified gradient compression for
        communication-efficient distributed training", NeurIPS 2020. Its memory is `lowpass`.
    """

    ratio: float
    name = "clt-k"
    contract = replace(SPARSIFIER, collective="all_reduce", rounds=2, random=True)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """What the leader sends."""
        needs_rng(self, rng)
        return ExactThreshold(self.ratio).message(flat)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Places, then values; this worker's memory counts its own values there as sent."""
        rng = needs_rng(self, rng)
        leader = rng.step % rng.workers
        flat = self.flattened(grad)
        chosen: Sparse | None = None
        if rng.worker == leader:
            largest = ExactThreshold(self.ratio).message(flat)
            one = Constant(flat.new_ones(1), largest.count)
            chosen = largest.with_kept(one)  # places alone
        chosen = yield Broadcast(chosen, leader)
        assert chosen is not None
        sent = sparse(flat, chosen.indices)
        mean = yield AllReduce(sent.values, "mean")
        update = torch.zeros_like(flat)
        update[sent.indices] = mean
        return Step(update.view(grad.shape), sent, state)
