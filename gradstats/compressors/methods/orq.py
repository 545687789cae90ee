from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.checks import check_choice
from gradstats.compressors.contracts import Contract
from gradstats.compressors.quantizing import (
    bucket_of,
    check_bucket,
    coded_bits,
    in_buckets,
    own_levels,
    within_float32,
)
from gradstats.compressors.short_forms import Stateless, needs_rng
from gradstats.payloads.quantized import Coded
from gradstats.rng import Rng

LEVELS = (3, 5, 9, 17)


@dataclass(frozen=True)
class ORQ(Stateless):
    r"""Stochastic rounding to levels of the bucket's own, placed for little variance; unbiased.

    The outer levels are the least and the largest element. Between two, l < h, the next is placed
    where moving it changes no variance,

    .. math:: \sum_{l \le v < b} (v - l) = \sum_{b \le v \le h} (h - v),

    which gives its rank among the elements in closed form; halving goes on until all are placed.

    Args:
        levels: 3, 5, 9 or 17.
        bucket: B, 0 for the whole vector.

    References:
        Xu et al., "Optimal gradient quantization condition for communication-efficient distributed
        training", 2020.
    """

    levels: int = 9
    bucket: int = 2048
    name = "orq"
    contract = Contract(
        "all_gather",
        bits=coded_bits("d log₂ L + 32 L d/B"),
        unbiased=True,
        random=True,
        host_reads=0,
        fixed_length=True,
    )

    def __post_init__(self) -> None:
        check_choice("levels", self.levels, LEVELS)
        check_bucket(self.bucket)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Place levels, then round."""
        flat = within_float32(flat)
        bucket = bucket_of(self.bucket, flat.numel())
        uniform = needs_rng(self, rng).own.uniform(flat.numel(), flat.device)
        if not flat.numel():
            return own_levels(flat, flat, flat.new_zeros(0, self.levels), bucket)
        rows = in_buckets(flat.double(), bucket)
        rows[-1, flat.numel() - len(rows) * bucket + bucket :] = flat[
            -1
        ]  # repeat the last element as padding
        levels = self._placed(rows.sort(1).values).to(torch.float32).double()
        levels = torch.where(rows.isfinite().all(1, keepdim=True), levels, torch.nan)
        # float32 levels must still enclose the elements
        below = (torch.searchsorted(levels, rows, right=True) - 1).clamp(0, self.levels - 2)
        low, high = levels.gather(1, below), levels.gather(1, below + 1)
        share = ((rows - low) / (high - low)).nan_to_num(0.0)
        up = in_buckets(uniform, bucket) < share
        symbols = (below + up).view(-1)[: flat.numel()]
        return own_levels(flat, symbols, levels, bucket, trusted=True)

    def _placed(self, rising: Tensor) -> Tensor:
        """Levels of buckets whose elements rise, `[buckets, L]`."""
        sums = torch.nn.functional.pad(rising.cumsum(1), (1, 0))
        size = rising.shape[1]
        ranks = [torch.zeros_like(rising[:, 0]).long(), torch.full_like(rising[:, 0], size).long()]
        levels = [rising[:, 0], rising[:, -1]]
        while len(levels) < self.levels:
            for i in range(len(levels) - 1, 0, -1):
                rank = _middle(sums, ranks[i - 1], ranks[i], levels[i - 1], levels[i])
                index = rank.clamp(max=size - 1)[:, None]
                ranks.insert(i, rank)
                levels.insert(i, rising.gather(1, index)[:, 0])
        return torch.stack(levels, 1)


def _middle(sums: Tensor, first: Tensor, last: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The rank j in [first, last] with (j - first) low + (last - j) high = the sum between."""
    between = (sums.gather(1, last[:, None]) - sums.gather(1, first[:, None]))[:, 0]
    rank = (last * high - first * low - between) / (high - low)
    rank = rank.nan_to_num(0.0).round().long()
    return torch.maximum(torch.minimum(rank, last), first)
