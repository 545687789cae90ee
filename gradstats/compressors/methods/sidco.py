from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from torch import Tensor

from gradstats import kernels
from gradstats.compressors.base import Compressor
from gradstats.compressors.checks import check_choice
from gradstats.compressors.contracts import SPARSIFIER
from gradstats.compressors.rounds import State
from gradstats.compressors.states import first_state
from gradstats.kernels.ranges import in_range_of_squares
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import kept_count
from gradstats.rng import Rng
from gradstats.summary.summarizing import summarize
from gradstats.thresholds import (
    FIRST_RATIO,
    Rule,
    Stages,
    check_settings,
    exponential_threshold,
    sidco_threshold,
)


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
        flat = self.flattened(grad)
        payload = Sparse.above(flat, self._threshold(flat, state.count))
        if self.stages or not flat.numel():
            return payload, state
        khat_over_k = payload.count / kept_count(flat.numel(), self.ratio)
        return payload, state.update(khat_over_k, target_ratio=self.ratio)

    def _threshold(self, flat: Tensor, stages: int) -> float:
        one_exponential = self.variant == "e" and stages == 1 and flat.dtype == torch.float32
        magnitudes = kernels.sum_magnitudes(flat) if one_exponential else None
        if magnitudes is not None:
            nonzero, total = magnitudes
            return exponential_threshold(total, nonzero, flat.numel(), self.ratio)
        scaled, unit = in_range_of_squares(flat)
        threshold = sidco_threshold(
            summarize(scaled),
            self.ratio,
            variant=self.variant,
            stages=stages,
            first_ratio=self.first_ratio,
        )
        return unit * float(threshold)
