from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from gradstats import kernels
from gradstats.compressors.base import Compressor
from gradstats.compressors.checks import check_choice
from gradstats.compressors.contracts import SPARSIFIER
from gradstats.compressors.rounds import Exchanges, State, Step, Terms, several
from gradstats.compressors.states import first_state
from gradstats.kernels.forms import in_numba
from gradstats.kernels.ranges import in_range_of_squares
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import kept_count
from gradstats.rng import Rng
from gradstats.summary import Summary, summarize, summarize_segments
from gradstats.thresholds import (
    FIRST_RATIO,
    Rule,
    Stages,
    check_settings,
    exponential_threshold,
    sidco_threshold,
)

SMALL = 1 << 14  # elements, up to which gradients are copied together to be summarised at once


@dataclass(frozen=True)
class SIDCo(Compressor):
    """The elements above a threshold from a fitted distribution, in adaptive stages.

    The state is a `Stages`: the number of stages follows the k̂/k that was achieved.

    Args:
        ratio: k/d, in (0, 1].
        variant: "e", "gp" or "p"; part of the name in the grammar.
        stages: a fixed number of stages; 0 lets them adapt, as published.
        rule: the stage-adaptation rule, see `gradstats.thresholds.Stages`.
        first_ratio: the target ratio of the first of several stages.

    References:
        Abdelmoniem et al., MLSys 2021.
    """

    ratio: float
    variant: str = field(default="e", metadata={"in_name": True})
    stages: int = 0
    rule: Rule = "step"
    first_ratio: float = FIRST_RATIO
    contract = replace(SPARSIFIER, has_memory=True, host_reads=5)
    batches = True
    resharded = first_state

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.stages, int) or self.stages < 0:
            raise ValueError(f"stages must be a whole number, 0 to adapt, got {self.stages!r}")
        check_settings(self.variant, self.stages or 1, self.first_ratio)
        check_choice("rule", self.rule, get_args(Rule))

    @property
    def name(self) -> str:
        """Name in the grammar: `sidco-` and the variant."""
        return f"sidco-{self.variant}"

    def init(self, grad: Tensor) -> Stages:
        """Start with one stage and no history."""
        return Stages(count=self.stages or 1, rule=self.rule)

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Sparse, State]:
        """Fit on the Summary, select, and let the stages adapt to what was selected."""
        return self._encoded(self.flattened(grad), state)

    def exchange_all(
        self,
        grads: Sequence[Tensor],
        states: Sequence[State],
        rngs: Sequence[Rng | None],
        terms: Sequence[Terms] = (),
    ) -> Exchanges[list[Step]]:
        """See `Compressor.exchange_all`; small gradients are summarised in one call."""
        for total, pair in zip(grads, terms, strict=False):
            if pair:
                torch.add(*pair, out=total)
        flats = [self.flattened(grad) for grad in grads]
        each = zip(grads, flats, states, self._summaries(flats, states), strict=True)
        exchanges = []
        for grad, flat, state, summary in each:
            payload, later = self._encoded(flat, state, summary)
            exchanges.append(self._delivered(payload, grad, later))
        return (yield from several(exchanges))

    def _encoded(
        self, flat: Tensor, state: Stages, summary: Summary | None = None
    ) -> tuple[Sparse, Stages]:
        """As `encode`, of a vector whose Summary may be known."""
        payload = Sparse.above(flat, self._threshold(flat, state.count, summary))
        if self.stages or not flat.numel():
            return payload, state
        khat_over_k = payload.count / kept_count(flat.numel(), self.ratio)
        return payload, state.update(khat_over_k, target_ratio=self.ratio)

    def _summaries(
        self, flats: Sequence[Tensor], states: Sequence[Stages]
    ) -> list[Summary | None]:
        """The Summaries of small vectors that need one; None for the others."""
        summaries: list[Summary | None] = [None] * len(flats)
        small = [
            index
            for index, (flat, state) in enumerate(zip(flats, states, strict=True))
            if in_numba(flat) and flat.dtype == torch.float32 and len(flat) <= SMALL
            if not self._reads_sum(flat, state.count)
        ]
        if small:
            ends = np.cumsum([0, *(len(flats[index]) for index in small)])
            together = summarize_segments(torch.cat([flats[index] for index in small]), ends)
            for index, summary in zip(small, together, strict=True):
                summaries[index] = summary
        return summaries

    def _reads_sum(self, flat: Tensor, stages: int) -> bool:
        """Whether the threshold needs no more than the sum of the magnitudes."""
        return self.variant == "e" and stages == 1 and flat.dtype == torch.float32

    def _threshold(self, flat: Tensor, stages: int, summary: Summary | None = None) -> float:
        magnitudes = kernels.sum_magnitudes(flat) if self._reads_sum(flat, stages) else None
        if magnitudes is not None:
            nonzero, total = magnitudes
            return exponential_threshold(total, nonzero, flat.numel(), self.ratio)
        unit = 1.0
        if summary is None:
            scaled, unit = in_range_of_squares(flat)
            summary = summarize(scaled)
        threshold = sidco_threshold(
            summary,
            self.ratio,
            variant=self.variant,
            stages=stages,
            first_ratio=self.first_ratio,
        )
        return unit * float(threshold)
