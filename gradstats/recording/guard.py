"""What is ours inside a training: its faults are said, never raised, and its time is counted."""

import os
import time
from collections.abc import Callable

from torch import no_grad

from gradstats.recording.messages import Reports


class Guard:
    """Runs pieces of a recording in the training's thread, of the process that began it.

    Args:
        reports: Who says what went wrong.

    Attributes:
        closed: The recording is over: nothing runs any more.
        seconds: Time spent so far.
        span: When the first and the last step were looked at.
    """

    def __init__(self, reports: Reports) -> None:
        self.closed = False
        self.seconds = 0.0
        self.span: tuple[float, float] | None = None
        self._reports = reports
        self._process = os.getpid()

    @property
    def away(self) -> bool:
        """Closed, or in a fork of the process."""
        return self.closed or self.forked

    @property
    def forked(self) -> bool:
        """In a fork of the process that began the recording: it is none of this one's business."""
        return os.getpid() != self._process

    def step(self, step: int, work: Callable[[], None]) -> None:
        """Do what a step asks for."""
        if self.away:
            return
        started = time.perf_counter()
        self.piece(work, lambda error: self._mention(step, error))
        self.span = (self.span[0] if self.span else started, time.perf_counter())

    def piece(self, work: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        """Do a part of it."""
        if self.away:
            return
        started = time.perf_counter()
        try:
            with no_grad():
                work()
        except Exception as error:
            failed(error)
        self.seconds += time.perf_counter() - started

    def _mention(self, step: int, error: Exception) -> None:
        fact = f"{type(error).__name__}: {error}"
        self._reports.once("hook", f"cannot record step {step}: {fact}")
