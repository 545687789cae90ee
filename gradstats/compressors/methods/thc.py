from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradstats.compressors.checks import check_whole
from gradstats.compressors.contracts import Contract
from gradstats.compressors.methods.eden import BLOCK, block_of
from gradstats.compressors.quantizing import coded_bits, in_buckets
from gradstats.compressors.rounds import AllReduce, Collective, State, Step
from gradstats.compressors.short_forms import Joint, needs_rng
from gradstats.kernels import coding, rotating
from gradstats.kernels.ranges import (
    from_unit,
    in_range,
    in_unit,
    largest_magnitude,
    saturated,
    unit_of,
)
from gradstats.payloads.codebooks import CLIP, Lattice
from gradstats.payloads.quantized import Coded
from gradstats.payloads.symbol_codes import Packed
from gradstats.rng import Rng

TABLES = 64  # kept on their devices
ROOT = BLOCK**0.5  # a norm over it is no larger than the largest element


@dataclass(frozen=True)
class THC(Joint):
    r"""Rotated alike on all workers, rounded to a grid, and summed as integers before decoding.

    .. math:: y_w = R g_w, \quad N = \max_w \|y_w\|, \quad
              z_w = \operatorname{round}\Big(\frac{g}{2}\Big(
              \frac{y_w \sqrt B}{c N} + 1\Big)\Big), \quad
              \hat g = R^{-1} \frac{c N}{\sqrt B} \Big(\frac{2}{g n} \sum_w z_w - 1\Big)

    in blocks of B. What lies beyond c standard deviations, one element in 32, is clipped, and
    feedback brings it later. Rounding is at random to 2^bits of the integers 0 … g, placed for
    the normal distribution; sums of n workers travel in base n g + 1.

    Args:
        bits: of a symbol.
        grid: g, at least 2^bits - 1.

    References:
        Li et al., "THC: Accelerating distributed deep learning using tensor homomorphic
        compression", NSDI 2024.
    """

    bits: int = 4
    grid: int = 30
    name = "thc"
    contract = Contract(
        "all_reduce",
        bits=coded_bits("bits · B⌈d/B⌉ + 32⌈d/B⌉"),
        wants_feedback=True,
        random=True,
        rounds=2,
        host_reads=2,
    )

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 1, 8)
        check_whole("grid", self.grid, (1 << self.bits) - 1, 255)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Exchange norms, then integers."""
        rng = needs_rng(self, rng)
        flat, unit = in_range(self.flattened(grad))
        block, turn = block_of(flat.numel()), rng.shared.key
        rotated = rotating.rotate(flat, block, turn)
        norms = from_unit(coding.bucket_norms(rotated, block, "l2") / ROOT, unit)
        # a maximum over workers need not propagate NaN, infinity it does
        largest = yield AllReduce(norms.nan_to_num(nan=torch.inf, posinf=torch.inf), "max")
        common = unit_of(largest_magnitude(largest))
        scales = in_unit(largest, common) * (ROOT * CLIP / block**0.5)
        rotated = in_unit(rotated, common / unit)
        alphabet = Lattice(self.bits, self.grid)
        symbols = coding.to_symbols(
            rotated,
            scales,
            block,
            alphabet.levels(flat.device),
            rounding="stochastic",
            key=rng.own.key,
        )
        table = _table(alphabet, flat.device)
        mean = yield AllReduce(table[symbols.long()], "mean", levels=self.grid + 1)
        levels = in_buckets((2 * mean - self.grid) / self.grid, block) * scales[:, None]
        turned = rotating.unrotate(levels.reshape(-1), flat.numel(), block, turn)
        update = saturated(from_unit(turned, common), grad.dtype)
        packed = Packed(coding.pack(symbols, 1 << self.bits, trusted=True))
        sent = Coded(packed, rotated.numel(), alphabet, scales, block)
        sent = replace(sent, numel=flat.numel(), unit=common, rotation=turn)
        return Step(update.view(grad.shape), sent, state)


@lru_cache(TABLES)
def _table(alphabet: Lattice, device: torch.device) -> Tensor:
    """The integers of the levels, int64, copied to the device once."""
    return torch.from_numpy(alphabet.integers().astype(np.int64)).to(device)
