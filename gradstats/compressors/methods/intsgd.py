from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.checks import check_whole
from gradstats.compressors.contracts import Contract
from gradstats.compressors.rounds import AllReduce, Collective, State, Step
from gradstats.compressors.short_forms import Joint, needs_rng
from gradstats.compressors.states import Mean, first_state
from gradstats.kernels import coding
from gradstats.kernels.ranges import saturated
from gradstats.payloads.base import Payload
from gradstats.payloads.codebooks import Uniform
from gradstats.payloads.quantized import Coded
from gradstats.payloads.symbol_codes import Packed
from gradstats.rng import Rng

FLOAT32 = torch.finfo(torch.float32)


@dataclass(frozen=True)
class IntSGD(Joint):
    r"""Rounded at random to multiples of a step that the last updates set; integers are summed.

    .. math:: \hat g = \frac{1}{n \alpha} \sum_w \operatorname{round}(\alpha g_w), \quad
              \alpha = \frac{1}{\sqrt{2 n r}}, \quad
              r_t = \beta r_{t-1} + (1 - \beta)\frac{\|\hat g_t\|^2}{d}

    All workers know the updates, so no scale is exchanged. The paper's r is d times this one, of
    the steps of the weights, η ĝ, and has η² above it too: the two are one where η is constant.
    The first step is exact. Integers beyond ±(2^(bits - 1) - 1)/n are cut off, so that the sums
    have `bits` bits; within that range it is unbiased. One more integer counts the workers that
    have a NaN or inf, of which all then know.

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
    contract = Contract("all_reduce", random=True, has_memory=True, host_reads=1)
    resharded = first_state

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 2, 16)
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must lie in [0, 1), got {self.beta!r}")

    def init(self, grad: Tensor) -> Mean:
        """r, 0 before the first update."""
        return Mean()

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Exact at first, then one sum of integers."""
        rng = needs_rng(self, rng)
        if state:
            mean, sent = yield from self._rounded(grad, state, rng)
        else:
            first = yield from self.dense(grad, state)
            mean, sent = first.update.reshape(-1), first.sent
        square = float(mean.double().square().sum()) / max(mean.numel(), 1)
        after = self.beta * state + (1 - self.beta) * square if state else square
        after = Mean(after) if math.isfinite(after) else state
        return Step(saturated(mean, grad.dtype).view(grad.shape), sent, after)

    def _rounded(
        self, grad: Tensor, r: float, rng: Rng
    ) -> Generator[Collective, Any, tuple[Tensor, Payload]]:
        flat = self.flattened(grad)
        s = max(1, ((1 << (self.bits - 1)) - 1) // rng.workers)
        length = min(max(s * math.sqrt(2 * rng.workers * r), FLOAT32.tiny), FLOAT32.max)
        broken = ~flat.isfinite().all().reshape(1)
        scales = torch.where(broken, torch.nan, length).float()  # of s steps
        levels = Uniform(s).levels(flat.device)
        symbols = coding.to_symbols(
            flat, scales, flat.numel(), levels, rounding="stochastic", key=rng.own.key
        )
        counted = torch.cat([symbols, broken.to(symbols.dtype)])
        means = yield AllReduce(counted, "mean", levels=2 * s + 1)
        mean, breakdowns = means[:-1], means[-1:]
        packed = Packed(coding.pack(symbols, 2 * s + 1, trusted=True))
        sent = Coded(packed, flat.numel(), Uniform(s), scales, flat.numel())
        scale = torch.where(breakdowns > 0, torch.nan, length).float()
        return (mean - s) * (scale / s), sent
