"""Figures of tables and Summaries; never drawn from millions of points.

Each function takes what one public function of gradstats returns, named in its docstring, draws
into `ax` (default: the axes of a new figure) and returns the axes.
"""

from gradstats.plot.compressors import (
    equal_bits,
    error_against_bytes,
    estimation,
    overhead,
    residuals,
)
from gradstats.plot.distributions import (
    best_k,
    density,
    qq,
    sorted_magnitudes,
    survival,
    tail_error,
)
from gradstats.plot.maps import heat, winners
from gradstats.plot.training import evolution, over_steps, ranks, reusable, thresholds

__all__ = [
    "best_k",
    "density",
    "equal_bits",
    "error_against_bytes",
    "estimation",
    "evolution",
    "heat",
    "over_steps",
    "overhead",
    "qq",
    "ranks",
    "residuals",
    "reusable",
    "sorted_magnitudes",
    "survival",
    "tail_error",
    "thresholds",
    "winners",
]
