from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.contracts import Bound, Contract, index_bits
from gradstats.compressors.methods.sign import ScaledSign
from gradstats.compressors.methods.topk import TopK
from gradstats.compressors.short_forms import Stateless
from gradstats.compressors.wrappers.pipe import Pipe
from gradstats.kernels.ranges import from_unit, in_range
from gradstats.payloads.base import Constant
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import kept_count
from gradstats.rng import Rng


def stc(ratio: float) -> Pipe:
    """Sparse ternary compression: Top-k, of which the signs and the mean magnitude are sent.

    ‖x - C(x)‖² = ‖x‖² - ‖T_k x‖₁²/k.

    Args:
        ratio: k/d, in (0, 1].

    References:
        Sattler et al., "Robust and communication-efficient federated learning from non-iid data",
        2019.
    """
    return Pipe((TopK(ratio), ScaledSign()))


@dataclass(frozen=True)
class SBC(Stateless):
    """Sparse binary compression: the k largest or the k least values, all as their mean.

    Of the two the one with the larger mean magnitude is sent: indices, and one number.

    Args:
        ratio: k/d, in (0, 1].

    References:
        Sattler et al., "Sparse binary compression", IJCNN 2019.
    """

    ratio: float
    name = "sbc"
    contract = Contract(
        "all_gather",
        bits=Bound("index", lambda payload: index_bits(payload)),
        wants_feedback=True,
        host_reads=2,
    )

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """The k of one sign."""
        flat, unit = in_range(flat)
        k = kept_count(flat.numel(), self.ratio)
        positive, negative = flat.topk(k), (-flat).topk(k)
        up, down = positive.values.mean(), negative.values.mean()
        mean = torch.where(up < down, -down, up)
        indices = torch.where(up < down, negative.indices, positive.indices).sort().values
        value = from_unit(mean.reshape(1).to(torch.float32), unit)
        return Sparse(Constant(value, k), flat.numel(), indices)
