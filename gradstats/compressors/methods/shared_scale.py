"""Quantisers whose workers agree on a scale first, so that their integers can be summed."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.contracts import Contract
from gradstats.compressors.methods.qsgd import NORMS, QSGD
from gradstats.compressors.methods.terngrad import TernGrad, clipped
from gradstats.compressors.quantizing import bucket_of, in_buckets, within_float32
from gradstats.compressors.rounds import AllReduce, Collective, State, Step
from gradstats.compressors.short_forms import Joint, needs_rng
from gradstats.kernels import coding
from gradstats.kernels.ranges import saturated
from gradstats.payloads.codebooks import Uniform
from gradstats.payloads.quantized import Coded
from gradstats.payloads.symbol_codes import Packed
from gradstats.rng import Rng


def summed(
    flat: Tensor, norms: Tensor, s: int, bucket: int, rng: Rng
) -> Generator[Collective, Any, tuple[Tensor, Coded]]:
    """Round to multiples of the largest norm over s, and sum the multiples.

    Args:
        flat: this worker's x, `[d]`.
        norms: of its buckets, float32 `[⌈d/B⌉]`.
        s: levels on each side of 0.
        bucket: B.
        rng: its own stream rounds.

    Returns:
        The mean over workers, `[d]`, and what this worker sent.
    """
    # a maximum over workers need not propagate NaN, infinity it does
    scales = yield AllReduce(norms.nan_to_num(nan=torch.inf, posinf=torch.inf), "max")
    levels = Uniform(s).levels(flat.device)
    symbols = coding.to_symbols(
        flat, scales, bucket, levels, rounding="stochastic", key=rng.own.key
    )
    mean = yield AllReduce(symbols, "mean", levels=2 * s + 1)
    packed = Packed(coding.pack(symbols, 2 * s + 1, trusted=True))
    sent = Coded(packed, flat.numel(), Uniform(s), scales, bucket)
    steps = in_buckets((mean - s) / s, bucket) * scales[:, None]
    return steps.reshape(-1)[: flat.numel()], sent


@dataclass(frozen=True)
class SharedQSGD(Joint, QSGD):
    r"""QSGD with the largest norm over all workers, so that an all-reduce sums the integers.

    .. math:: N = \max_w N_w, \quad \hat g = \frac{N}{s n} \sum_w z_w, \quad
              z_w \in \{-s, \ldots, s\}

    Unbiased, but ω is that of QSGD times (N/N_w)²: nothing is promised of one worker alone. Sums
    of n workers travel in base 2 n s + 1.

    Args:
        bits: of a symbol, 2 or more: s = 2^(bits - 1) - 1.
        norm: N_w, "max" or "l2".
        bucket: B, 0 for the whole vector.
        steps: s, where it is not to follow from bits.

    References:
        Vineeth et al., "Unbiased single-scale and multi-scale quantizers for distributed
        optimization" (QSGD-MaxNorm), 2021.
    """

    norm: str = NORMS[1]
    name = "qsgd-shared"

    @property
    def contract(self) -> Contract:
        """Unbiased; two rounds."""
        return replace(super().contract, collective="all_reduce", rounds=2)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Exchange norms, then integers."""
        flat = within_float32(self.flattened(grad))
        bucket = bucket_of(self.bucket, flat.numel())
        norms = coding.bucket_norms(flat, bucket, self.norm)
        mean, sent = yield from summed(flat, norms, self.s, bucket, needs_rng(self, rng))
        return Step(saturated(mean, grad.dtype).view(grad.shape), sent, state)


@dataclass(frozen=True)
class SharedTernGrad(Joint, TernGrad):
    r"""TernGrad with the largest maximum over all workers: an all-reduce sums -1, 0 and 1.

    Sums of n workers travel in base 2 n + 1.

    Args:
        clip: to so many standard deviations of this worker's gradient; 0 for no clipping.
        bucket: B, 0 for the whole vector.

    References:
        Wen et al., "TernGrad", NeurIPS 2017, section 3 (scaler sharing).
    """

    name = "terngrad-shared"

    @property
    def contract(self) -> Contract:
        """Unbiased without clipping; two rounds."""
        return replace(super().contract, collective="all_reduce", rounds=2)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Exchange maxima, then integers."""
        flat = clipped(within_float32(self.flattened(grad)), self.clip)
        bucket = bucket_of(self.bucket, flat.numel())
        largest = coding.bucket_norms(flat, bucket, "max")
        mean, sent = yield from summed(flat, largest, 1, bucket, needs_rng(self, rng))
        return Step(saturated(mean, grad.dtype).view(grad.shape), sent, state)
