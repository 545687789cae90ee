"""The Summary of a gradient: a small value, made in one pass, from which fits are computed.

A Summary holds integer counts of |g| by sign on the log grid of the gradient's dtype, exact counts
of zeros and non-finite elements, and float64 sums. Summaries of disjoint parts add up to the
summary of the whole, so that threads, chunks, parameters and machines can each make their own.
Every estimator, distance and plot then takes time that does not depend on the number of elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradstats.kernels.grid import GRIDS, GRIDS_1, Grid
from gradstats.ratios import check_ratio
from gradstats.summary.adding import added, moved_bins
from gradstats.summary.moments import Moments, excess_moments, share_above
from gradstats.summary.sums import Sums, fields_of_sums, is_safe
from gradstats.summary.words import in_short, spread_in_words

Floats = NDArray[np.float64]
Counts = NDArray[np.integer]
VERSION = 2  # of the grid
WIDE = 400.0  # nats between the smallest and the largest magnitude


@dataclass(frozen=True, eq=False, repr=False)
class Summary:
    """Counts and sums of one gradient, or of any part of one.

    Attributes:
        dtype: name of the gradient's dtype, which fixes the grid: "float32", "bfloat16" …
        bins: sorted magnitude bins that hold a finite non-zero element, `[m]`.
        positive, negative: elements of each sign in those bins, `[m]`; these three are in the
            narrowest unsigned dtype that holds them.
        n: number of elements, zeros and non-finite ones included.
        zeros, nan, positive_inf, negative_inf: exact counts, judged in the gradient's dtype.
        total, total_abs, total_sq: float64 sums of g, |g| and g² over the finite elements.
        max_abs: the largest finite magnitude, 0 if there is none.
        fraction: sampling fraction: 1 for whole gradients, less for tracked elements.
        unit: elements were divided by it before they were counted. Always 1, except for Summaries
            that `scaled` cannot put on the grid again.
        version: the version of the grid. Version 1, found in stores, has eight values per bin of
            float16 and does not separate values of float32 and float64 that were once bfloat16.
        total_log: sum of ln|g| over the finite non-zero elements, of at most 1,024 elements;
            None for others.
        sums: the sums after division by a power of two near max|g|, if the sums of g itself leave
            float64 (as the square of 1e200 does); None for all others.
    """

    dtype: str
    bins: Counts
    positive: Counts
    negative: Counts
    n: int
    zeros: int
    nan: int
    positive_inf: int
    negative_inf: int
    total: float
    total_abs: float
    total_sq: float
    max_abs: float
    fraction: float = 1.0
    unit: float = 1.0
    version: int = VERSION
    total_log: float | None = field(default=None, compare=False)
    sums: Sums | None = field(default=None, compare=False)

    __repr__ = in_short

    @cached_property
    def grid(self) -> Grid:
        """The bins of the dtype."""
        return (GRIDS_1 if self.version == 1 else GRIDS)[getattr(torch, self.dtype)]

    @property
    def nonfinite(self) -> int:
        """Number of NaN and infinite elements."""
        return self.nan + self.positive_inf + self.negative_inf

    @property
    def nonzero(self) -> int:
        """Number of finite non-zero elements: the sample that families are fitted to."""
        return self.n - self.nonfinite - self.zeros

    @property
    def distinct(self) -> int:
        """Number of distinct magnitudes as far as the bins separate them: there may be more."""
        return len(self.bins)

    @property
    def spread(self) -> str:
        """The number of distinct magnitudes in words: values, or bins if values share bins.

        Example:
            >>> from gradstats import summarize
            >>> summarize(torch.tensor([1.0, 2.0, 2.0])).spread
            '2 distinct magnitudes'
            >>> summarize(torch.tensor([1.001, 1.002, 0.1])).spread
            '3 magnitudes in 2 bins of the float32 grid'
        """
        return spread_in_words(self)

    @cached_property
    def points(self) -> NDArray[np.bool_]:
        """Whether each bin holds a single magnitude, bool `[m]`."""
        low, high = self.edges
        return np.asarray(low == high)

    @property
    def point_share(self) -> float:
        """Share of the non-zero elements whose magnitude is known exactly; 0 of none."""
        return float(self.counts[self.points].sum()) / max(self.nonzero, 1)

    @cached_property
    def counts(self) -> Counts:
        """Elements of either sign in each bin, `[m]`."""
        return self.positive.astype(np.int64) + self.negative

    @cached_property
    def edges(self) -> tuple[Floats, Floats]:
        """Smallest and largest magnitude of each bin, both inclusive, `[m]` each."""
        low, high = self.grid.edges(self.bins.astype(np.int64))
        return (low, high) if self.unit == 1 else (low * self.unit, high * self.unit)

    @cached_property
    def centres(self) -> Floats:
        """Mean magnitude of each bin if its values are equally likely, `[m]`."""
        low, high = self.edges
        return low / 2 + high / 2

    @cached_property
    def logs(self) -> Floats:
        """Ln of the centre of each bin, at most of max|g|; no centre underflows in it: `[m]`."""
        low, high = self.grid.edges(self.bins.astype(np.int64))
        logs = np.log(low / 2 + high / 2) + math.log(self.unit)
        return np.minimum(logs, math.log(self.max_abs)) if len(logs) else logs

    @property
    def power(self) -> float:
        """The largest power of two not above max|g|, inside the normal numbers of float64."""
        return math.ldexp(1.0, min(max(math.frexp(self.max_abs)[1] - 1, -1022), 1023))

    @cached_property
    def over_power(self) -> tuple[float, Summary]:
        """A power of two, and the Summary divided by it.

        No square and no scale of it leaves float64.

        It is `power`, or less where magnitudes of one gradient are hundreds of decades apart.
        """
        unit = self.power
        if math.log(self.max_abs) - self.logs[0] > WIDE:
            unit = max(unit * 2.0**-400, 2.0**-1022)
        return unit, self.scaled(1 / unit)

    @property
    def mean(self) -> float:
        """Mean of the finite elements; NaN where there is none."""
        finite = self.n - self.nonfinite
        sums = self.safe_sums()
        return sums.total / finite * sums.unit if finite else math.nan

    @property
    def norm(self) -> float:
        """The root of the sum of squares of the finite elements."""
        sums = self.safe_sums()
        return math.sqrt(sums.total_sq) * sums.unit

    def safe_sums(self) -> Sums:
        """Sums that are in the range of float64: exact ones, or of the bins where those are lost.

        They are lost in Summaries that were stored without `sums`.
        """
        if self.sums is not None:
            return self.sums
        own = Sums(1.0, self.total, self.total_abs, self.total_sq)
        if is_safe(self.max_abs):
            return own
        low, high = (edge / self.power for edge in self.edges)
        centres = low / 2 + high / 2
        signed = self.positive.astype(np.float64) - self.negative
        squares = centres**2 + (high - low) ** 2 / 12
        every = (signed @ centres, self.counts @ centres, self.counts @ squares)
        return Sums(self.power, *map(float, every))

    def moments(self, *, logs: bool = True) -> Moments:
        """Moments of the finite non-zero magnitudes.

        Mean and variance come from the exact sums. So does mean ln|g| of few elements; of many it
        comes from the bins, and moves with the exact mean as theirs does. NaN without `logs`.
        """
        n, sums = self.nonzero, self.safe_sums()
        if n == 0:
            return Moments(0, float("nan"), float("nan"))
        mean = sums.total_abs / n
        var = max(sums.total_sq - n * mean * mean, 0.0) / (n - 1) if n > 1 else float("nan")
        distinct = len(self.bins) > 1
        log = self._mean_log if logs else math.nan
        return Moments(n, mean * sums.unit, var * sums.unit * sums.unit, log, distinct)

    @property
    def _mean_log(self) -> float:
        if self.total_log is not None:
            return self.total_log / self.nonzero
        top, sums, share = float(self.logs[-1]), self.safe_sums(), self.counts / self.nonzero
        binned = math.log(float(share @ np.exp(self.logs - top))) + top
        exact = math.log(sums.total_abs / self.nonzero) + math.log(sums.unit)
        return float(share @ self.logs) + exact - binned

    def excess(self, threshold: float, *, logs: bool = True) -> Moments:
        """Moments of x - threshold over the magnitudes x > threshold.

        Magnitudes are taken as uniform inside their bin, also in the one that the threshold cuts.

        Args:
            threshold: in the unit of the gradient; 0 gives `moments(logs=logs)`.
            logs: see `moments`.
        """
        if threshold <= 0:
            return self.moments(logs=logs)
        return excess_moments(self.counts, *self.edges, threshold)

    def kept(self, threshold: float) -> float:
        """Count the finite elements with |g| > threshold, interpolated inside the bin it cuts."""
        return float((self.counts * share_above(*self.edges, threshold)).sum())

    def quantile(self, ratio: float) -> float:
        """Return the magnitude that `ratio` of the finite non-zero elements exceed, interpolated.

        Raises:
            ValueError: ratio outside (0, 1], or no finite non-zero element.
        """
        check_ratio("ratio", ratio)
        if not self.nonzero:
            raise ValueError(f"cannot take a quantile: no finite non-zero element among {self.n}")
        above = self.counts[::-1].cumsum()
        wanted = ratio * self.nonzero
        i = min(int(np.searchsorted(above, wanted)), len(above) - 1)
        low, high = (edge[::-1][i] for edge in self.edges)
        inside = (above[i] - wanted) / self.counts[::-1][i]
        return float(low + inside * (high - low))

    def scaled(self, factor: float) -> Summary:
        """Return the Summary of every element times `factor`.

        If `factor` is a power of two that moves no element out of the normal numbers of its dtype,
        the result is the Summary of the products, bit for bit. Any other factor keeps the bins,
        and multiplies their edges (`unit`). Nothing is rounded to the dtype, and nothing
        underflows.

        Args:
            factor: positive and finite.

        Raises:
            ValueError: `factor` is not positive and finite.
        """
        if not 0 < factor < math.inf:
            raise ValueError(f"factor must be positive and finite, got {factor!r}")
        unit = self.unit * factor
        bins = moved_bins(self, unit)
        columns: dict[str, Any] = {"unit": unit} if bins is None else {"bins": bins, "unit": 1.0}
        if self.total_log is not None:
            columns["total_log"] = self.total_log + self.nonzero * math.log(factor)
        sums = self.safe_sums()
        sums = sums._replace(unit=sums.unit * factor)
        return replace(self, **columns, **fields_of_sums(sums, self.max_abs * factor))

    def __radd__(self, other: object) -> Summary:
        """Add to 0, with which `sum` begins."""
        return self if other == 0 else NotImplemented

    def __add__(self, other: object) -> Summary:
        """Return the Summary of both parts together. Counts are exact; sums are added in float64.

        A Summary of no elements adds to any other.

        Raises:
            ValueError: the grids, their units or the sampling fractions differ.
        """
        if not isinstance(other, Summary):
            return NotImplemented
        return added(self, other)

    def __eq__(self, other: object) -> bool:
        """Equality of every stored count and sum, bit for bit."""
        if not isinstance(other, Summary):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, f.name), getattr(other, f.name))
            for f in fields(self)
            if f.compare
        )

    __hash__ = None  # type: ignore[assignment]
