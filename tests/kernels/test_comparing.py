"""The sums that tell a gradient from its update, against numpy in float64."""

import numpy as np
import pytest
import torch

from gradstats import kernels
from gradstats.kernels import comparing_cpu, comparing_eager

SIZES = (0, 1, 7, 2**14, 2**14 + 1, 2**19 + 2**14 + 3)


def vectors(n, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(n, generator=generator).to(dtype) * 10.0**i for i in range(4)]


def expected(grad, update, compensated, residual):
    g, s, v, e = (each.double().numpy() for each in (grad, update, compensated, residual))
    return [x @ y for x, y in ((g, g), (s, s), (g, s), (g - s, g - s), (v, v), (v - s, v - s))] + [
        e @ e
    ]


@pytest.mark.parametrize("kernel", [comparing_eager, comparing_cpu], ids=["eager", "numba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_products_are_those_of_numpy(kernel, dtype, n):
    given = vectors(n, dtype)
    assert list(kernel.products(*given)) == pytest.approx(expected(*given), rel=1e-12)


@pytest.mark.parametrize("kernel", [comparing_eager, comparing_cpu], ids=["eager", "numba"])
def test_equal_vectors_have_equal_sums_and_lose_nothing(kernel):
    grad = vectors(40_000)[0]
    sums = kernel.products(grad, grad, grad, grad)
    assert sums.lost == sums.missed == 0
    assert sums.grad == sums.update == sums.both == sums.compensated == sums.residual


def test_threads_change_no_bit():
    given, before = vectors(3 * 2**19 + 5), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kernels.products(*given))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("kernel", [comparing_eager, comparing_cpu], ids=["eager", "numba"])
def test_what_is_not_finite_shows_in_its_own_sums(kernel):
    grad, update, compensated, residual = vectors(100)
    update[3] = torch.inf
    sums = kernel.products(grad, update, compensated, residual)
    assert sums.update == sums.lost == sums.missed == np.inf
    assert np.isfinite([sums.grad, sums.compensated, sums.residual]).all()
