"""Symmetric scipy distributions, made of one-sided ones that scipy has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def symmetric_law(half: Any, name: str) -> Any:
    """Make a `scipy.stats.rv_continuous` symmetric about 0 whose magnitudes follow `half`.

    Args:
        half: a scipy distribution of positive values, such as `scipy.stats.lomax`.
        name: the name of the new distribution.

    Returns:
        The distribution, with the shapes of `half`.

    Example:
        >>> from scipy import stats
        >>> float(symmetric_law(stats.lomax, "dlomax")(3.0, scale=2.0).median())
        0.0
    """
    from scipy import stats

    class symmetric_gen(stats.rv_continuous):  # type: ignore[misc]
        """Symmetric about 0, with the magnitudes of a one-sided distribution."""

        def _argcheck(self, *c: Floats) -> Any:
            return half._argcheck(*c)

        def _get_support(self, *c: Floats) -> Any:
            end = half.support(*c)[1]
            return -end, end

        def _pdf(self, x: Floats, *c: Floats) -> Any:
            return half.pdf(np.abs(x), *c) / 2

        def _logpdf(self, x: Floats, *c: Floats) -> Any:
            return half.logpdf(np.abs(x), *c) - np.log(2)

        def _sf(self, x: Floats, *c: Floats) -> Any:
            tail = half.sf(np.abs(x), *c) / 2
            return np.where(x >= 0, tail, 1 - tail)

        def _cdf(self, x: Floats, *c: Floats) -> Any:
            return self._sf(-x, *c)

        def _isf(self, q: Floats, *c: Floats) -> Any:
            magnitude = half.isf(2 * np.minimum(q, 1 - q), *c)
            return np.where(q <= 0.5, magnitude, -magnitude)

        def _ppf(self, q: Floats, *c: Floats) -> Any:
            return -self._isf(q, *c)

    return symmetric_gen(name=name, shapes=half.shapes)
