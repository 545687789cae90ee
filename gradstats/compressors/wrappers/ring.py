"""A ring that encodes the sum anew at each hop, and a gather of the encoded sums."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import Contract
from gradstats.compressors.rounds import AllGather, AllToAll, Collective, State, Step
from gradstats.compressors.short_forms import Joint, needs_rng
from gradstats.compressors.wrappers.chunks import check_inside, chunks, named
from gradstats.kernels.ranges import saturated
from gradstats.payloads.base import Dense, Payload
from gradstats.rng import Rng


@dataclass(frozen=True)
class Ring(Joint):
    r"""Averages gradients on a ring that encodes the sum anew at each of its n-1 hops.

    Chunk r starts at worker r+1 and travels once around the ring to its owner r. Every worker
    adds its share and encodes what it passes on; the owner encodes the mean for all:

    .. math:: p_1 = \frac{g_{r+1}[r]}{n}, \quad
              p_{k+1} = D(C(p_k)) + \frac{g_{r+k+1}[r]}{n}, \quad \hat g[r] = D(C(p_n)).

    One worker sends 2 (n-1)/n c bytes, as in `twoshot(c)`, in n-1 hops that wait for each other.

    The squared error is (n+1)/2 times that of one code of each gradient, for workers whose errors
    are uncorrelated and of a small relative squared size e: 4.5 e on 8 workers, where `twoshot(c)`
    has 2e and a gather e. It grows with n because the first gradients are encoded n times.

    What a code loses counts as not delivered by the worker that encoded, so that a memory around,
    `ef(ring(c))`, keeps it there and nothing is lost.

    Args:
        compressor: a method that sends every element, and has no memory.

    References:
        Requantised ring of INTELLECT-1 (Jaghouar et al., 2024).
    """

    compressor: Compressor
    name = "ring"

    def __post_init__(self) -> None:
        check_inside(self, "compressor")
        if self.compressor.ratio_asked is not None or self.compressor.contract.has_memory:
            rule = "compressor of ring must be a method that sends every element, without a memory"
            raise ValueError(f"{rule}, got {self.compressor}; twoshot({self.compressor}) works")
        super().__post_init__()

    @property
    def contract(self) -> Contract:
        """Contract of the code, of which no bound holds for the sums."""
        contract = self.compressor.contract
        return replace(
            contract, collective="ring", delta=None, omega=None, in_expectation=False, rounds=2
        )

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Pass encoded sums around the ring, then gather the encoded means."""
        rng = needs_rng(self, rng) if self.contract.random else rng or Rng()
        flat, rank, n = self.flattened(grad), rng.worker, rng.workers
        parts = chunks(flat.numel(), n)
        sent = flat.to(torch.float64, copy=True)  # of which losses are taken
        shares = [sent[part] / n for part in parts]
        passing = shares[rank - 1]
        for hop in range(n - 1):
            payload = self._encoded(saturated(passing, grad.dtype), rng, f"hop {hop}")
            _count_lost(sent[parts[(rank - 1 - hop) % n]], passing, payload, n)
            received: list[Payload] = yield AllToAll(_to_next(payload, rank, n))
            passing = shares[(rank - 2 - hop) % n] + received[rank - 1].decode()
        payload = self._encoded(saturated(passing, grad.dtype), rng, "mean")
        _count_lost(sent[parts[rank]], passing, payload, n)
        means: list[Payload] = yield AllGather(payload)
        update = torch.cat([saturated(mean.decode(), grad.dtype) for mean in means])
        return Step(update.view(grad.shape), Dense(sent) if n > 1 else payload, state)

    def _encoded(self, vector: Tensor, rng: Rng, what: str) -> Payload:
        return self.compressor.encode(vector, self.compressor.init(vector), named(rng, what))[0]


def _count_lost(sent: Tensor, passing: Tensor, payload: Payload, workers: int) -> None:
    """Take what a code has lost of a mean from what this worker has sent, in place."""
    sent.sub_(passing - payload.decode(), alpha=workers)


def _to_next(payload: Payload, rank: int, workers: int) -> tuple[Payload | None, ...]:
    """The messages of an all-to-all in which each worker sends to the next one only."""
    following = (rank + 1) % workers
    return tuple(payload if worker == following else None for worker in range(workers))
