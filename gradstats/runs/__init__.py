"""A captured run: open, select, group, copy, import; its results folder."""

from gradstats.runs.run import Run, open

__all__ = ["Run", "open"]
