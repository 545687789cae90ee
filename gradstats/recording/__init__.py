"""Recording gradients while a training runs."""

from gradstats.recording.capturing import capture
from gradstats.recording.handle import Capture
from gradstats.recording.idle import Idle
from gradstats.recording.registry import close_all
from gradstats.recording.schedules import Schedule, at_steps, every, log_spaced, window
from gradstats.recording.stats import Stats

__all__ = [
    "Capture",
    "Idle",
    "Schedule",
    "Stats",
    "at_steps",
    "capture",
    "close_all",
    "every",
    "log_spaced",
    "window",
]
