"""How the gradients of a step came to be: the coordinates of a row beside its elements."""

import math
import time
from collections import deque
from collections.abc import Mapping
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
        scaled: A GradScaler is stepping the optimizer.
        unscaled_early: It had divided the gradients before its step.
        skipped: It left the optimizer out.
        clipped_in_parts: Clipping by several calls, or not of all that is recorded: no norm.
        backwards: Backward passes that made the gradients of the step; None if some of them
            were before the recording began.
        inner_steps: Of the pseudo-gradient that the step is given; None for a gradient.
    """

    backwards: int | None

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._times: deque[float] = deque(maxlen=_STEPS_TIMED)
        self.forget()

    def forget(self) -> None:
        """The step is over."""
        self.scaled = self.unscaled_early = self.skipped = self.clipped_in_parts = False
        self.backwards = 0
        self.inner_steps: int | None = None
        self._scale: Tensor | float = 1.0
        self._infinite: Tensor | None = None
        self._clipped: tuple[Tensor, float] | None = None
        self._indices: set[int] = set()  # that were clipped

    def tick(self) -> None:
        """A step begins."""
        self._times.append(time.perf_counter())

    def count_backward(self) -> None:
        """A backward pass has come by."""
        if self.backwards is not None:
            self.backwards += 1

    def clip(self, norm: Tensor, limit: float, indices: set[int], *, whole: bool) -> None:
        """Gradients were clipped: of all recorded parameters that have one, or of some."""
        self.clipped_in_parts |= self._clipped is not None or not whole
        self._clipped = norm, limit
        self._indices |= indices

    def unclip(self, changed: set[int]) -> None:
        """Gradients are others than those that were clipped: the norm is not theirs."""
        gone = self._indices & changed
        if gone and gone == self._indices:
            self.clipped_in_parts, self._clipped, self._indices = False, None, set()
        elif gone:
            self.clipped_in_parts = True

    def scale(self, scaler: Any, optimizer: Optimizer) -> None:
        """A GradScaler is about to step the optimizer, or to leave it out."""
        self.scaled = True
        self.unscaled_early = _stage_of(scaler, optimizer) == "UNSCALED"
        scale = getattr(scaler, "_scale", None)
        self._scale = math.nan if scale is None else scale.clone()

    def at_step(self, optimizer: Optimizer) -> None:
        """Note whether GradScaler lets a fused optimizer, which is about to step, skip it."""
        infinite = getattr(optimizer, "found_inf", None)
        self._infinite = infinite if infinite is None else infinite.clone()

    def describe(self, slot: Slot, optimizer: Optimizer, *, early: bool) -> None:
        """Note them on a row of the step, made before clipping (early) or at the step."""
        slot.note(LEARNING_RATE, optimizer.param_groups[0]["lr"])
        slot.note(LOSS_SCALE, self._scale)
        slot.note(SKIPPED, float(self.skipped) if self._infinite is None else self._infinite)
        if self._clipped is not None and not self.clipped_in_parts:
            slot.note(CLIP_NORM, self._clipped[0])
            slot.note(CLIP_LIMIT, self._clipped[1])
        slot.facts = {
            "micro_step": self._micro_step,
            "inner_steps": self.inner_steps or 0,
            "unscaled": int(self._unscaled(slot.source.point, early=early)),
            "world_size": self._world_size,
        }
        slot.times = tuple(self._times)

    @property
    def _micro_step(self) -> int:
        if self.inner_steps is not None:
            return 0  # the backward passes between pseudo-gradients are those of inner steps
        return -1 if self.backwards is None else max(0, self.backwards - 1)

    def _unscaled(self, point: str, *, early: bool) -> bool:
        """Whether gradients at this point are divided by the loss scale."""
        if not self.scaled:
            return True
        if point == "local" or (early and point == "reduced"):
            return self.unscaled_early and point != "local"
        return self.unscaled_early or self._infinite is None


def _stage_of(scaler: Any, optimizer: Optimizer) -> str:
    """READY, UNSCALED or STEPPED; READY for scalers of other classes that have no stage."""
    states: Mapping[int, Mapping[str, Any]] = getattr(scaler, "_per_optimizer_states", {})
    stage = states[id(optimizer)].get("stage") if id(optimizer) in states else None
    return getattr(stage, "name", "READY")
