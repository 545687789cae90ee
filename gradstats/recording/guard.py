"""Runs a recording's work inside a training: faults are printed, never raised; time is counted."""

import os
import time
from collections.abc import Callable

from torch import no_grad

from gradstats.recording.messages import Reports


class Guard:
    """Runs pieces of a recording in the training's thread, of the process that began it.

    Args:
        reports: Prints what went wrong.

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
        """Whether the recording is closed, or this is a fork of its process."""
        return self.closed or self.forked

    @property
    def forked(self) -> bool:
        """Whether this is a fork of the recording process, in which nothing is recorded."""
        return os.getpid() != self._process

    def missed(self, what: str) -> bool:
        """Whether nothing is recorded any more; after a close it is printed once."""
        if self.closed and not self.forked:
            self._reports.once("closed", f"cannot {what}: the recording is closed")
        return self.away

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
