"""Torch and numba kernels against each other and against a definition written another way."""

import math
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from gradstats import kernels
from gradstats.kernels import counting_cpu, counting_eager, selecting_eager, threads
from gradstats.kernels.grid import GRIDS, _pattern, round_down

DTYPES = tuple(GRIDS)
ROWS = ("bins", "positive", "negative")
COUNTED = ("positive_zeros", "negative_zeros", "nan", "positive_inf", "negative_inf")


def same_rows(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ROWS)


def draws(n, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.laplace(size=n) * 10.0 ** rng.integers(-3, 3, n)).to(dtype)


def specials(dtype):
    info = torch.finfo(dtype)
    magnitudes = (0.0, math.inf, math.nan, info.max, info.tiny, info.smallest_normal / 2, 1, 1.5)
    values = torch.tensor([sign * m for m in magnitudes for sign in (1, -1)], dtype=torch.float64)
    smallest = torch.tensor([1, 1 - 2 ** (info.bits - 1)])  # patterns of ± the least subnormal
    integers = {16: torch.int16, 32: torch.int32, 64: torch.int64}[info.bits]
    return torch.cat([values.to(dtype), smallest.to(integers).view(dtype)])


def bin_of(value, dtype):
    """The bin of a finite magnitude by frexp, from its exponent and its leading mantissa bits.

    16-bit dtypes have one per value; the others two per 128th of an octave, one for its lower end.
    """
    info = torch.finfo(dtype)
    cells = round(1 / info.eps) if info.bits == 16 else 128
    mantissa, exponent = math.frexp(value)
    octaves, inside = exponent - math.frexp(info.tiny)[1] + 1, mantissa * 2 - 1
    if value < info.tiny:  # zero and subnormals are spaced as at the lowest exponent
        octaves, inside = 0, value / info.tiny
    cell = octaves * cells + int(inside * cells)
    return cell if info.bits == 16 else 2 * cell + (inside * cells % 1 != 0)


def expected_counts(values):
    grid = GRIDS[values.dtype]
    counts = np.zeros((2, grid.bins), np.int64)
    for value in values.double().tolist():
        if math.isfinite(value):
            negative = int(math.copysign(1, value) < 0)
            counts[negative, bin_of(abs(value), values.dtype)] += 1
    return counts


def same_pair(actual, expected):
    """Equal indices, and values that are equal bit by bit."""
    (indices, values), (other_indices, other_values) = actual, expected
    bits = _pattern(values), _pattern(other_values)
    return torch.equal(indices, other_indices) and torch.equal(*bits)


