"""The ends of the range of floats: casts that saturate, and units in which nothing leaves it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOW = 90  # exponents of 2 up to which products and sums of float32 numbers are out of danger


def bounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values, what a dtype cannot hold moved to its largest number; inf and NaN stay.

    Example:
        >>> bounded(torch.tensor([1.0, -1e6, torch.inf]), torch.float16).tolist()
        [1.0, -65504.0, inf]
    """
    most = torch.finfo(dtype).max
    if torch.finfo(values.dtype).max <= most:
        return values
    # 16-bit floats may not have the number itself
    wide = values.float() if values.dtype.itemsize == 2 else values
    return torch.where(wide.isinf(), wide, wide.clamp(-most, most))


def saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in a dtype, finite where they were.

    Example:
        >>> saturated(torch.tensor([1.0, 1e6, torch.nan]), torch.float16).tolist()
        [1.0, 65504.0, nan]
    """
    return bounded(values, dtype).to(dtype)


def left(waiting: Tensor, sent: Tensor) -> Tensor:
    """Return the residual after `sent` was sent; 0 where it is not finite."""
    # a NaN was delivered like any other value: left in a residual, it would never go away
    return saturated(torch.where(sent.isfinite(), waiting - sent, 0), waiting.dtype)


def unit_of(largest: float, window: int = WINDOW) -> float:
    """A power of two near a magnitude that is extreme; 1 for any other, and for 0, inf and NaN.

    Example:
        >>> unit_of(1e-3), unit_of(3 * 2.0**100)
        (1.0, 2.535301200456459e+30)
    """
    _, exponent = math.frexp(largest)
    if not math.isfinite(largest) or not largest or abs(exponent) <= window:
        return 1.0
    return 2.0 ** (exponent - 1)


def in_unit(values: Tensor, unit: float) -> Tensor:
    """values / unit, which is exact; as they are for a unit of 1.

    Args:
        values: floating point.
        unit: a power of two.
    """
    if unit == 1:
        return values
    return (values.double() / unit).to(values.dtype)


def from_unit(values: Tensor, unit: float) -> Tensor:
    """values · unit in their own dtype, finite where they are."""
    if unit == 1:
        return values
    most = torch.finfo(values.dtype).max / unit
    wide = values.double()
    inside = torch.where(wide.isinf(), wide, wide.clamp(-most, most))
    return (inside * unit).to(values.dtype)


def added(a: Tensor, b: Tensor) -> Tensor:
    """a + b in the dtype of b, finite where they are."""
    return saturated(from_unit(a.double() / 2 + b.double() / 2, 2.0), b.dtype)


def summed(a: Tensor, b: Tensor) -> Tensor:
    """a + b; in 16 bits, whose range a few gradients fill, finite where both are."""
    if a.dtype.itemsize > 2:
        return a + b
    half, most = a.float() / 2 + b.float() / 2, torch.finfo(a.dtype).max / 2
    return (torch.where(half.isinf(), half, half.clamp(-most, most)) * 2).to(a.dtype)


def times(values: Tensor, factor: float) -> Tensor:
    """values · factor in their own dtype, finite where they are."""
    products = values * factor
    most = torch.finfo(values.dtype).max
    return torch.where(values.isfinite(), products.clamp(-most, most), products)


def in_range(values: Tensor, window: int = WINDOW) -> tuple[Tensor, float]:
    """The values in a unit in which squares, reciprocals and sums are in range, and the unit.

    The unit is a power of two, so that nothing is rounded, and 1 unless the largest magnitude is
    beyond 2^±window.

    Args:
        values: floating point, of any shape.
        window: an exponent of 2.
    """
    unit = unit_of(largest_magnitude(values), window)
    return in_unit(values, unit), unit


def in_range_of_squares(values: Tensor) -> tuple[Tensor, float]:
    """As `in_range` where float64 cannot hold their squares: float64 alone has such values."""
    return in_range(values) if values.dtype == torch.float64 else (values, 1.0)


def in_own_unit(values: Tensor, window: int, dims: tuple[int, ...] = ()) -> Tensor:
    """The values of `in_range` where nobody needs the unit: nothing is read from a device.

    Args:
        values: floating point, not empty; a few, as all are multiplied.
        window: an exponent of 2.
        dims: dimensions of what has one unit; all.
    """
    peak = values.abs().amax(dims, keepdim=True).double()
    _, exponent = torch.frexp(peak)
    extreme = (exponent.abs() > window) & peak.isfinite() & (peak != 0)
    unit = torch.exp2(torch.where(extreme, exponent - 1, 0).double())
    return (values.double() / unit).to(values.dtype)


def largest_magnitudes(*values: Tensor) -> list[float]:
    """The largest magnitude of each, in one read from their device."""
    peaks = [each.abs().amax().double() for each in values if each.numel()]
    read = iter(torch.stack(peaks).tolist() if peaks else [])
    return [next(read) if each.numel() else 0.0 for each in values]


def largest_magnitude(values: Tensor) -> float:
    """The largest magnitude, NaN if there is one, 0 of nothing."""
    if not values.numel():
        return 0.0
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))
