"""Below `gradstats capture`: from the first optimizer that is made to the recording.

Whatever a row says of its step has to be seen, so the recording begins with the first backward
pass where there is one optimizer, and else with the first clipping, scaling or step of one.
"""

import atexit
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradstats.recording import torch_patches
from gradstats.recording.handle import Capture
from gradstats.recording.hooks import ids_held, inside
from gradstats.recording.idle import Idle
from gradstats.recording.messages import write_line
from gradstats.recording.notes import note_once
from gradstats.recording.script.attaching import attach


class Prelude:
    """Listens until it is clear which optimizer trains, and attaches to that.

    Attributes:
        optimizers: Those that were made in this process and are alive.
    """

    def __init__(self) -> None:
        self.optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._process = -1  # that has attached: one forked from it and training is another one
        self._chosen: weakref.ref[Optimizer] | None = None
        self._handle: Capture | Idle | None = None
        self._others: Counter[str] = Counter()
        torch_patches.listen(self)
        atexit.register(self._count_others)

    def before_backward(self) -> None:
        """Attach to the only optimizer that there is."""
        if self._waits and len(self.optimizers) == 1:
            self._attach(next(iter(self.optimizers)))
            self._pass_on(lambda handle: handle.observer.before_backward())

    def after_backward(self) -> None:
        """The recording is told itself."""

    def zeroed(self, parameters: Iterable[Tensor]) -> None:
        """The recording is told itself."""

    def before_clipping(self, parameters: list[Tensor]) -> None:
        """Attach to the optimizer of these parameters, if one alone holds any."""
        if not self._waits:
            return
        clipped = set(map(id, parameters))
        holding = [one for one in self.optimizers if not clipped.isdisjoint(ids_held([one]))]
        if len(holding) == 1:
            self._attach(holding[0])
            self._pass_on(lambda handle: handle.observer.before_clipping(parameters))

    def after_clipping(self, parameters: list[Tensor], limit: float, norm: Tensor) -> None:
        """The recording is told itself."""

    def scaled_step(self, optimizer: Any, scaler: Any, step: Callable[[], Any]) -> Any:
        """Attach to the optimizer that a scaler is about to step."""
        if not self._waits or not isinstance(optimizer, Optimizer):
            return step()
        self._attach(optimizer)
        if isinstance(self._handle, Capture):
            return self._handle.observer.scaled_step(optimizer, scaler, step)
        return step()

    def other_step(self, optimizer: Any) -> None:
        """Attach to an optimizer that is about to step; count the steps of those after it."""
        if self._waits:
            self._attach(optimizer)
            return
        chosen = self._chosen() if self._chosen is not None else None
        if optimizer is not chosen and (chosen is None or not inside([chosen])):
            self._others[type(optimizer).__name__] += 1

    @property
    def _waits(self) -> bool:
        return self._process != os.getpid()

    def _attach(self, optimizer: Optimizer) -> None:
        self._process, self._others = os.getpid(), Counter()
        self._chosen = weakref.ref(optimizer)
        self._handle = attach(optimizer)

    def _pass_on(self, event: Callable[[Capture], None]) -> None:
        """Tell the recording what it attached at: it was not among the listeners yet."""
        if isinstance(self._handle, Capture):
            event(self._handle)

    def _count_others(self) -> None:
        if self._others.total() and not self._waits:
            names = ", ".join(f"{name} {count:,}" for name, count in self._others.most_common(4))
            text = (
                f"{self._others.total():,} steps of other optimizers were not recorded ({names})"
            )
            write_line(f"{text}; call gradstats.capture() in the script, once for each training")


_preludes: list[Prelude] = []  # one, once there is an optimizer


def note(optimizer: Optimizer) -> None:
    """Take notice of an optimizer that was made."""
    if not _preludes:
        torch_patches.steps_are_passed_on()
        _preludes.append(Prelude())
        note_once("optimizer")
    _preludes[0].optimizers.add(optimizer)


def stepping(optimizer: Optimizer) -> None:
    """An optimizer is about to step; perhaps no notice was taken of it, as of an unpickled one."""
    note(optimizer)
    note_once("step")
    torch_patches.any_step(optimizer)