@pytest.mark.parametrize("kernel", [counting_eager, counting_cpu], ids=["eager", "numba"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_are_those_of_exponent_and_mantissa(kernel, dtype):
    values = torch.cat([draws(3000, dtype), specials(dtype)])
    tally = kernel.count(values)
    grid = GRIDS[dtype]
    dense = np.zeros((2, grid.bins), np.int64)
    dense[:, tally.bins] = tally.positive, tally.negative
    dense[:, 0] += tally.positive_zeros, tally.negative_zeros
    assert np.array_equal(dense, expected_counts(values))
    assert [getattr(tally, name) for name in COUNTED] == [1, 1, 2, 1, 1]
    assert np.all(np.diff(tally.bins) > 0)
    assert np.all(tally.positive + tally.negative > 0)


@pytest.mark.parametrize("kernel", [counting_eager, counting_cpu], ids=["eager", "numba"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_run_over_finite_values_alone(kernel, dtype):
    values = torch.cat([draws(40_000, dtype), torch.tensor([math.inf, -math.inf, math.nan])])
    values = values.to(dtype)
    finite = [x for x in values.double().tolist() if math.isfinite(x)]
    tally = kernel.count(values)
    assert tally.total == pytest.approx(math.fsum(finite), rel=1e-9, abs=1e-9)
    assert tally.total_abs == pytest.approx(math.fsum(map(abs, finite)), rel=1e-12)
    assert tally.total_sq == pytest.approx(math.fsum(x * x for x in finite), rel=1e-12)
    assert tally.max_abs == max(map(abs, finite))


SIZES = (0, 1, 2, 2**14 - 1, 2**14, 2**14 + 1, 3 * 2**14 + 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_kernels_agree_at_block_boundaries(dtype, n):
    values = draws(n, dtype, seed=n)
    if n > 40:  # a special value on each side of the boundary between blocks
        values[-20:] = values[2**14 - 40 : 2**14 - 20] = specials(dtype).repeat(2)[:20]
    ours, definition = counting_cpu.count(values), counting_eager.count(values)
    assert same_rows(ours, definition)
    assert all(getattr(ours, name) == getattr(definition, name) for name in COUNTED)
    assert ours.max_abs == definition.max_abs
    for threshold in (0.0, 0.7, 1e30):
        assert same_pair(
            kernels.compact(values, threshold), selecting_eager.compact(values, threshold)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("once_bfloat16", [0.001, 0.5, 1.0])
def test_kernels_count_values_that_were_bfloat16_apart(dtype, zeros, once_bfloat16):
    rng = torch.Generator().manual_seed(7)
    values = draws(2**19 + 5 * 2**14 + 3, dtype)
    rounded = values.to(torch.bfloat16).to(dtype)
    for part in (slice(0, 2**18), slice(2**18, None)):  # scattered, and whole blocks of them
        length = len(values[part])
        chosen = torch.rand(length, generator=rng) < once_bfloat16
        values[part] = torch.where(chosen, rounded[part], values[part])
        values[part][torch.rand(length, generator=rng) < zeros] = -0.0
    values[-(2**17) :] = values[-(2**17) :].to(torch.bfloat16).to(dtype)
    ours, definition = counting_cpu.count(values), counting_eager.count(values)
    assert same_rows(ours, definition)
    points = values[(values != 0) & (values == values.to(torch.bfloat16).to(dtype))]
    assert ((ours.positive + ours.negative) * (ours.bins % 2 == 0)).sum() == len(points)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_values_are_tallied_alike_whether_they_repeat_or_not(dtype):
    values = draws(2**19 + 3 * 2**14 + 5, dtype)
    values[: 2**17] = 0.37
    values[2**17 : 2**18] = -0.0
    values[-len(specials(dtype)) :] = specials(dtype)
    ours, definition = counting_cpu.count(values), counting_eager.count(values)
    assert same_rows(ours, definition)
    assert ours[3:] == definition[3:]  # the sums too, to the last bit


def test_blocks_of_other_kinds_one_after_another_are_counted_apart():
    """Each block is counted into the table that was right for the one before."""
    rough, zeros = draws(2**14, torch.float32), torch.zeros(2**14)
    points = rough.bfloat16().float()
    few = torch.where(torch.arange(2**14) % 8 == 0, rough, 0.0)
    kinds = {"r": rough, "p": points, "z": zeros, "f": few, "m": torch.cat([rough, points])[::2]}
    order = "rrpprpzrzpffrfpmmpmzmrm"
    values = torch.cat([kinds[each] for each in order]).contiguous()
    ours, definition = counting_cpu.count(values), counting_eager.count(values)
    assert same_rows(ours, definition)
    assert all(getattr(ours, name) == getattr(definition, name) for name in COUNTED)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [2**18 - 1, 2**19, 2**19 + 2**14 + 3])
def test_threads_change_no_bit(dtype, n):
    values = draws(n, dtype, seed=n)
    values[[5, n // 2, n - 1]] = torch.tensor([math.nan, math.inf, 0]).to(dtype)
    before = torch.get_num_threads()
    results = {}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results[threads] = kernels.count(values), kernels.compact(values, 0.5)
    finally:
        torch.set_num_threads(before)
    tally, chosen = results[1]
    definition = counting_eager.count(values)
    assert same_rows(tally, definition)
    assert same_pair(chosen, selecting_eager.compact(values, 0.5))
    for other, also_chosen in (results[2], results[3]):
        assert same_rows(other, tally)
        assert other[len(ROWS) :] == tally[len(ROWS) :]
        assert same_pair(also_chosen, chosen)


@pytest.mark.parametrize(
    "compact", [selecting_eager.compact, kernels.compact], ids=["eager", "chosen"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compact_compares_real_numbers_and_keeps_every_nan(compact, dtype):
    values = torch.cat([draws(500, dtype), specials(dtype)])
    exact = values.double().abs().tolist()
    # thresholds between two neighbours, on a value, at 0, above the range of float16
    for threshold in (0.0, 0.3, 1.0, 1.0000001, 1.0039, 1.0041, 1e6, 1e300):
        expected = [i for i, x in enumerate(exact) if x > threshold or math.isnan(x)]
        assert compact(values, threshold)[0].tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_down_is_the_largest_value_not_above(dtype):
    rng = np.random.default_rng(3)
    for threshold in [0.0, 1.0, 1e-46, 1e300, *np.exp(rng.uniform(-8, 8, 300)).tolist()]:
        low = round_down(threshold, dtype)
        pattern = torch.tensor([low], dtype=dtype).view(_pattern(specials(dtype)).dtype) + 1
        assert low <= threshold < pattern.view(dtype).item()


def test_compact_returns_sorted_int64_indices():
    chosen, _ = kernels.compact(torch.tensor([3.0, -4.0, 0.0, 5.0]), 3.5)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == [1, 3]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_edges_are_the_extreme_values_of_their_bin(dtype):
    grid = GRIDS[dtype]
    bins = np.array([0, 1, 2, 130, grid.first_nonfinite // 2, grid.first_nonfinite - 1])
    low, high = grid.edges(bins)
    assert high[-1] == torch.finfo(dtype).max
    for edge in (low, high):
        assert [bin_of(value, dtype) for value in edge.tolist()] == bins.tolist()
    following, _ = grid.edges(bins[:-1] + 1)
    assert np.all(high[:-1] < following)
    single = bins % 2 == 0 if dtype.itemsize > 2 else bins >= 0
    assert np.array_equal(low == high, single)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 2**14 - 1, 2**14, 2**14 + 1, 2**19 + 2**14 + 3, 2**20 + 7])
def test_sums_of_magnitudes_are_those_of_the_counts(dtype, n):
    values, before = draws(n, dtype, seed=n), torch.get_num_threads()
    values[n // 2 :: 7] = -0.0
    tally = kernels.count(values)
    counted = int(tally.positive.sum() + tally.negative.sum())
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sums = kernels.sum_magnitudes(values)
            assert sums == (counted, tally.total_abs)
    finally:
        torch.set_num_threads(before)


def test_sums_of_magnitudes_are_left_to_the_counts():
    values = torch.ones(5)
    assert kernels.sum_magnitudes(values) == (5, 5.0)
    for broken in (math.nan, math.inf, -math.inf):
        assert kernels.sum_magnitudes(torch.tensor([1.0, broken])) is None
    assert kernels.sum_magnitudes(values.half()) is None
    assert kernels.sum_magnitudes(values[:0]) is None
    with kernels.use("eager"):
        assert kernels.sum_magnitudes(values) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 3, 2**14 - 1, 2**14, 2**14 + 1, 2**20 + 7])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_deviations_against_extended_precision(dtype, n, mean):
    values, before = (draws(n, torch.float32, seed=n) + mean).to(dtype), torch.get_num_threads()
    exact = values.double().numpy().astype(np.longdouble)
    expected = np.sqrt(((exact - exact.mean()) ** 2).sum() / (n - 1))
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = kernels.deviation(values)
            assert (found.dtype, found.shape) == (torch.float64, ())
            assert found.item() == pytest.approx(float(expected), rel=1e-12)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_the_deviation_of_what_is_not_finite_is_nan(broken):
    values = torch.ones(40_000)
    assert kernels.deviation(values) == 0
    values[123] = broken
    assert kernels.deviation(values).isnan()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_that_are_kept_serve_many_callers_and_not_a_forked_child():
    values, before = torch.randn(3_000_000), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = kernels.count(values).total
        with ThreadPoolExecutor(6) as callers:
            assert {each.total for each in callers.map(kernels.count, [values] * 12)} == {expected}
        assert threads._pool() is threads._pool()
        if hasattr(os, "register_at_fork"):
            kept = threads._pool()
            with multiprocessing.get_context("fork").Pool(1) as child:
                assert child.apply(_total_of_three_million) == 3_000_000
            assert threads._pool() is kept
    finally:
        torch.set_num_threads(before)


def _total_of_three_million():
    return kernels.count(torch.from_numpy(np.ones(3_000_000, np.float32))).total
