"""How the gradients of a step came to be: what a row says beside its elements."""

import math
import time
from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradstats.recording.slots import (
    CLIP_LIMIT,
    CLIP_NORM,
    LEARNING_RATE,
    LOSS_SCALE,
    SKIPPED,
    Slot,
)

#: Steps over which the median time of a step is taken.
_STEPS_TIMED = 33


class Circumstances:
    """What was seen around the step under way.

    Attributes:
        scaler: The GradScaler that is stepping the optimizer, if one is.
        unscaled_early: It had divided the gradients before its step.
        clipped: The norm that clipping measured and its limit, where it was seen.
        backwards: Backward passes of the step.
    """

    def __init__(self, world_size: int) -> None:
        self.scaler: Any = None
        self.unscaled_early = False
        self.clipped: tuple[Tensor, float] | None = None
        self.backwards = 0
        self._world_size = world_size
        self._times: deque[float] = deque(maxlen=_STEPS_TIMED)

    def tick(self) -> None:
        """A step begins."""
        self._times.append(time.perf_counter())

    def count_backward(self, _: Tensor) -> None:
        """A backward pass has come by; a hook."""
        self.backwards += 1

    def forget(self) -> None:
        """The step is over."""
        self.clipped, self.backwards = None, 0

    def describe(self, slot: Slot, optimizer: Optimizer, *, early: bool, skipped: bool) -> None:
        """Note them on a row of the step, made before clipping (early) or at the step."""
        slot.note(LEARNING_RATE, optimizer.param_groups[0]["lr"])
        scale, unscaled = self._scale(optimizer, slot.source.point, early=early)
        slot.note(LOSS_SCALE, scale)
        found = getattr(optimizer, "found_inf", None)  # a fused optimizer is told and skips
        slot.note(SKIPPED, float(skipped) if found is None else found)
        if self.clipped is not None:
            slot.note(CLIP_NORM, self.clipped[0])
            slot.note(CLIP_LIMIT, self.clipped[1])
        slot.facts = {
            "micro_step": max(0, self.backwards - 1),
            "unscaled": int(unscaled),
            "world_size": self._world_size,
            "step_seconds": self._step_seconds(),
        }

    def _step_seconds(self) -> float | None:
        times = list(self._times)
        seconds = [later - sooner for sooner, later in pairwise(times)]
        return median(seconds) if seconds else None

    def _scale(
        self, optimizer: Optimizer, point: str, *, early: bool
    ) -> tuple[Tensor | float, bool]:
        """The loss scale, and whether the gradients at a point are divided by it."""
        if self.scaler is None:
            return 1.0, True
        scale = getattr(self.scaler, "_scale", None)
        fused = getattr(optimizer, "found_inf", None) is not None
        at_step = self.unscaled_early or not fused
        unscaled = self.unscaled_early if early and point == "reduced" else at_step
        return math.nan if scale is None else scale, unscaled and point != "local"


def stage_of(scaler: Any, optimizer: Optimizer) -> str:
    """READY, UNSCALED or STEPPED; READY where a scaler of another make does not say."""
    states: Mapping[int, Mapping[str, Any]] = getattr(scaler, "_per_optimizer_states", {})
    stage = states[id(optimizer)].get("stage") if id(optimizer) in states else None
    return getattr(stage, "name", "READY")
