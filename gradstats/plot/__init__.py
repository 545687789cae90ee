"""Figures of tables and Summaries; never drawn from millions of points.

Each function draws into `ax`, a new one if None, and returns it.
"""

from gradstats.plot.compressors import (
    equal_bits,
    error_against_bytes,
    estimation,
    overhead,
    residuals,
)
from gradstats.plot.laws import best_k, density, qq, sorted_magnitudes, survival, tail_error
from gradstats.plot.training import (
    evolution,
    heat,
    over_steps,
    ranks,
    reusable,
    thresholds,
    winners,
)

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
