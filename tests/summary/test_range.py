"""Sums of gradients whose squares leave float64, and of logarithms of few elements."""

import math
from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
import torch

from gradstats.summary import Summary, summarize, summarize_segments
from gradstats.summary.encoding import from_bytes, to_bytes

EXPONENTS = (-1060, -1000, -600, -540, 0, 500, 700, 1000, 1020)
NORMAL = np.random.default_rng(0).standard_normal(5_000)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_moments_follow_a_power_of_two_over_the_whole_range_of_float64(exponent):
    """At 2^-1060 the elements are subnormal: they are rounded, and share bins."""
    values = np.ldexp(NORMAL, exponent)
    scaled = summarize(values).scaled(2.0**-exponent if exponent >= -1000 else 2.0**1000)
    rounded = np.ldexp(values, min(-exponent, 1000))
    exact = np.abs(rounded)
    found = scaled.moments()
    assert found.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert found.var == pytest.approx(exact.var(ddof=1), rel=1e-12)
    if exponent > -1060:
        assert found.mean_log == pytest.approx(np.log(exact).mean(), abs=2e-3)
    assert scaled.mean == pytest.approx(rounded.mean(), rel=1e-9)
    assert scaled.norm == pytest.approx(np.linalg.norm(rounded), rel=1e-12)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_parts_add_up_to_the_whole_out_of_the_range_of_squares(exponent):
    values = np.ldexp(NORMAL, exponent)
    values[:1000] *= 2.0**-40
    whole, parts = summarize(values), summarize_segments_of(values)
    joined = reduce(add, parts)
    assert joined.norm == pytest.approx(whole.norm, rel=1e-12)
    assert joined.mean == pytest.approx(whole.mean, rel=1e-9)
    assert joined == whole or math.isclose(joined.total_abs, whole.total_abs, rel_tol=1e-12)


def summarize_segments_of(values):
    return summarize_segments(torch.from_numpy(values), [0, 7, 1000, 1000, 5000])


@pytest.mark.parametrize("values", [[1e200, 1.0, 1e-300], [1e308] * 3, [5e-324], [-1e308, 1e308]])
def test_the_norm_of_mixtures_is_that_of_exact_arithmetic(values):
    exact = math.hypot(*(value / max(map(abs, values)) for value in values))
    found = summarize(np.array(values)).norm / max(map(abs, values))
    assert found == pytest.approx(exact, rel=1e-12)


def test_a_stored_summary_has_the_moments_of_its_bins_where_squares_overflow():
    values = np.ldexp(NORMAL, 700)
    (stored,) = from_bytes(to_bytes([summarize(values)]))
    assert isinstance(stored, Summary)
    assert stored.norm == pytest.approx(math.ldexp(np.linalg.norm(NORMAL), 700), rel=1e-3)


def test_the_mean_logarithm_of_few_elements_is_exact():
    values = np.random.default_rng(1).gamma(0.7, 1e-3, 47)
    exact = np.log(values).mean()
    assert summarize(values).moments().mean_log == pytest.approx(exact, rel=1e-14)
    joined = summarize(values[:20]) + summarize(values[20:])
    assert joined.moments().mean_log == pytest.approx(exact, rel=1e-14)
    assert joined.scaled(3.0).moments().mean_log == pytest.approx(exact + math.log(3), rel=1e-13)


def test_the_mean_logarithm_of_bins_moves_with_the_exact_mean():
    """Integers lie at the lower edge of their bins: mean and mean ln are off alike."""
    values = np.repeat(np.arange(1.0, 48.0), 100)
    found = summarize(values).moments()
    assert found.mean == values.mean()
    assert found.mean_log == pytest.approx(np.log(values).mean(), abs=1e-4)  # a bin: 4e-3


def test_a_threshold_at_an_edge_keeps_the_whole_bin():
    summary = summarize(NORMAL)
    low, high = summary.edges
    for place in (0, 40, len(low) - 1):
        assert summary.kept(low[place]) == summary.counts[place:].sum()
        assert summary.kept(high[place]) == summary.counts[place + 1 :].sum()
    assert summarize(np.array([5e-324, 1e308])).kept(1e300) == 1


def test_logarithms_of_segments_are_those_of_each_alone():
    values = torch.from_numpy(NORMAL.copy())
    values[[0, 30, 31]] = torch.tensor([0.0, math.inf, math.nan], dtype=torch.float64)
    offsets = [0, 1, 1, 30, 32, 900, 3000, 3001, 5000]
    found = summarize_segments(values, offsets)
    for summary, (start, end) in zip(found, pairwise(offsets), strict=True):
        alone = summarize(values[start:end]).total_log
        if alone is None:
            assert summary.total_log is None
            assert end - start > 1024
            continue
        part = values[start:end].abs()
        exact = part[part.isfinite() & (part > 0)].log().sum().item()
        assert summary.total_log == pytest.approx(exact, rel=1e-12)
        assert alone == pytest.approx(exact, rel=1e-12)
