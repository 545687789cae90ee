"""Statistics of each element over the steps (the axis of sampling `steps`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradstats.fitting.tail_index import index_of_ratio

Floats = NDArray[np.float64]
FEWEST_STEPS = 20  # for a tail index


@np.errstate(over="ignore", under="ignore")
def series_columns(values: NDArray[np.floating], *, consecutive: bool) -> dict[str, Floats]:
    r"""Compute statistics of every element over the steps.

    The signal-to-noise ratio is :math:`|\bar g| / s`; the tail index is McCulloch's α of the
    deviations from the median; the autocorrelation, at lag 1, is
    :math:`\sum_t d_t d_{t+1} / \sum_t d_t^2` with d the deviations from the mean.

    Args:
        values: `[steps, elements]`; NaN and inf are left out.
        consecutive: whether each step follows the previous one; if not, there is no
            autocorrelation.

    Returns:
        By name, one value per element: n (finite steps), zeros (their share), mean, variance, snr,
        tail_index, autocorrelation; NaN where undefined: an element that never changes, fewer than
        two steps, or 20 for the tail index.
    """
    x = np.asarray(values, np.float64)
    finite = np.isfinite(x)
    n = finite.sum(axis=0).astype(np.float64)
    x = np.where(finite, x, 0.0)
    some, many = np.where(n > 0, n, np.nan), np.where(n > 1, n, np.nan)
    # over a power of two near the largest, so that no square leaves float64
    unit = np.exp2(np.clip(np.frexp(np.abs(x).max(axis=0, initial=0.0))[1], -1000, 1000))
    x = x / unit
    mean = x.sum(axis=0) / some
    deviation = np.where(finite, x - mean, 0.0)
    squares = (deviation**2).sum(axis=0)
    varies = np.where(squares > 0, squares, np.nan)
    lagged = (deviation[1:] * deviation[:-1]).sum(axis=0)
    return {
        "n": n,
        "zeros": ((x == 0) & finite).sum(axis=0) / some,
        "mean": mean * unit,
        "variance": squares / (many - 1) * unit * unit,
        "snr": np.abs(mean) / np.sqrt(varies / (many - 1)),
        "tail_index": _tail_index(np.where(finite, x, np.nan), n),
        "autocorrelation": lagged / varies if consecutive else np.full(len(n), np.nan),
    }


def _tail_index(x: Floats, n: Floats) -> Floats:
    index = np.full(len(n), np.nan)
    enough = np.flatnonzero(n >= FEWEST_STEPS)
    if not len(enough):
        return index
    columns = x[:, enough]
    magnitudes = np.abs(columns - np.nanmedian(columns, axis=0))
    high, middle = np.nanquantile(magnitudes, [0.9, 0.5], axis=0)
    known = middle > 0
    index[enough[known]] = index_of_ratio(high[known] / middle[known])
    return index
