"""Copies and divisions are those of torch, and find every NaN and inf."""

import pytest
import torch

from gradstats import kernels
from gradstats.exchange.reducing import fill_share
from gradstats.kernels import moving

FORMS = ["auto", "eager"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = [0, 1, 17, (1 << 19) + 3, 3 << 19]
BROKEN = [float("nan"), float("inf"), -float("inf")]


def drawn(size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, generator=generator).to(dtype)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divisor", [1.0, 2.0, 3.0])
@pytest.mark.usefixtures("threads")
def test_a_division_is_that_of_torch(form, dtype, divisor):
    for size in SIZES:
        values = drawn(size, dtype)
        out, expected = torch.empty_like(values), values / divisor
        with kernels.use(form):
            assert moving.divide(out, values, divisor)
            assert torch.equal(out, expected)
            assert moving.divide(values, values, divisor)
        assert torch.equal(values, expected), "in place"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", BROKEN)
def test_what_is_not_finite_is_seen_wherever_it_is(form, dtype, value):
    for place in (0, 5, 1 << 19, (1 << 19) + 2):
        values = drawn((1 << 19) + 3, dtype)
        values[place] = value
        with kernels.use(form):
            assert not moving.are_finite([torch.ones(3, dtype=dtype), values])
            assert not moving.divide(torch.empty_like(values), values)
            assert not moving.divide(torch.empty_like(values), values, 2.0)
            assert not moving.divide(values.clone(), values, 2.0)
            assert not moving.divide(values, values, 2.0), "in place"


def test_the_largest_numbers_are_finite():
    for dtype in DTYPES:
        values = torch.full((40,), torch.finfo(dtype).max, dtype=dtype)
        assert moving.are_finite([values, -values])


def test_a_view_of_any_layout_is_copied():
    values = drawn(24).view(4, 6).t()
    out = torch.empty(6, 4)
    assert moving.divide(out, values, 2.0)
    assert torch.equal(out, values / 2)


def of_all_exponents(dtype):
    """Every number of a 16-bit dtype that is finite, and floats between them: ties, and beside."""
    bits = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(dtype).float()
    numbers = numbers[numbers.isfinite()]
    between = numbers[1:] / 2 + numbers[:-1] / 2
    beside = [torch.nextafter(between, torch.tensor(end)) for end in (0.0, torch.inf)]
    positive = torch.cat([numbers, between, *beside])
    return torch.cat([positive, -positive])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
def test_shares_in_16_bits_are_those_of_torch_to_the_bit(dtype, workers):
    values = of_all_exponents(dtype)
    inside = values[values.abs() <= torch.finfo(dtype).max / 2]
    expected = inside.to(dtype) / workers
    out = torch.empty_like(inside, dtype=dtype)
    largest = moving.divide_in_16_bits(out, inside, workers)
    assert torch.equal(out.view(torch.int16), expected.view(torch.int16))
    assert largest == inside.abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_sum_of_shares_is_finite_where_the_gradients_are(form, dtype, workers):
    values = torch.cat([of_all_exponents(dtype), torch.tensor([1e38, -3.4e38, 65_519.0])])
    out = torch.empty_like(values, dtype=dtype)
    with kernels.use(form):
        assert fill_share(out, values, workers)
    total = torch.zeros_like(out)
    for _ in range(workers):
        total += out
    assert total.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_share_says_what_is_not_finite(form, value, dtype):
    values = drawn(100)
    values[3] = value
    with kernels.use(form):
        assert not fill_share(torch.empty(100, dtype=dtype), values, 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_places_are_cleared_and_added_to(form, dtype):
    values, places = drawn(50, dtype), torch.tensor([0, 3, 17, 49])
    added, cleared = values.clone(), values.clone()
    news = torch.tensor([1.0, 2.0, 4.0, -8.0], dtype=dtype)
    with kernels.use(form):
        moving.add_at(added, places, news, 0.5)
        moving.clear_at(cleared, places)
    values[places] += news / 2
    assert torch.equal(added, values)
    values[places] = 0
    assert torch.equal(cleared, values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_sent_is_subtracted_and_nothing_broken_stays(form, dtype):
    residual, sent = drawn(1 << 20, dtype), drawn((1 << 20) + 1, dtype)[1:]
    sent[3], sent[5], sent[7], residual[9] = *BROKEN, torch.inf
    expected = residual - sent
    expected[[3, 5, 7]] = 0
    with kernels.use(form):
        moving.subtract_sent(residual, sent)
    assert torch.equal(residual, expected)
