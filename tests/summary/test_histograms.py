"""Summaries of counted values and of histograms, against the elements themselves."""

import numpy as np
import pytest
import torch

from gradstats import summarize, summarize_counts, summarize_histogram
from gradstats.kernels.grid import GRIDS
from tests.summary.test_tensors import same

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("dtype", tuple(GRIDS), ids=str)
def test_counted_values_are_those_values_repeated(dtype):
    values = torch.from_numpy(RNG.laplace(size=300)).to(dtype)
    values[:6] = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 6e-8]).to(dtype)
    counts = RNG.integers(0, 9, 300)
    assert same(
        summarize_counts(values, counts),
        summarize(values.repeat_interleave(torch.from_numpy(counts))),
    )


def test_counts_may_be_large_and_floats():
    assert summarize_counts([1.0, -2.0], [2e15, 1.0]).n == 2 * 10**15 + 1
    assert summarize_counts([], []).n == 0


@pytest.mark.parametrize("counts", [[0.5, 1], [-1, 2], [np.nan, 1], [np.inf, 1], [1, 2**60]])
def test_weights_that_count_nothing_are_refused(counts):
    with pytest.raises(
        ValueError, match="counts must be whole numbers from 0 to 9007199254740992, got"
    ):
        summarize_counts([1.0, 2.0], counts)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="counts must be as many as values, got 1 and 2"):
        summarize_counts([1.0, 2.0], [1])
    with pytest.raises(ValueError, match="edges must be one more than counts, got 2 and 2"):
        summarize_histogram([1, 1], [0.0, 1.0])


@pytest.mark.parametrize("bins", [64, 1000])
def test_a_histogram_stands_for_its_elements(bins):
    grad = RNG.laplace(size=200_000)
    counts, edges = np.histogram(grad, bins=bins)
    ours, exact = summarize_histogram(counts, edges), summarize(grad)
    width = edges[1] - edges[0]
    assert ours.n == exact.n
    assert ours.total == pytest.approx(exact.total, abs=exact.n * width / 2)
    assert ours.moments().var == pytest.approx(exact.moments().var, rel=0.5 * width)
    for ratio in (0.5, 0.1, 0.01, 0.001):
        assert ours.quantile(ratio) == pytest.approx(exact.quantile(ratio), abs=width)


def test_elements_lie_evenly_in_their_bin():
    """Against the closed forms of a uniform law."""
    a, b, n = -1.0, 3.0, 10**6
    summary = summarize_histogram([n], [a, b])
    assert summary.total / n == pytest.approx((a + b) / 2, abs=1e-9)
    assert summary.total_sq / n == pytest.approx((a * a + a * b + b * b) / 3, rel=1e-4)
    assert summary.negative.sum() / n == pytest.approx(0.25, abs=0.01)
    assert summary.kept(2.0) / n == pytest.approx(0.25, abs=0.01)


def test_few_elements_are_as_many_as_they_were():
    counts = np.array([0, 1, 3, 0, 2, 300])
    summary = summarize_histogram(counts, [-np.inf, -2, -1, 0, 0.5, 0.5, 1])
    assert summary.n == counts.sum()
    assert summary.kept(0.49999) >= 302  # two at 0.5 exactly, and those above


def test_edges_are_checked():
    with pytest.raises(ValueError, match="edges must not fall"):
        summarize_histogram([1, 1], [0.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="finite where a bin holds elements"):
        summarize_histogram([1, 1], [0.0, 1.0, np.inf])
