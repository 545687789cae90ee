"""Products of large matrices and narrow factors against float64, in every form and order."""

import pytest
import torch

from gradstats.kernels import multiplying, use
from gradstats.kernels.multiplying import NARROW, multiply, multiply_sum

RANKS = (1, 2, 3, NARROW, NARROW + 1)
SHAPES = ((1, 1), (3, 5), (64, 1), (7, 1030), (1030, 7), (700, 900))


def drawn(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def product(matrix, factor):
    out = torch.full((len(matrix), factor.shape[1]), torch.nan, dtype=matrix.dtype)
    multiply(matrix, factor, out)
    return out


def assert_near(found, matrix, factor):
    """Within what float sums lose: n ε Σ|m f|, of which they lose much less."""
    exact = matrix.double() @ factor.double()
    most = matrix.double().abs() @ factor.double().abs()
    eps = torch.finfo(found.dtype).eps
    assert ((found.double() - exact).abs() <= eps * (2 + len(factor) ** 0.5) * most).all()


@pytest.fixture(params=["auto", "eager"])
def form(request):
    with use(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_agree_with_float64(form, shape, rank, dtype):
    matrix, factor = drawn(*shape, dtype=dtype), drawn(shape[1], rank, dtype=dtype, seed=1)
    by_columns = drawn(*shape[::-1], dtype=dtype).T
    strided = drawn(shape[0], 2 * shape[1], dtype=dtype)[:, ::2]
    for each in (matrix, by_columns, strided):
        assert_near(product(each, factor), each, factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sum_has_the_product_of_the_sum_to_the_bit(form, shape, rank, dtype):
    terms = drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype, seed=2)
    factor = drawn(shape[1], rank, dtype=dtype, seed=1)
    total, out = torch.empty_like(terms[0]), drawn(shape[0], rank, dtype=dtype)
    multiply_sum(terms, total, factor, out)
    assert torch.equal(total, terms[0] + terms[1])
    assert torch.equal(out, product(total, factor))


@pytest.mark.parametrize("rank", [1, 2, 3, NARROW])
def test_threads_and_neighbours_change_no_bit(rank):
    wide, factor, left = drawn(1500, 1100), drawn(1100, rank), drawn(1500, rank, seed=1)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append((product(wide, factor), product(wide.T, left)))
    finally:
        torch.set_num_threads(before)
    rows = torch.cat([product(part, factor) for part in wide.split(333)])
    columns = torch.cat(
        [product(wide[:, i : i + 77].contiguous().T, left) for i in range(0, 1100, 77)]
    )
    for by_rows, by_columns in found:
        assert torch.equal(by_rows, rows)
        assert torch.equal(by_columns, columns)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("rank", [2, NARROW + 1])
def test_a_nan_or_inf_stays_in_its_row(form, rank, broken):
    matrix, factor = drawn(40, 50), drawn(50, rank)
    matrix[7, 3] = broken
    finite = product(matrix, factor).isfinite()
    assert finite.all(1).tolist() == [row != 7 for row in range(40)]
    finite = product(matrix.T, drawn(40, rank)).isfinite()
    assert finite.all(1).tolist() == [row != 3 for row in range(50)]


def test_a_product_that_does_not_fit_saturates_nothing():
    assert product(torch.full((2, 3), 3e38), torch.ones(3, 1)).isinf().all()


def test_wide_factors_are_left_to_the_library(monkeypatch):
    monkeypatch.setattr(multiplying, "NARROW", 0)
    matrix, factor = drawn(30, 20), drawn(20, 2)
    assert torch.equal(product(matrix, factor), matrix @ factor)
