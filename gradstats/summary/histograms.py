"""Summaries from counts: values with how often they occur, and histograms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.grid import GRIDS, Tally, rows
from gradstats.summary.summarizing import of_tally
from gradstats.summary.summary import Summary
from gradstats.summary.tensors import as_tensor

Counts = NDArray[np.int64]
MOST = 1 << 53  # elements per value, so that float64 holds their number
SPREAD = 256  # values that stand for the elements of a histogram's bin


def summarize_counts(values: Any, counts: Any) -> Summary:
    """Summarise a gradient given as distinct values and how often each occurs.

    The Summary is that of `values` repeated `counts` times: equal counts, and sums that are equal
    but for the order of addition.

    Args:
        values: `[m]`, as `summarize` takes a gradient.
        counts: `[m]`, whole numbers, at least 0. Weights that are no whole numbers are refused: a
            Summary counts elements. Multiply them by one factor first, and round.

    Raises:
        ValueError: shapes differ, or a count is negative or no whole number.

    Example:
        >>> summary = summarize_counts([0.5, -2.0, 0.0], [3, 1, 6])
        >>> summary.n, summary.zeros, summary.total_abs
        (10, 6, 3.5)
    """
    flat = as_tensor(values).reshape(-1).cpu()
    often = _whole(counts)
    if len(often) != len(flat):
        raise ValueError(f"counts must be as many as values, got {len(often)} and {len(flat)}")
    grid, wide = GRIDS[flat.dtype], flat.double().numpy()
    keys, negative = grid.keys(flat).numpy(), np.signbit(wide)
    finite, zero = np.isfinite(wide), wide == 0
    order = np.argsort(keys, kind="stable")
    present = order[(finite & ~zero & (often > 0))[order]]
    x, n = wide[present], often[present].astype(np.float64)
    with np.errstate(over="ignore"):
        sums = float(n @ x), float(n @ np.abs(x)), float(n @ x**2)
    tally = Tally(
        *rows(keys[present], often[present], grid),
        positive_zeros=int(often[zero & ~negative].sum()),
        negative_zeros=int(often[zero & negative].sum()),
        nan=int(often[np.isnan(wide)].sum()),
        positive_inf=int(often[wide == math.inf].sum()),
        negative_inf=int(often[wide == -math.inf].sum()),
        total=sums[0],
        total_abs=sums[1],
        total_sq=sums[2],
        max_abs=float(np.abs(x).max(initial=0.0)),
    )
    return of_tally(tally, grid.name, int(often.sum()))


def summarize_histogram(counts: Any, edges: Any) -> Summary:
    """Summarise a gradient given as a histogram, as numpy or a logger makes it.

    The elements of a bin are taken as evenly spread over it, as are those of the Summary's own
    bins. Small magnitudes inside a wide bin around 0 cannot be recovered: k̂/k at targets whose
    threshold lies inside it belongs to the even spread.

    Args:
        counts: `[m]`, whole numbers, at least 0: elements of each bin, the first result of
            `numpy.histogram`.
        edges: `[m + 1]`, not falling, finite where a bin holds elements; bins whose edges are
            equal hold one value.

    Raises:
        ValueError: edges that fall or are not one more than the counts, an infinite bin with
            elements, a count that is negative or no whole number.

    Example:
        >>> summary = summarize_histogram([2, 2], [-1.0, 0.0, 1.0])
        >>> summary.n, summary.total, summary.total_abs
        (4, 0.0, 2.0)
    """
    often, ends = _whole(counts), np.asarray(edges, np.float64).ravel()
    if len(ends) != len(often) + 1:
        raise ValueError(f"edges must be one more than counts, got {len(ends)} and {len(often)}")
    held = often > 0
    low, high, often = ends[:-1][held], ends[1:][held], often[held]
    if not (np.isfinite(low) & np.isfinite(high)).all():
        raise ValueError("edges must be finite where a bin holds elements")
    if np.isnan(ends).any() or (np.diff(ends) < 0).any():
        raise ValueError(f"edges must not fall or be NaN, got {ends.tolist()}")
    inside = (np.arange(SPREAD) + 0.5) / SPREAD
    values = low[:, None] * (1 - inside) + high[:, None] * inside
    parts = np.arange(SPREAD + 1) / SPREAD
    shares = np.diff(np.rint(often[:, None] * parts).astype(np.int64))  # as even as whole ones are
    return summarize_counts(values, shares)


def _whole(counts: Any) -> Counts:
    given = np.asarray(counts).ravel()
    if given.dtype.kind not in "iuf" or not len(given):
        given = given.astype(np.float64)
    odd = ~((given >= 0) & (given <= MOST) & (np.floor(given) == given))
    if odd.any():
        rule = f"counts must be whole numbers from 0 to {MOST}"
        raise ValueError(f"{rule}, got {given[odd][0]!r}")
    return given.astype(np.int64)
