"""The k largest, exactly: numba and torch against a stable sort by numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstats import kernels
from gradstats.kernels import (
    selecting_cpu,
    selecting_cpu_vectors,
    selecting_eager,
)
from gradstats.kernels import threads as sharing
from gradstats.kernels.grid import INTEGERS, round_down
from gradstats.kernels.selecting_cpu_vectors import as_tensors, pattern_below, vector_of
from tests.kernels.test_counting import DTYPES, draws, same_pair, specials

WAYS = (selecting_cpu._largest_of_few, selecting_cpu._largest)  # of short vectors, of long ones
SAMPLE = selecting_cpu_vectors.SAMPLE
N = SAMPLE + 1234


def oracle(values, k):
    """Places of the k largest magnitudes: NaN first, then by size, equals in their order."""
    magnitudes = values.abs().double().numpy()
    order = np.lexsort((np.arange(len(values)), -np.nan_to_num(magnitudes, posinf=np.inf)))
    nan = np.isnan(magnitudes)
    order = np.concatenate([np.flatnonzero(nan), order[~nan[order]]])
    return sorted(order[:k].tolist())


def bits_of(values):
    return values.view(INTEGERS[values.dtype.itemsize])


def check(values, *ks):
    for k in ks:
        expected = oracle(values, k)
        selected = [form.largest(values, k) for form in (selecting_cpu, selecting_eager)]
        vector, most = vector_of(values), min(k, len(values))
        selected += [as_tensors(way(vector, most), values.dtype) for way in WAYS]
        for indices, kept in selected:
            assert indices.dtype == torch.int64
            assert indices.tolist() == expected
            assert same_pair((indices, kept), (indices, values[indices]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 5000])
def test_short_vectors(dtype, n):
    check(draws(n, dtype, seed=n), 1, math.ceil(n / 3), n, n + 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.slow
def test_long_vectors_by_a_sample(dtype):
    check(draws(20 * N, dtype, seed=1), 1, 20, 2_000, 30_000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(dtype):
    values = draws(N, dtype, seed=2)
    values[100:4100] = specials(dtype).repeat(4000 // len(specials(dtype)) + 1)[:4000]
    nan, inf = int(values.isnan().sum()), int(values.isinf().sum())
    check(values, 1, nan - 1, nan, nan + 1, nan + inf, nan + inf + 1, N // 2)
    check(torch.full((N,), torch.nan).to(dtype), 1, 50)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_are_filled_in_order(dtype):
    generator = torch.Generator().manual_seed(3)
    few = torch.randint(-2, 3, (N,), generator=generator).to(dtype)
    rare = torch.where(torch.rand(N, generator=generator) < 1e-3, 2.0, 0.0).to(dtype)
    for values in (few, rare, torch.zeros(N, dtype=dtype), torch.full((N,), -0.7).to(dtype)):
        check(values, 1, 37, N // 3, N - 1, N)


def test_every_scale_and_subnormals():
    values = torch.logspace(-45, 38, N, dtype=torch.float64).float()
    check(values[torch.randperm(N, generator=torch.Generator().manual_seed(4))], 10, 3000, N - 10)


def test_a_sample_that_misleads_changes_nothing():
    """What the sample sees is small, and what it does not see is large, and the other way."""
    hidden = torch.ones(40 * N) * torch.linspace(0.5, 1, 40 * N)
    step = 40 * N // SAMPLE | 1
    for factor in (1e-3, 1e3):
        values = hidden.clone()
        values[::step] *= factor
        check(values, 1000)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.slow
def test_threads_change_nothing(threads):
    values, before = draws(2**19 * 3 + 5, torch.float32, seed=5), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check(values, 1500, 2**18)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=200)
@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=200),
    st.integers(1, 220),
)
def test_any_values(values, k):
    check(torch.tensor(values, dtype=torch.float32), k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_passes_over_digits_find_the_same(dtype):
    """The way that is taken where a sample misleads, on vectors where it is not."""
    values = draws(3000, dtype, seed=6)
    values[::7] = values[3]
    vector = vector_of(values)
    for k in (1, 2, 300, 1500, 3000):
        assert selecting_cpu._by_digits(vector, k)[0].tolist() == oracle(values, k)


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of 256 elements, which threads share, and no vector is short."""
    monkeypatch.setattr(selecting_cpu, "FEW", 0)
    monkeypatch.setattr(selecting_cpu, "MUCH", 64)
    monkeypatch.setattr(sharing, "CHUNK", 256)
    monkeypatch.setattr(selecting_cpu, "CHUNK", 256)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [255, 256, 257, 511, 1024, 1025, 4096 + 17, N])
