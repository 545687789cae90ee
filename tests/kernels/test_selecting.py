"""The k largest, exactly: numba and torch against a stable sort by numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstats import kernels
from gradstats.kernels import selecting_cpu, selecting_eager
from tests.kernels.test_counting import DTYPES, draws, same_pair, specials

FORMS = {"numba": selecting_cpu, "torch": selecting_eager}
N = selecting_cpu.SAMPLE + 1234  # where a sample is taken


def oracle(values, k):
    """Places of the k largest magnitudes: NaN first, then by size, equals in their order."""
    magnitudes = values.abs().double().numpy()
    order = np.lexsort((np.arange(len(values)), -np.nan_to_num(magnitudes, posinf=np.inf)))
    nan = np.isnan(magnitudes)
    order = np.concatenate([np.flatnonzero(nan), order[~nan[order]]])
    return sorted(order[:k].tolist())


def check(values, *ks):
    for k in ks:
        expected = oracle(values, k)
        for form in FORMS.values():
            indices, found = form.largest(values, k)
            assert indices.dtype == torch.int64
            assert indices.tolist() == expected
            assert same_pair((indices, found), (indices, values[indices]))


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
    step = 40 * N // selecting_cpu.SAMPLE | 1
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
        check(values, 1500)
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
    patterns = selecting_cpu._patterns(values)
    infinity = patterns.dtype.type(selecting_cpu.INFINITY[dtype])
    for k in (1, 2, 300, 1500, 3000):
        found = selecting_cpu._by_digits(patterns, k, infinity)
        assert found[0].tolist() == oracle(values, k)


def test_nothing_is_selected_of_nothing():
    for form in FORMS.values():
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
