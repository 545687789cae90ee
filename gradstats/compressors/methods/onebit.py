from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.quantizing import (
    bucket_of,
    check_bucket,
    coded_bits,
    in_buckets,
    own_levels,
    within_float32,
)
from gradstats.compressors.short_forms import Stateless
from gradstats.payloads.quantized import Coded
from gradstats.rng import Rng


@dataclass(frozen=True)
class OneBit(Stateless):
    r"""The mean of the negative elements of a bucket, or that of the others: 1 bit.

    A projection: :math:`\|x - C(x)\|^2 = \|x\|^2 - \|C(x)\|^2 \le (1 - 1/B) \|x\|^2`.

    Args:
        bucket: B, 0 for the whole vector.

    References:
        Seide et al., "1-bit stochastic gradient descent", Interspeech 2014.
    """

    bucket: int = 0
    name = "onebit"
    contract = Contract(
        "all_gather",
        delta=Bound("1/B", lambda payload: 1 / payload.bucket),
        bits=coded_bits("d + 64 d/B"),
        wants_feedback=True,
        host_reads=0,
        fixed_length=True,
    )

    def __post_init__(self) -> None:
        check_bucket(self.bucket)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Split at 0."""
        flat = within_float32(flat)
        bucket = bucket_of(self.bucket, flat.numel())
        return two_means(flat, flat.new_zeros(-(-flat.numel() // bucket)), bucket)


@dataclass(frozen=True)
class BinGrad(Stateless):
    r"""The mean of the elements below the mean of a bucket, or that of the others: BinGrad-b.

    A projection, as 1-bit SGD: :math:`\|x - C(x)\|^2 = \|x\|^2 - \|C(x)\|^2`. The partially biased
    variant is not implemented.

    Args:
        bucket: B, 0 for the whole vector.

    References:
        Xu et al., "Optimal gradient quantization condition for communication-efficient distributed
        training", 2020.
    """

    bucket: int = 512
    name = "bingrad"
    contract = Contract(
        "all_gather",
        delta=Bound("0", lambda payload: 0.0),
        bits=coded_bits("d + 64 d/B"),
        wants_feedback=True,
        host_reads=0,
        fixed_length=True,
    )

    def __post_init__(self) -> None:
        check_bucket(self.bucket)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Split at the mean."""
        flat = within_float32(flat)
        bucket = bucket_of(self.bucket, flat.numel())
        rows, filled = _rows(flat, bucket)
        return two_means(flat, rows.sum(1) / filled.sum(1), bucket)


def two_means(flat: Tensor, split: Tensor, bucket: int) -> Coded:
    """Encode each element as the mean of its side of the bucket's split."""
    rows, filled = _rows(flat, bucket)
    above = ~(rows < split.double()[:, None])
    means = [
        (rows * side).sum(1) / side.sum(1).clamp(min=1)
        for side in (~above & filled, above & filled)
    ]
    symbols = above.view(-1)[: flat.numel()].to(torch.uint8)
    return own_levels(flat, symbols, torch.stack(means, 1), bucket, trusted=True)


def _rows(flat: Tensor, bucket: int) -> tuple[Tensor, Tensor]:
    """Buckets in float64, and a mask of the elements that are no padding."""
    return in_buckets(flat.double(), bucket), in_buckets(torch.ones_like(flat) > 0, bucket)
