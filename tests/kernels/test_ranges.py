"""Casts that saturate, and units that change nothing but the exponent."""

import pytest
import torch

from gradstats.kernels import ranges
from gradstats.testing import counting_host_reads

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPECIAL = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_a_cast_keeps_finite_what_is_finite_and_hides_nothing(source, target):
    most = torch.finfo(source).max
    values = torch.tensor([*SPECIAL, most, -most, 0.0, -0.0, 1.5], dtype=source)
    found = ranges.saturated(values, target)
    assert found.dtype == target
    assert torch.equal(found.isfinite(), values.isfinite())
    assert torch.equal(found.isnan(), values.isnan())
    assert torch.equal(found.signbit()[1:], values.signbit()[1:])
    assert found[-1] == 1.5
    smaller = min(most, torch.finfo(target).max)
    assert abs(float(found[3]) - smaller) <= torch.finfo(target).eps * smaller


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_unit_rounds_nothing(dtype):
    limits = torch.finfo(dtype)
    normal = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    for largest in (limits.tiny * 2.0**20, limits.max):
        values = (normal.double() / normal.double().abs().max() * largest).to(dtype)
        scaled, unit = ranges.in_range(values)
        assert unit != 1
        assert 1 <= float(scaled.double().abs().max()) < 2
        assert torch.equal(ranges.from_unit(scaled, unit), values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ordinary_values_are_handed_through(dtype):
    for values in (
        torch.randn(50).to(dtype),
        torch.zeros(3, dtype=dtype),
        torch.zeros(0).to(dtype),
    ):
        found, unit = ranges.in_range(values)
        assert unit == 1
        assert found is values


@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_not_finite_has_no_unit(special):
    values = torch.tensor([1e38, special])
    found, unit = ranges.in_range(values)
    assert unit == 1
    assert found is values


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_and_products_saturate(dtype):
    most = torch.finfo(dtype).max
    values = torch.tensor([most, -most, 1.0, *SPECIAL], dtype=dtype)
    for found in (ranges.added(values, values), ranges.times(values, 3.0)):
        assert found.dtype == dtype
        assert found[:2].tolist() == [most, -most]
        assert torch.equal(found.isfinite(), values.isfinite())
    assert ranges.from_unit(values, 2.0)[:3].tolist() == [most, -most, 2.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_unit_of_its_own_is_that_of_in_range_without_a_read(dtype):
    limits = torch.finfo(dtype)
    normal = torch.randn(300, generator=torch.Generator().manual_seed(0)).double()
    for window in (30, 90):
        for largest in (limits.tiny, limits.tiny * limits.eps, 1e-20, 1.0, 1e20, limits.max):
            values = (normal / normal.abs().max() * largest).to(dtype)
            with counting_host_reads(values) as counted:
                found = ranges.in_own_unit(values, window)
            assert not counted.sites
            assert torch.equal(found, ranges.in_range(values, window)[0])
    for special in ([0.0, -0.0], [1e30, torch.nan], [1e-30, torch.inf]):
        values = torch.tensor(special, dtype=dtype)
        assert torch.equal(ranges.in_own_unit(values, 30).nan_to_num(7), values.nan_to_num(7))


def test_several_magnitudes_are_read_at_once():
    values = torch.tensor([1.0, -3.0]), torch.zeros(0), torch.tensor([2.0, torch.nan]).half()
    with counting_host_reads(*values) as counted:
        first, empty, broken = ranges.largest_magnitudes(*values)
    assert (first, empty) == (3.0, 0.0)
    assert broken != broken
    assert counted.reads == 1
    assert ranges.largest_magnitudes(torch.zeros(0)) == [0.0]
