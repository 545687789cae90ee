"""A captured run: open, select, group, copy, import; its results folder."""

from gradstats.runs.opening import open, opened
from gradstats.runs.run import Run

__all__ = ["Run", "open", "opened"]
