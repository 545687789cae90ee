from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.alphabets import Uniform
from gradstats.compressors.base import (
    AllReduce,
    Collective,
    Compressor,
    Contract,
    State,
    Step,
    alone,
    needs_rng,
)
from gradstats.compressors.coded import Coded
from gradstats.compressors.coders import Packed
from gradstats.compressors.low_rank import dense
from gradstats.compressors.payloads import Payload
from gradstats.compressors.rng import Rng
from gradstats.kernels import codes


@dataclass(frozen=True)
class IntSGD(Compressor):
    r"""Rounded at random to multiples of a step that the last updates set; integers are summed.

    .. math:: \hat g = \frac{1}{n \alpha} \sum_w \operatorname{round}(\alpha g_w), \quad
              \alpha = \sqrt{\frac{d}{2 n r}}, \quad
              r_t = \beta r_{t-1} + (1 - \beta)\|\hat g_t\|^2

    All workers know the updates, so no scale is exchanged. The paper's r is of the steps of the
    weights, η ĝ, and has η² above it too: the two are one where η is constant. The first step is
    exact. Integers beyond ±(2^(bits - 1) - 1)/n are cut off, so that the sums have `bits` bits;
    only up to there it is unbiased.

    Args:
        bits: of a sum, 2 to 16.
        beta: β, in [0, 1).

    References:
        Mishchenko et al., "IntSGD: Adaptive floatless compression of stochastic gradients", ICLR
        2022.
    """

    bits: int = 8
    beta: float = 0.9
    name = "intsgd"
    contract = Contract("all_reduce", random=True, has_memory=True)

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be a whole number from 2 to 16, got {self.bits!r}")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must lie in [0, 1), got {self.beta!r}")

    def init(self, grad: Tensor) -> float:
        """r, 0 before the first update."""
        return 0.0

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """The exchange of one worker."""
        step = alone(self.exchange(grad, state, rng))
        return step.sent, step.state

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Exact at first, then one sum of integers."""
        rng = needs_rng(self, rng)
        if state:
            mean, sent = yield from self._rounded(grad, state, rng)
        else:
            first = yield from dense(grad, state)
            mean, sent = first.update.reshape(-1), first.sent
        square = float(mean.double().square().sum())
        after = self.beta * state + (1 - self.beta) * square if state else square
        after = after if math.isfinite(after) else state
        return Step(mean.to(grad.dtype).view(grad.shape), sent, after)

    def _rounded(
        self, grad: Tensor, r: float, rng: Rng
    ) -> Generator[Collective, Any, tuple[Tensor, Payload]]:
        flat = grad.detach().reshape(-1).contiguous()
        s = max(1, ((1 << (self.bits - 1)) - 1) // rng.workers)
        length = s / math.sqrt(flat.numel() / (2 * rng.workers * r))  # of s steps
        finite = torch.where(flat.isfinite().all(), length, torch.nan)
        scales = finite.float().reshape(1)
        levels = Uniform(s).levels().to(flat.device)
        symbols = codes.to_symbols(
            flat, scales, flat.numel(), levels, rounding="stochastic", key=rng.own.key
        )
        mean = yield AllReduce(symbols, "mean", levels=2 * s + 1)
        packed = Packed(codes.pack(symbols, 2 * s + 1))
        sent = Coded(packed, flat.numel(), Uniform(s), scales, flat.numel())
        return (mean - s) * (scales / s), sent
