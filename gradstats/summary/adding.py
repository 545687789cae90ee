"""Summaries of disjoint parts become the Summary of the whole."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradstats.summary.sums import Sums, is_safe

if TYPE_CHECKING:
    from gradstats.summary.summary import Summary

Counts = NDArray[np.integer]
SUMMED = (
    "n",
    "zeros",
    "nan",
    "positive_inf",
    "negative_inf",
    "total",
    "total_abs",
    "total_sq",
)


def added(one: Summary, two: Summary) -> Summary:
    """The Summary of both parts together; see `Summary.__add__`."""
    if not one.n or not two.n:
        return one if one.n else two
    if one.unit != two.unit:
        return _added_in_one_unit(one, two)
    if (one.dtype, one.fraction) != (two.dtype, two.fraction):
        raise ValueError(
            f"cannot add summaries: dtype {one.dtype} at sampling fraction {one.fraction:g} "
            f"and dtype {two.dtype} at {two.fraction:g}"
        )
    if one.version != two.version:
        raise ValueError(
            f"cannot add summaries: grid of {one.dtype} in version {one.version} and in "
            f"version {two.version}; summarise the gradients again, or keep them apart"
        )
    return replace(one, **_joint_counts(one, two), **_joint_sums(one, two))


def moved_bins(summary: Summary, factor: float) -> Counts | None:
    """The bins of all elements times a factor; None where the grid has no such bins."""
    if factor == 1 or not len(summary.bins):
        return summary.bins
    mantissa, exponent = math.frexp(factor)
    octave = summary.grid.octave
    bins = summary.bins.astype(np.int64) + (exponent - 1) * octave
    normal = min(int(summary.bins[0]), int(bins[0])) >= octave
    if mantissa != 0.5 or not normal or int(bins[-1]) >= summary.grid.first_nonfinite:
        return None
    return narrow(bins)


def narrow(counts: Counts, bound: int | None = None) -> Counts:
    """Counts in the narrowest unsigned dtype: thousands of Summaries are held at a time.

    Args:
        counts: not negative.
        bound: known to be at least the largest count; if small, the largest is not looked for.
    """
    if bound is None or bound > 255:
        bound = int(counts.max(initial=0))
    return counts.astype(np.min_scalar_type(bound))


def _added_in_one_unit(one: Summary, two: Summary) -> Summary:
    """The sum in the unit of either part, whichever grid has the bins of the other."""
    for part, other in ((one, two), (two, one)):
        bins = moved_bins(part, part.unit / other.unit)
        if bins is not None:
            moved = replace(part, bins=bins, unit=other.unit)
            return added(moved, other) if part is one else added(other, moved)
    raise ValueError(f"cannot add summaries: units {one.unit:g} and {two.unit:g}")


def _joint_counts(one: Summary, two: Summary) -> dict[str, Any]:
    bins = np.union1d(one.bins, two.bins)
    joint: dict[str, Any] = {"bins": bins}
    for sign in ("positive", "negative"):
        counts = np.zeros(len(bins), np.int64)
        for part in (one, two):
            counts[np.searchsorted(bins, part.bins)] += getattr(part, sign)
        joint[sign] = narrow(counts)
    return joint


def _joint_sums(one: Summary, two: Summary) -> dict[str, Any]:
    joint: dict[str, Any] = {name: getattr(one, name) + getattr(two, name) for name in SUMMED}
    joint |= {"max_abs": max(one.max_abs, two.max_abs), "total_log": None, "sums": None}
    if one.total_log is not None and two.total_log is not None:
        joint["total_log"] = one.total_log + two.total_log
    if not is_safe(joint["max_abs"]):
        unit = max(one, two, key=lambda part: part.max_abs).power
        parts = (part.safe_sums().over(unit)[1:] for part in (one, two))
        joint["sums"] = Sums(unit, *map(sum, zip(*parts, strict=True)))
    return joint
