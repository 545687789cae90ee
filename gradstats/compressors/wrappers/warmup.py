from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.checks import check_whole
from gradstats.compressors.contracts import Contract
from gradstats.compressors.rounds import Collective, State, Step
from gradstats.payloads.base import Payload
from gradstats.rng import Rng


@dataclass(frozen=True)
class WarmUp(Compressor):
    r"""A policy: starts with a high ratio, which falls exponentially to the one asked for.

    In stage e of E, each of `steps` steps, the ratio is :math:`\rho^{(e+1)/(E+1)}`, afterwards ρ:
    for ρ = 0.001 and E = 4 it is 0.25, 0.063, 0.016, 0.004 and then 0.001. State counts the steps.

    Args:
        compressor: one with a ratio; a memory goes around the policy, not into it.
        stages: E.
        steps: in each stage, such as those of an epoch.

    References:
        Lin et al., "Deep gradient compression", ICLR 2018.
    """

    compressor: Compressor
    stages: int = 4
    steps: int = 100
    name = "warmup"

    def __post_init__(self) -> None:
        self.compressor.with_ratio(1.0)  # refuses now what has no ratio
        for setting in ("stages", "steps"):
            check_whole(setting, getattr(self, setting), 1)

    @property
    def contract(self) -> Contract:
        """Contract of the compressor inside, with a memory."""
        return replace(self.compressor.contract, has_memory=True)

    @property
    def ratio_asked(self) -> float | None:
        """Target ratio after the warm-up."""
        return self.compressor.ratio_asked

    def ratio_at(self, step: int) -> float:
        """Return the ratio of a step, counted from 0.

        Example:
            >>> from gradstats.compressors import TopK
            >>> policy = WarmUp(TopK(0.001), stages=4, steps=10)
            >>> [round(policy.ratio_at(step), 3) for step in (0, 10, 20, 30, 40)]
            [0.251, 0.063, 0.016, 0.004, 0.001]
        """
        ratio: float = self.compressor.ratio_asked  # type: ignore[assignment]
        stage = step // self.steps
        return ratio ** ((stage + 1) / (self.stages + 1)) if stage < self.stages else ratio

    def init(self, grad: Tensor) -> State:
        """Start at step 0."""
        return 0, self.compressor.init(grad)

    def init_under_memory(self, grad: Tensor) -> State:
        """Start at step 0."""
        return 0, self.compressor.init_under_memory(grad)

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Encode with the ratio of this step."""
        step, inner = state
        payload, inner = self._at(step).encode(grad, inner, rng)
        return payload, (step + 1, inner)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Exchange with the ratio of this step."""
        step, inner = state
        exchanged = yield from self._at(step).exchange(grad, inner, rng)
        return replace(exchanged, state=(step + 1, exchanged.state))

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> State:
        """Keep the step, which all workers share."""
        inner = self.compressor.resharded([inner for _, inner in states], worker, workers)
        return states[0][0], inner

    def _at(self, step: int) -> Compressor:
        return self.compressor.with_ratio(self.ratio_at(step))
