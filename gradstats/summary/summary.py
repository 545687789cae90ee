"""One pass over a gradient: a small value from which everything on the fitting side is computed.

A Summary holds integer counts of |g| by sign on the log grid of the gradient's dtype, exact counts
of zeros and non-finite elements, and float64 sums. Summaries of disjoint parts add up to the
summary of the whole, so that threads, chunks, parameters and machines can each make their own.
Every estimator, distance and plot then takes time that does not depend on the number of elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats import kernels
from gradstats.kernels.grid import GRIDS, GRIDS_1, Grid
from gradstats.ratios import check_ratio
from gradstats.summary.tensors import as_tensor

Floats = NDArray[np.float64]
Counts = NDArray[np.integer]
VERSION = 2  # of the grid
SAFE = (2.0**-450, 2.0**450)  # of max|g|: inside, sums of squares neither overflow nor underflow
WIDE = 400.0  # nats between the smallest and the largest magnitude
BATCH = 64  # segments whose logarithms are taken at once, so that they stay in the cache
FEW = 1024  # elements, up to which ln|g| is summed one by one


@dataclass(frozen=True)
class Moments:
    """What closed-form estimators need of magnitudes, or of their excesses over a threshold.

    Attributes:
        n: sample size; a fraction where a threshold cuts through a bin.
        mean: sample mean, in the unit of the gradient.
        var: unbiased sample variance; NaN when n < 2.
        mean_log: mean of ln x; NaN when not known (excesses over a positive threshold).
        distinct: False when all magnitudes share one bin of the grid, so that no spread can be
            estimated.
    """

    n: float
    mean: float
    var: float
    mean_log: float = float("nan")
    distinct: bool = True


class Sums(NamedTuple):
    """Sums of x, |x| and x² over the finite elements x = g/unit."""

    unit: float
    total: float
    total_abs: float
    total_sq: float

    def over(self, unit: float) -> Sums:
        """The same sums of g over another unit."""
        factor = self.unit / unit
        return Sums(
            unit, self.total * factor, self.total_abs * factor, self.total_sq * factor * factor
        )


@dataclass(frozen=True, eq=False)
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
        unit: the magnitude of a 1 of the grid: elements were counted after a division by it.
            Always 1, but for those that `scaled` cannot put on the grid again.
        version: of the grid. Version 1, found in stores, has eight values per bin of float16 and
            does not tell which values of float32 and float64 were once bfloat16.
        total_log: sum of ln|g| over the finite non-zero elements, of at most 1,024 elements;
            None for others.
        sums: the sums over a power of two near max|g|, where those of g itself leave float64:
            1e200 squared. None for all others.
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
        """Number of distinct magnitudes that the bins tell apart: there may be more."""
        return len(self.bins)

    @property
    def spread(self) -> str:
        """How many magnitudes are told apart, for messages: values, or bins where they share some.

        Example:
            >>> summarize(torch.tensor([1.0, 2.0, 2.0])).spread
            '2 distinct magnitudes'
            >>> summarize(torch.tensor([1.001, 1.002, 0.1])).spread
            '3 magnitudes in 2 bins of the float32 grid'
        """
        if np.all(self.points | (self.counts == 1)):
            return f"{self.distinct} distinct magnitudes"
        return f"{self.nonzero} magnitudes in {self.distinct} bins of the {self.dtype} grid"

    @cached_property
    def points(self) -> NDArray[np.bool_]:
        """Which bins hold a single magnitude, `[m]`."""
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
        """A power of two, and the Summary over it: neither squares nor scales leave float64.

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
        sums = self._sums()
        return sums.total / finite * sums.unit if finite else math.nan

    @property
    def norm(self) -> float:
        """The root of the sum of squares of the finite elements."""
        sums = self._sums()
        return math.sqrt(sums.total_sq) * sums.unit

    def _sums(self) -> Sums:
        """Sums that are in the range of float64: exact ones, or of the bins where those are lost.

        They are lost in Summaries that were stored without `sums`.
        """
        if self.sums is not None:
            return self.sums
        own = Sums(1.0, self.total, self.total_abs, self.total_sq)
        if _is_safe(self.max_abs):
            return own
        low, high = (edge / self.power for edge in self.edges)
        centres = low / 2 + high / 2
        signed = self.positive.astype(np.float64) - self.negative
        squares = centres**2 + (high - low) ** 2 / 12
        every = (signed @ centres, self.counts @ centres, self.counts @ squares)
        return Sums(self.power, *map(float, every))

    def moments(self) -> Moments:
        """Moments of the finite non-zero magnitudes.

        Mean and variance come from the exact sums. So does mean ln|g| of few elements; of many it
        comes from the bins, and moves with the exact mean as theirs does.
        """
        n, sums = self.nonzero, self._sums()
        if n == 0:
            return Moments(0, float("nan"), float("nan"))
        mean = sums.total_abs / n
        var = max(sums.total_sq - n * mean * mean, 0.0) / (n - 1) if n > 1 else float("nan")
        distinct = len(self.bins) > 1
        return Moments(n, mean * sums.unit, var * sums.unit * sums.unit, self._mean_log, distinct)

    @property
    def _mean_log(self) -> float:
        if self.total_log is not None:
            return self.total_log / self.nonzero
        top, sums, share = float(self.logs[-1]), self._sums(), self.counts / self.nonzero
        binned = math.log(float(share @ np.exp(self.logs - top))) + top
        exact = math.log(sums.total_abs / self.nonzero) + math.log(sums.unit)
        return float(share @ self.logs) + exact - binned

    @np.errstate(over="ignore")
    def excess(self, threshold: float) -> Moments:
        """Moments of x - threshold over the magnitudes x > threshold.

        Magnitudes are taken as uniform inside their bin, also in the one that the threshold cuts.

        Args:
            threshold: in the unit of the gradient; 0 gives `moments()`.
        """
        if threshold <= 0:
            return self.moments()
        low, high = self.edges
        n = self.counts * _share_above(low, high, threshold)
        above = n > 0
        n, low, high = n[above], np.maximum(low[above], threshold), high[above]
        size = float(n.sum())
        if size == 0:
            return Moments(0, float("nan"), float("nan"))
        x = (low + high) / 2 - threshold
        mean = float(n @ x) / size
        squares = float(n @ ((x - mean) ** 2 + (high - low) ** 2 / 12))
        var = squares / (size - 1) if size > 1 else float("nan")
        return Moments(size, mean, var, distinct=len(n) > 1)

    def kept(self, threshold: float) -> float:
        """Number of finite elements with |g| > threshold, interpolated inside the bin it cuts."""
        return float((self.counts * _share_above(*self.edges, threshold)).sum())

    def quantile(self, ratio: float) -> float:
        """The magnitude that `ratio` of the finite non-zero elements exceed, interpolated.

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
        """The Summary of every element times `factor`.

        Times a power of two that takes no element out of the normal numbers of its dtype it is
        the Summary of those products, bit for bit. Any other keeps the bins, with edges times the
        factor (`unit`). Nothing is rounded to the dtype, and nothing underflows.

        Args:
            factor: positive and finite.

        Raises:
            ValueError: it is not.
        """
        if not 0 < factor < math.inf:
            raise ValueError(f"factor must be positive and finite, got {factor!r}")
        unit = self.unit * factor
        bins = self._moved(unit)
        columns: dict[str, Any] = {"unit": unit} if bins is None else {"bins": bins, "unit": 1.0}
        if self.total_log is not None:
            columns["total_log"] = self.total_log + self.nonzero * math.log(factor)
        sums = self._sums()
        sums = sums._replace(unit=sums.unit * factor)
        return replace(self, **columns, **_in_range(sums, self.max_abs * factor))

    def _moved(self, factor: float) -> Counts | None:
        """The bins of what lies in these times a factor; None where the grid has no such bins."""
        if factor == 1 or not len(self.bins):
            return self.bins
        mantissa, exponent = math.frexp(factor)
        octave = self.grid.octave
        bins = self.bins.astype(np.int64) + (exponent - 1) * octave
        normal = min(int(self.bins[0]), int(bins[0])) >= octave
        if mantissa != 0.5 or not normal or int(bins[-1]) >= self.grid.first_nonfinite:
            return None
        return narrow(bins)

    def _in_unit(self, unit: float) -> Summary:
        """Itself with bins in another unit, where the grid has them."""
        bins = self._moved(self.unit / unit)
        return self if bins is None else replace(self, bins=bins, unit=unit)

    def __radd__(self, other: object) -> Summary:
        """Itself added to the 0 that `sum` begins with."""
        return self if other == 0 else NotImplemented

    def __add__(self, other: object) -> Summary:
        """The summary of both parts together. Counts are exact; sums are added in float64.

        A Summary of no elements adds to any other.

        Raises:
            ValueError: the grids, their units or the sampling fractions differ.
        """
        if not isinstance(other, Summary):
            return NotImplemented
        if not self.n or not other.n:
            return self if self.n else other
        if self.unit != other.unit:
            one, two = self._in_unit(other.unit), other._in_unit(self.unit)
            if one.unit == other.unit:
                return one + other
            if two.unit == self.unit:
                return self + two
            raise ValueError(f"cannot add summaries: units {self.unit:g} and {other.unit:g}")
        if (self.dtype, self.fraction) != (other.dtype, other.fraction):
            raise ValueError(
                f"cannot add summaries: dtype {self.dtype} at sampling fraction {self.fraction:g} "
                f"and dtype {other.dtype} at {other.fraction:g}"
            )
        if self.version != other.version:
            raise ValueError(
                f"cannot add summaries: grid of {self.dtype} in version {self.version} and in "
                f"version {other.version}; summarise the gradients again, or keep them apart"
            )
        return replace(self, **_joint_counts(self, other), **_joint_sums(self, other))

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
    if not _is_safe(joint["max_abs"]):
        unit = max(one, two, key=lambda part: part.max_abs).power
        parts = (part._sums().over(unit)[1:] for part in (one, two))
        joint["sums"] = Sums(unit, *map(sum, zip(*parts, strict=True)))
    return joint


def of_sums(summary: Summary) -> Summary:
    """A Summary whose sums, where those of g leave float64, were given over its `power`."""
    if _is_safe(summary.max_abs):
        return summary
    sums = Sums(summary.power, summary.total, summary.total_abs, summary.total_sq)
    return replace(summary, **_in_range(sums, summary.max_abs))


def _is_safe(max_abs: float) -> bool:
    return max_abs == 0 or SAFE[0] <= max_abs <= SAFE[1]


def _in_range(sums: Sums, max_abs: float) -> dict[str, Any]:
    """The fields of a Summary with these sums."""
    own = sums.over(1.0)
    fields_ = {"total": own.total, "total_abs": own.total_abs, "total_sq": own.total_sq}
    return {**fields_, "max_abs": max_abs, "sums": None if _is_safe(max_abs) else sums}


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


def _share_above(low: Floats, high: Floats, threshold: float) -> Floats:
    width = high - low
    cut = (low <= threshold) & (threshold < high)
    inside = np.divide(high - threshold, width, out=np.zeros_like(width), where=cut)
    return np.where(low > threshold, 1.0, np.where(high > threshold, inside, 0.0))


def summarize(data: Any, *, fraction: float = 1.0) -> Summary:
    """Summarise a gradient in one pass at memory speed.

    Args:
        data: a gradient of any shape, stride and device, float16, bfloat16, float32 or float64, as
            a tensor or as anything that numpy takes for an array: of either byte order, read-only,
            of xarray, zarr, pandas or jax, or nested lists of numbers. Masked elements and None
            are absent; sparse tensors count their absent elements as zeros. A Summary is returned
            as it is. A list or dict of gradients, such as `[p.grad for p in model.parameters()]`,
            is summarised as one.
        fraction: the share of the gradient's elements that `data` is a random sample of.

    Returns:
        The Summary; of no elements for None.

    Raises:
        TypeError: not floating-point numbers.
        ValueError: a list of gradients whose dtypes differ.

    Example:
        >>> summary = summarize(torch.tensor([0.0, 1.0, -3.0, float("nan")]))
        >>> summary.n, summary.zeros, summary.nan, summary.max_abs, summary.total
        (4, 1, 1, 3.0, -2.0)
    """
    if isinstance(data, Summary):
        return data
    if isinstance(data, Mapping):
        data = list(data.values())
    if isinstance(data, Tensor) and data.is_nested:
        data = list(data.unbind())
    if _is_list_of_gradients(data):
        return sum((summarize(part, fraction=fraction) for part in data), summarize(None))
    grad = as_tensor(data)
    numel = grad.numel()
    if grad.layout is not torch.strided:
        grad = grad.to_sparse_coo().coalesce().values()  # type: ignore[no-untyped-call]
    present = _in_memory_order(grad)
    tally = kernels.count(present)
    absent = numel - len(present)
    tally = tally._replace(positive_zeros=tally.positive_zeros + absent)
    (total_log,) = _log_sums(present, [0, len(present)])
    summary = of_tally(tally, GRIDS[grad.dtype].name, numel, fraction, total_log)
    return _with_safe_sums(summary, present)


def summarize_segments(
    flat: Tensor, offsets: Sequence[int] | NDArray[np.integer], *, fraction: float = 1.0
) -> list[Summary]:
    """Summarise consecutive segments of one flat gradient, such as its parameters.

    Every element is visited once; each Summary equals `summarize` of its segment, bit for bit.

    Args:
        flat: `[n]`, floating point, any device.
        offsets: `[segments + 1]`, from 0 to n, not falling: segment i is
            `flat[offsets[i] : offsets[i + 1]]`.
        fraction: as in `summarize`.

    Raises:
        ValueError: flat has more than one dimension, or offsets do not divide it.

    Example:
        >>> parts = summarize_segments(torch.tensor([1.0, 0.0, -2.0]), [0, 2, 3])
        >>> [part.n for part in parts], [part.max_abs for part in parts]
        ([2, 1], [1.0, 2.0])
    """
    grad = as_tensor(flat)
    if grad.dim() != 1:
        raise ValueError(f"flat must have one dimension, got shape {tuple(grad.shape)}")
    ends = np.array([int(offset) for offset in offsets], np.int64)
    sizes = np.diff(ends)
    if not len(ends) or (sizes < 0).any() or (ends[0], ends[-1]) != (0, grad.numel()):
        every = ends.tolist()
        shown = f"{every[:3]} … {every[-1:]}" if len(every) > 4 else every
        raise ValueError(f"offsets must rise from 0 to {grad.numel()}, got {shown}")
    tallies = kernels.count_segments(grad.contiguous(), ends)
    name = GRIDS[grad.dtype].name
    segments = zip(tallies, pairwise(ends.tolist()), _log_sums(grad, ends), strict=True)
    return [
        _with_safe_sums(of_tally(tally, name, end - start, fraction, log), grad[start:end])
        for tally, (start, end), log in segments
    ]


def _is_list_of_gradients(data: Any) -> bool:
    return isinstance(data, list | tuple) and any(hasattr(part, "dtype") for part in data)


def _with_safe_sums(summary: Summary, present: Tensor) -> Summary:
    """With sums over `power` where those of the elements leave the range of squares."""
    if _is_safe(summary.max_abs):
        return summary
    tally = kernels.count(present * (1 / summary.power))
    return replace(summary, sums=Sums(summary.power, tally.total, tally.total_abs, tally.total_sq))


def _log_sums(flat: Tensor, ends: Sequence[int] | NDArray[np.int64]) -> list[float | None]:
    """Sum of ln|g| over each segment of at most FEW elements; None for others."""
    starts, stops = np.asarray(ends)[:-1], np.asarray(ends)[1:]
    few = np.flatnonzero(stops - starts <= FEW)
    found: list[float | None] = [None] * len(starts)
    for first in range(0, len(few), BATCH):
        some = few[first : first + BATCH]
        spans = zip(starts[some].tolist(), stops[some].tolist(), strict=True)
        magnitudes = torch.cat([flat[start:stop] for start, stop in spans]).double().abs()
        logs = torch.where((magnitudes > 0) & (magnitudes < math.inf), magnitudes, 1.0).log()
        lengths = stops[some] - starts[some]
        sums = np.bincount(np.repeat(np.arange(len(some)), lengths), logs.cpu().numpy(), len(some))
        for i, total in zip(some.tolist(), sums.tolist(), strict=True):
            found[i] = total
    return found


def of_tally(
    tally: kernels.Tally,
    dtype: str,
    numel: int,
    fraction: float = 1.0,
    total_log: float | None = None,
) -> Summary:
    """What was counted of `numel` elements, as a Summary."""
    return Summary(
        dtype=dtype,
        bins=narrow(tally.bins),
        positive=narrow(tally.positive, numel),
        negative=narrow(tally.negative, numel),
        n=numel,
        zeros=tally.positive_zeros + tally.negative_zeros,
        nan=tally.nan,
        positive_inf=tally.positive_inf,
        negative_inf=tally.negative_inf,
        total=tally.total,
        total_abs=tally.total_abs,
        total_sq=tally.total_sq,
        max_abs=tally.max_abs,
        fraction=fraction,
        total_log=total_log,
    )


def narrow(counts: Counts, bound: int | None = None) -> Counts:
    """In the narrowest unsigned dtype: thousands of Summaries are held at a time.

    A small `bound` on the counts saves looking for the largest of them.
    """
    if bound is None or bound > 255:
        bound = int(counts.max(initial=0))
    return counts.astype(np.min_scalar_type(bound))


def _in_memory_order(grad: Tensor) -> Tensor:
    """The elements one after another, copied only where they have gaps or repeat."""
    order = sorted(range(grad.dim()), key=lambda dim: grad.stride(dim), reverse=True)
    return grad.permute(order).reshape(-1).contiguous()
