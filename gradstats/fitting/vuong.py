"""Vuong's test of two fitted distributions, with dependent elements allowed for by blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special

from gradstats.families import Family
from gradstats.fitting.goodness import log_likelihood
from gradstats.summary import Summary

Floats = NDArray[np.float64]
LEVEL = 0.05  # p-value from which nothing can be told
CORRECTIONS = ("none", "aic", "bic")
NON_NESTED, NESTED, OVERLAPPING = "non-nested", "nested", "overlapping"


@dataclass(frozen=True, eq=False)
class Blocks:
    """The elements of a gradient in contiguous blocks.

    Attributes:
        whole: Summary of all elements.
        parts: Summary of each block with a finite non-zero element, in order; none if the order of
            the elements is not known.
    """

    whole: Summary
    parts: Sequence[Summary] = ()

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Finite non-zero elements of each block, `[blocks]`."""
        return np.array([part.nonzero for part in self.parts], np.int64)

    def sums(self, values: Floats) -> Floats:
        """The sum over each block of a function of |g|, `[blocks]`.

        Args:
            values: the function at the centres of the bins of `whole`.
        """
        bins = self.whole.bins
        pairs = ((part, values[np.searchsorted(bins, part.bins)]) for part in self.parts)
        return np.array([float(part.counts @ own) for part, own in pairs])


@dataclass(frozen=True)
class Comparison:
    r"""What Vuong's test says of two fitted distributions.

    With :math:`l_i = \ln f_1(g_i) - \ln f_2(g_i)` and n finite non-zero elements,

    .. math:: z = \frac{\sum_i l_i - c}{\sqrt{n}\,\omega}, \qquad
              \omega^2 = \frac{B}{(B - 1)\,n} \sum_{j=1}^{B} (L_j - n_j \bar l)^2

    with :math:`L_j` the sum of :math:`l_i` over block j of :math:`n_j` contiguous elements, and c
    the correction for the numbers of parameters.

    Attributes:
        mean_log_ratio: mean of l in nats per element: the size of the difference. Positive: the
            first distribution is nearer to the data.
        z: positive for the first; NaN if it has no normal limit (nested families, distributions
            that are too alike), without blocks, and if a distribution excludes an element.
        p: two-sided, of Student's t with B - 1 degrees of freedom for z; of the likelihood ratio's
            chi-squared for nested families.
        z_independent: z with the variance of single elements, as if they were independent.
        inflation: variance by blocks over the variance of independent elements; n / inflation is
            the number of independent elements that would be as informative.
        relation: "nested", "overlapping" or "non-nested".
        alike: whether the two fitted distributions differ by no more than estimation makes them.
        better: 1 or 2; 0: cannot tell.
    """

    mean_log_ratio: float
    z: float
    p: float
    z_independent: float
    inflation: float
    relation: str
    alike: bool = False
    better: int = 0


def relation_of(first: type[Family], second: type[Family]) -> str:
    """How two families are related: by what they declare as their special cases.

    Example:
        >>> from gradstats.families import DGamma, Laplace, LogNorm, DWeibull
        >>> relation_of(Laplace, DGamma), relation_of(DGamma, DWeibull)
        ('nested', 'overlapping')
        >>> relation_of(Laplace, LogNorm)
        'non-nested'
    """
    if second.name in first.special_cases or first.name in second.special_cases:
        return NESTED
    shared = set(first.special_cases) & set(second.special_cases)
    return OVERLAPPING if shared else NON_NESTED


def compare(first: Family, second: Family, blocks: Blocks, *, correction: str) -> Comparison:
    """Compare two distributions that were fitted to all elements of `blocks`.

    Args:
        first: a fitted distribution.
        second: a fitted distribution of another family.
        blocks: the elements.
        correction: c of the formula: "none", "aic" (p - q) or "bic" ((p - q) ln(n) / 2) for p and
            q parameters.
    """
    relation, whole = relation_of(type(first), type(second)), blocks.whole
    if first.free == second.free and relation == NESTED:
        relation = OVERLAPPING  # the likelihood ratio has no parameter to test
    means = [log_likelihood(law, whole) for law in (first, second)]
    if not np.isfinite(means).all():
        return _excluded(means, relation)
    centres = np.minimum(whole.centres, whole.max_abs)
    ratio = np.asarray(first.logpdf(centres) - second.logpdf(centres), np.float64)
    n, mean = whole.nonzero, means[0] - means[1]
    single = float(whole.counts @ (ratio - mean) ** 2) / n
    total = n * mean - _correction(correction, first.free - second.free, n)
    independent = _over(total, math.sqrt(n * single))
    if len(blocks.parts) < 2:
        return Comparison(mean, math.nan, math.nan, independent, math.nan, relation)
    inflation = _over(_block_variance(blocks, ratio, mean), single)
    if relation == NESTED:
        p = _of_likelihood_ratio(first, second, n * mean / max(inflation, 1.0))
        better = _better(mean, p)
        return Comparison(mean, math.nan, p, math.nan, inflation, relation, False, better)
    if _too_alike(n * single, inflation, first.free + second.free):
        return Comparison(mean, math.nan, math.nan, math.nan, inflation, relation, True)
    z = _over(independent, math.sqrt(inflation))
    p = _two_sided(z, len(blocks.parts) - 1)
    return Comparison(mean, z, p, independent, inflation, relation, False, _better(total, p))


def _block_variance(blocks: Blocks, ratio: Floats, mean: float) -> float:
    count, n = len(blocks.parts), blocks.whole.nonzero
    deviations = blocks.sums(ratio) - blocks.sizes * mean
    return float(deviations @ deviations) / n * count / (count - 1)


def _correction(kind: str, more: int, n: int) -> float:
    return {"none": 0.0, "aic": float(more), "bic": more * math.log(n) / 2}[kind]


def _over(value: float, by: float) -> float:
    return value / by if by > 0 else math.nan


def _two_sided(z: float, degrees: int) -> float:
    return 2 * float(special.stdtr(degrees, -abs(z)))


def _of_likelihood_ratio(first: Family, second: Family, log_ratio: float) -> float:
    """P-value of the smaller family: 2 ln of the ratio is chi-squared if it is right."""
    more = first.free - second.free
    gain = 2 * log_ratio * (1 if more > 0 else -1)
    return float(special.chdtrc(abs(more), max(gain, 0.0)))


def _too_alike(total_square: float, inflation: float, free: int) -> bool:
    """Whether the variance of l is what estimation alone makes it, so that z has no normal limit.

    Vuong's first step: if both distributions are one, n ω² is a weighted sum of chi-squared
    numbers, one per parameter.
    """
    limit = float(special.chdtri(free, LEVEL))
    return not total_square > limit * max(inflation, 1.0)


def _better(total: float, p: float) -> int:
    if not p < LEVEL:
        return 0
    return 1 if total > 0 else 2


def _excluded(means: Sequence[float], relation: str) -> Comparison:
    """One distribution ends before the largest magnitude, or both do."""
    difference = means[0] - means[1] if means[0] != means[1] else math.nan
    better = 0 if math.isnan(difference) else 1 if difference > 0 else 2
    nothing = math.nan
    return Comparison(
        difference, nothing, nothing, nothing, nothing, relation, alike=False, better=better
    )
