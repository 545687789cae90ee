"""Summary against brute force on the elements it has forgotten."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradstats.kernels import compact
from gradstats.kernels.grid import GRIDS
from gradstats.ratios import kept_count
from gradstats.summary.summarizing import summarize

N = 400_000
RATIOS = (0.1, 0.01, 0.001)
LAWS = {
    "laplace": lambda rng: rng.laplace(size=N),
    "gamma 0.5": lambda rng: rng.gamma(0.5, size=N),
    "gpd 0.2": lambda rng: rng.pareto(5, N),
    "normal": lambda rng: rng.standard_normal(N),
    "lognormal": lambda rng: rng.lognormal(size=N),
    "weibull 0.5": lambda rng: rng.weibull(0.5, N),
}
FLOATS = arrays.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32))


@cache
def gradient(law, dtype=torch.float32):
    values = LAWS[law](np.random.default_rng(1)) * 1e-2
    values[1::2] *= -1
    return torch.from_numpy(values).to(dtype)


@cache
def sample(law, dtype=torch.float32):
    """The Summary and the sorted non-zero magnitudes that it stands for."""
    magnitudes = np.sort(gradient(law, dtype).double().abs().numpy())
    return summarize(gradient(law, dtype)), magnitudes[magnitudes > 0]


def approximately(summary, other):
    """Equal counts; sums equal but for the order of addition."""
    for name in ("bins", "positive", "negative", "n", "zeros", "nan", "max_abs"):
        assert np.array_equal(getattr(summary, name), getattr(other, name)), name
    for name in ("positive_inf", "negative_inf", "dtype", "fraction"):
        assert getattr(summary, name) == getattr(other, name), name
    slack = 1e-12 * other.total_abs
    assert summary.total == pytest.approx(other.total, abs=slack)
    assert summary.total_abs == pytest.approx(other.total_abs, abs=slack)
    assert summary.total_sq == pytest.approx(other.total_sq, rel=1e-12)
    return True


def test_bins_are_those_of_frexp():
    grad = gradient("laplace").numpy()
    mantissa, exponent = np.frexp(np.abs(grad).astype(np.float64))
    inside = (2 * mantissa - 1) * 128
    cell = 2 * (exponent * 128 + np.floor(inside).astype(int)) + (inside % 1 != 0)
    summary = sample("laplace")[0]
    for counts, part in ((summary.positive, grad > 0), (summary.negative, grad < 0)):
        assert np.array_equal(counts[counts > 0], np.unique(cell[part], return_counts=True)[1])
    assert np.array_equal(summary.counts, np.unique(cell, return_counts=True)[1])


@given(FLOATS)
def test_every_element_is_counted_once(values):
    summary = summarize(values)
    assert summary.n == len(values)
    assert summary.zeros == (values == 0).sum()
    assert summary.nan == np.isnan(values).sum()
    assert (summary.positive_inf, summary.negative_inf) == (
        (values == np.inf).sum(),
        (values == -np.inf).sum(),
    )
    assert summary.positive.sum() == ((values > 0) & np.isfinite(values)).sum()
    assert summary.negative.sum() == ((values < 0) & np.isfinite(values)).sum()
    assert summary.nonzero == summary.counts.sum()
    assert summary.kept(0) == summary.nonzero
    assert np.all(np.diff(summary.bins) > 0)
    assert np.all(summary.counts > 0)


@given(FLOATS, st.lists(st.integers(0, 60), max_size=4), st.randoms(use_true_random=False))
def test_parts_add_to_the_whole_in_any_order(values, cuts, random):
    parts = [summarize(part) for part in np.split(values, sorted(cuts))]
    random.shuffle(parts)
    assert approximately(sum(parts[1:], start=parts[0]), summarize(values))


def test_adding_the_same_way_twice_gives_equal_bits():
    parts = [summarize(part) for part in gradient("normal").split(70_001)]
    assert sum(parts[1:], start=parts[0]) == sum(parts[1:], start=parts[0])
    assert parts[0] + parts[1] != parts[0]


@pytest.mark.parametrize(
    ("one", "other", "fact"),
    [
        ({"dtype": torch.float32}, {"dtype": torch.bfloat16}, "dtype float32 .* dtype bfloat16"),
        ({"fraction": 1.0}, {"fraction": 0.5}, "dtype float32 .* fraction 1 and .* 0.5"),
        ({"version": 1}, {}, "grid of float32 in version 1 and in version 2"),
    ],
)
def test_only_like_summaries_add(one, other, fact):
    def of(dtype=torch.float32, fraction=1.0, version=2):
        return replace(summarize(torch.ones(3, dtype=dtype), fraction=fraction), version=version)

    with pytest.raises(ValueError, match=f"cannot add summaries: {fact}"):
        of(**one) + of(**other)


def test_layout_does_not_matter():
    grad = gradient("laplace")[:6000].reshape(20, 300)
    whole = summarize(grad.reshape(-1))
    assert summarize(grad) == whole
    assert summarize(grad.numpy()) == whole
    assert summarize(whole) is whole
    assert approximately(summarize(grad.T), whole)  # not contiguous, other order
    assert summarize(grad[:, ::3]) == summarize(grad[:, ::3].clone())
    assert summarize(grad.clone().requires_grad_()) == whole


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("layout", ["clone", "coalesce", "to_sparse_csr"])
def test_absent_elements_of_a_sparse_gradient_are_zeros(layout):
    rows, dense = torch.tensor([[4, 1, 4]]), torch.zeros(6, 2)
    values = torch.tensor([[1.0, -2.0], [3.0, 0.0], [-1.0, 5.0]])
    dense.index_add_(0, rows[0], values)
    repeated = torch.sparse_coo_tensor(rows, values, (6, 2), check_invariants=True)
    sparse = getattr(dense if layout == "to_sparse_csr" else repeated, layout)()
    assert approximately(summarize(sparse), summarize(dense))
    assert summarize(sparse).zeros == 10


@pytest.mark.parametrize("dtype", tuple(GRIDS), ids=str)
@pytest.mark.parametrize(
    ("values", "zeros", "bins"),
    [([], 0, 0), ([-2.5], 0, 1), ([0.0, -0.0, 0.0], 3, 0), ([0.5] * 70, 0, 1), ([1, -1, 0], 1, 1)],
    ids=["empty", "one element", "all zeros", "constant", "one magnitude"],
)
def test_small_gradients(dtype, values, zeros, bins):
    grad = torch.tensor(values, dtype=dtype)
    summary = summarize(grad)
    assert (summary.dtype, summary.n) == (str(dtype).removeprefix("torch."), len(values))
    assert (summary.zeros, len(summary.bins)) == (zeros, bins)
    assert (summary.total, summary.total_abs) == (float(grad.sum()), float(grad.abs().sum()))
    assert summary.max_abs == max(map(abs, values), default=0)
    moments = summary.moments()
    assert moments.n == len(values) - zeros
    assert math.isnan(moments.mean) == (moments.n == 0)
    assert math.isnan(moments.var) == (moments.n < 2)
    assert not (moments.n and moments.distinct)


@pytest.mark.parametrize(
    "data", [torch.arange(3), np.array(["a"]), torch.zeros(2, dtype=torch.bool)]
)
def test_only_floating_point_gradients(data):
    with pytest.raises(TypeError):
        summarize(data)


@pytest.mark.parametrize("law", LAWS)
def test_quantiles_of_float32_draws(law):
    """Within 0.14 % of k, or the sampling noise of where elements lie inside the cut bin.

    A bin with c elements splits as a binomial: 3 sd are at most 1.5 sqrt(c) elements. At 400 of
    them (the ratio 0.001) this, not the grid, is what limits k-hat/k.
    """
    summary, magnitudes = sample(law)
    for ratio in RATIOS:
        threshold = summary.quantile(ratio)
        wanted = ratio * N
        selected = len(compact(gradient(law), threshold)[0])
        low, high = summary.edges
        cut = summary.counts[(low <= threshold) & (threshold <= high)].sum()
        assert selected == len(magnitudes) - np.searchsorted(magnitudes, threshold, "right")
        assert abs(selected - wanted) <= max(0.0014 * wanted, 1.5 * math.sqrt(cut))
        assert summary.kept(threshold) == pytest.approx(wanted, rel=1e-9)


@cache
def point_masses(law, kind):
    """A gradient of few values, 1,000 times smaller so that float16 has subnormals of it."""
    values = gradient(law, torch.float64) * 1e-3
    if kind == "float16":
        return values.half()
    rounded = values.bfloat16()
    return rounded if kind == "bfloat16" else rounded.to(getattr(torch, kind))


POINTS = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("kind", POINTS)
@pytest.mark.parametrize("law", LAWS)
def test_quantiles_of_point_masses_are_exact(law, kind):
    """A bin is a value: the threshold is an element, and keeping its equals too overshoots."""
    grad = point_masses(law, kind)
    summary = summarize(grad)
    for ratio in RATIOS:
        threshold = summary.quantile(ratio)
        selected = len(compact(grad, threshold)[0])
        equal = int((grad.abs() == threshold).sum())
        assert selected < ratio * summary.nonzero <= selected + equal
        assert summary.kept(threshold) == selected
    assert summary.distinct == len(np.unique(grad.double().abs().numpy())) - (summary.zeros > 0)
    assert summary.point_share == 1


@pytest.mark.parametrize("kind", POINTS)
@pytest.mark.parametrize("law", LAWS)
def test_moments_and_excesses_of_point_masses_are_exact(law, kind):
    grad = point_masses(law, kind)
    summary, magnitudes = summarize(grad), np.sort(grad.double().abs().numpy())
    magnitudes = magnitudes[magnitudes > 0]
    moments = summary.moments()
    assert moments.mean_log == pytest.approx(np.log(magnitudes).mean(), rel=1e-12)
    for threshold in np.quantile(magnitudes, [0.3, 0.9, 0.999]) * [1, 1.001, 1]:
        over = magnitudes[magnitudes > threshold] - threshold
        excess = summary.excess(float(threshold))
        assert excess.n == len(over)
        assert excess.mean == pytest.approx(over.mean(), rel=1e-12)
        assert excess.var == pytest.approx(over.var(ddof=1), rel=1e-9)


def test_values_that_were_bfloat16_are_told_from_others_of_their_sum():
    """Matrices under autocast and float32 biases, in one Summary: each keeps its place."""
    once, others = point_masses("laplace", "float32"), gradient("normal") * 1e-3
    summary = summarize(torch.cat([once, others]))
    together = summarize([once, others])
    assert approximately(together, summary)
    assert summary.point_share == pytest.approx(len(once) / (len(once) + len(others)), abs=1e-4)
    both = np.concatenate([once.abs().numpy(), others.abs().numpy()])
    for ratio in RATIOS:
        threshold = summary.quantile(ratio)
        selected = (both > threshold).sum()
        equal = (both == np.float32(threshold)).sum()
        assert selected <= ratio * len(both) * 1.0014 <= (selected + equal) * 1.0028


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("law", LAWS)
def test_moments(law, dtype):
    summary, magnitudes = sample(law, dtype)
    moments = summary.moments()
    assert moments.n == len(magnitudes)
    assert moments.mean == pytest.approx(magnitudes.mean(), rel=1e-12)
    assert moments.var == pytest.approx(magnitudes.var(ddof=1), rel=1e-9)
    slack = {torch.float32: 2e-5, torch.float16: 1e-12, torch.bfloat16: 1e-12}[dtype]
    assert moments.mean_log == pytest.approx(np.log(magnitudes).mean(), abs=slack)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("ratio", [0.25, 0.05, 0.01])
def test_excess_moments_of_float32(law, ratio):
    """Within 0.14 % or 3 sd of the cut bin's split, which n, mean and variance all share."""
    summary, magnitudes = sample(law)
    threshold = float(np.quantile(magnitudes, 1 - ratio))
    over = magnitudes[magnitudes > threshold] - threshold
    low, high = summary.edges
    cut = summary.counts[(low <= threshold) & (threshold <= high)].sum()
    slack = max(0.0014, 1.5 * math.sqrt(cut) / len(over))
    excess = summary.excess(threshold)
    assert excess.n == pytest.approx(len(over), rel=slack)
    assert excess.mean == pytest.approx(over.mean(), rel=slack)
    assert excess.var == pytest.approx(over.var(ddof=1), rel=slack)
    assert math.isnan(excess.mean_log)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("ratio", [0.25, 0.05, 0.01])
