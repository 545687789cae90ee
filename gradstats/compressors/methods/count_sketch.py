from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.checks import check_choice, check_whole
from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.rounds import AllReduce, Collective, State, Step
from gradstats.compressors.short_forms import Stateless, needs_rng
from gradstats.kernels.ranges import from_unit, in_range, saturated
from gradstats.payloads.sketch import ESTIMATES, MOST_ROWS, Sketch, hashes
from gradstats.rng import Rng


@dataclass(frozen=True)
class CountSketch(Stateless):
    r"""Sums of randomly signed elements in few buckets, in several rows; workers' tables add up.

    Row j of R has C buckets, :math:`T_{j,b} = \sum_{i: h_j(i) = b} s_j(i) x_i`, and
    :math:`s_j(i) T_{j,h_j(i)}` estimates x_i without bias. The mean over the rows has
    E‖x̂ - x‖² = (d - 1)/(C R) ‖x‖² exactly; their median suffers less from a few large elements.

    Args:
        share: R C/d, in (0, 1].
        rows: R, odd for a median.
        estimate: "median" or "mean", over the rows.

    References:
        Charikar et al., "Finding frequent items in data streams", 2002; for gradients Ivkin et
        al., "Communication-efficient distributed SGD with sketching", NeurIPS 2019.
    """

    share: float = 0.1
    rows: int = 5
    estimate: str = "median"
    name = "count-sketch"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share!r}")
        check_whole("rows", self.rows, 1, MOST_ROWS)
        check_choice("estimate", self.estimate, ESTIMATES)
        if self.estimate == "median" and self.rows % 2 == 0:
            raise ValueError(f"rows must be odd for a median, got {self.rows!r}")

    @property
    def contract(self) -> Contract:
        """Unbiased; how far off is known for the mean."""
        omega = Bound("(d - 1)/RC", lambda payload: payload.numel / payload.table.numel())
        return Contract(
            "all_reduce",
            omega=omega if self.estimate == "mean" else None,
            bits=Bound("32 R C", lambda payload: 8.0 * payload.table.nbytes),
            unbiased=True,
            random=True,
            host_reads=2,
        )

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sketch:
        """Under hashes that all workers share."""
        key = needs_rng(self, rng).shared.key
        flat, unit = in_range(flat if flat.dtype == torch.float64 else flat.float())
        columns = max(1, round(self.share * flat.numel() / self.rows))
        table = flat.new_zeros(self.rows, columns)
        indices = torch.arange(flat.numel(), device=flat.device)
        for row, (bucket, sign) in enumerate(hashes(key, table.shape, indices)):
            table[row].index_add_(0, bucket, flat * sign)
        return Sketch(from_unit(table, unit), flat.numel(), key, self.estimate)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """The mean of the tables; this worker's memory counts what it decodes to as sent."""
        sketch = self.message(self.flattened(grad), rng)
        sent = replace(sketch, table=(yield AllReduce(sketch.table, "mean")))
        return Step(saturated(sent.decode(), grad.dtype).view(grad.shape), sent, state)