def test_edges_of_chunks_and_threads_change_nothing(dtype, n):
    values, before = draws(n, dtype, seed=n), torch.get_num_threads()
    values[n // 2 :: 97] = values[7]
    values[n // 3 : n // 3 + 20] = specials(dtype)[:1]
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            check(values, 1, n // 100, n // 10, n // 3, n - 1)
            for threshold in (0.0, 0.7, 3.0):
                expected = selecting_eager.compact(values, threshold)
                assert same_pair(selecting_cpu.compact(values, threshold), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_patterns_of_thresholds_are_those_of_rounding_down(dtype):
    rng = np.random.default_rng(5)
    some = [0.0, 1.0, 1e-46, 5e-324, 6e-8, 1e-40, 65504.0, 65520.0, 3.4e38, 3.5e38, 1e300]
    for threshold in [*some, math.inf, *np.exp(rng.uniform(-110, 95, 500)).tolist()]:
        values = torch.tensor([round_down(threshold, dtype)], dtype=dtype)
        assert pattern_below(threshold, dtype) == vector_of(values).patterns[0]


@pytest.mark.parametrize("few", [selecting_cpu.FEW, 0])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 64, 1023, 4096 + 5, N])
def test_sums_are_written_and_selected_from(monkeypatch, dtype, n, in_place, few):
    monkeypatch.setattr(selecting_cpu, "FEW", few)
    first, second = draws(n, dtype, seed=n), draws(n, dtype, seed=n + 1)
    second[n // 2 : n // 2 + 16] = specials(dtype)[: min(16, n - n // 2)]
    expected, kept = first + second, first.clone()
    wants = [("largest_of_sum", k, kernels.largest) for k in (1, n // 100 + 1, n // 4 + 1)]
    wants += [("compact_sum", threshold, kernels.compact) for threshold in (0.0, 2.0)]
    for name, wanted, plain in wants:
        with kernels.use("eager"):
            selected = plain(expected, wanted)
        one = first.clone()
        total = one if in_place else torch.empty_like(one)
        assert same_pair(getattr(kernels, name)(one, second, total, wanted), selected)
        assert torch.equal(bits_of(total), bits_of(expected))
        assert in_place or torch.equal(one, kept)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("k", [1000, 30 * N])
def test_a_sum_is_added_once_where_its_sample_misleads(in_place, k):
    hidden = torch.ones(40 * N) * torch.linspace(0.5, 1, 40 * N)
    hidden[:: 40 * N // SAMPLE | 1] *= 1e3
    first, second = hidden / 4, hidden * 0.75
    expected = first + second
    total = first if in_place else torch.empty_like(first)
    indices, _ = kernels.largest_of_sum(first, second, total, k)
    assert torch.equal(total, expected)
    assert indices.tolist() == oracle(expected, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_was_sent_is_subtracted_as_the_definition_does(dtype):
    waiting, sent = draws(3000, dtype, seed=8), draws(3000, dtype, seed=9)
    sent[:16], waiting[8:24] = specials(dtype)[:16], specials(dtype)[:16]
    indices = torch.arange(0, 6000, 2)
    ours, definition = torch.ones(6000, dtype=dtype), torch.ones(6000, dtype=dtype)
    for residual, subtract in (
        (ours, kernels.subtract_at),
        (definition, selecting_eager.subtract_at),
    ):
        residual[indices] = waiting
        subtract(residual, indices, sent)
    assert torch.equal(bits_of(ours), bits_of(definition))
    for wrong in (-1, 6000):
        with pytest.raises(IndexError, match="index must lie in"):
            kernels.subtract_at(ours, torch.tensor([3, wrong]), sent[:2])


def test_nothing_is_selected_of_nothing():
    for form in (selecting_cpu, selecting_eager):
        indices, values = form.largest(torch.zeros(0), 1)
        assert indices.tolist() == values.tolist() == []


def test_the_plain_form_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(selecting_eager, "largest", lambda values, k: "eager")
    monkeypatch.setattr(selecting_cpu, "largest", lambda values, k: "numba")
    assert kernels.largest(torch.ones(3), 1) == "numba"
    with kernels.use("eager"):
        assert kernels.largest(torch.ones(3), 1) == "eager"
        with kernels.use("auto"):
            assert kernels.largest(torch.ones(3), 1) == "numba"
    assert kernels.largest(torch.ones(3), 1) == "numba"
    with pytest.raises(ValueError, match="form must be one of auto, eager"), kernels.use("fast"):
        pass


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(1 << 17, 70_000), (1 << 17, 1 << 17), (1 << 21, 1_900_000)])
def test_more_elements_than_16_bits_can_count(dtype, n, k):
    values = draws(n, dtype, seed=n)
    assert same_pair(kernels.largest(values, k), selecting_eager.largest(values, k))