def test_excess_moments_of_bfloat16_are_exact(law, ratio):
    summary, magnitudes = sample(law, torch.bfloat16)
    for threshold in (summary.quantile(ratio), summary.quantile(ratio) * 1.001):
        over = magnitudes[magnitudes > threshold] - threshold
        excess = summary.excess(threshold)
        assert excess.n == len(over)
        assert excess.mean == pytest.approx(over.mean(), rel=1e-12)
        assert excess.var == pytest.approx(over.var(ddof=1), rel=1e-9)


def test_excess_ends():
    summary, magnitudes = sample("normal")
    assert summary.excess(0) == summary.moments()
    without = summary.excess(0, logs=False)
    assert math.isnan(without.mean_log)
    assert replace(without, mean_log=summary.moments().mean_log) == summary.moments()
    beyond = summary.excess(float(magnitudes[-1]) * 2)
    assert (beyond.n, math.isnan(beyond.mean)) == (0, True)
    assert math.isnan(summarize(torch.tensor([1.0, 2.0])).excess(1.5).var)
    assert summarize(torch.zeros(4)).kept(1.0) == 0


def test_excess_spreads_inside_its_bins():
    magnitudes = torch.linspace(1, 2, 100_001, dtype=torch.float64)[:-1]
    assert summarize(magnitudes).excess(1.99).var == pytest.approx(0.01**2 / 12, rel=0.01)


@given(st.floats(1e-6, 10), st.floats(1e-6, 10))
def test_kept_falls_and_excess_counts_what_it_keeps(one, other):
    summary = sample("gpd 0.2")[0]
    low, high = sorted((one, other))
    assert summary.kept(low) >= summary.kept(high)
    assert summary.excess(high).n == pytest.approx(summary.kept(high))


def test_quantile_refuses():
    summary = sample("normal")[0]
    for ratio in (0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"ratio must lie in \(0, 1\].*got"):
            summary.quantile(ratio)
    with pytest.raises(ValueError, match=r"cannot take a quantile: .* among 3"):
        summarize(torch.zeros(3)).quantile(0.5)
    assert summary.quantile(1.0) <= sample("normal")[1][0]


@pytest.mark.parametrize("law", LAWS)
def test_a_summary_stays_small(law):
    assert len(sample(law)[0].bins) < 8500
    layers = sum((summarize(gradient(law) * 10.0**-i) for i in range(6)), start=sample(law)[0])
    assert len(layers.bins) < 8500


@pytest.mark.parametrize(
    ("numel", "ratio", "k"),
    [(1000, 0.01, 10), (5, 0.01, 1), (250, 0.01, 2), (7, 1, 7), (0, 0.5, 0), (1, 0.9, 1)],
)
def test_kept_count(numel, ratio, k):
    assert kept_count(numel, ratio) == k


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_magnitude_lies_within_the_edges_of_its_bin(dtype):
    grad = torch.from_numpy(np.random.default_rng(4).laplace(size=5_000)).to(dtype)
    summary, magnitudes = summarize(grad), grad.double().abs().sort().values.numpy()
    ends = np.cumsum(summary.counts)
    low, high = summary.edges
    assert (low <= magnitudes[ends - summary.counts]).all()
    assert (magnitudes[ends - 1] <= high).all()
    assert (high[:-1] <= low[1:]).all()
