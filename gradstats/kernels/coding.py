"""Quantise and pack, unpack and dequantise: the loops that all quantisers share.

As in `gradstats.kernels`, the same functions are in `coding_eager` (torch), `coding_cpu` (numba)
and `coding_cuda` (triton); packed bytes are identical.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from gradstats.kernels import coding_eager
from gradstats.kernels.coding_eager import Rounding
from gradstats.kernels.forms import in_numba, in_triton, on_host
from gradstats.kernels.moving import WIDE, subtract_sent
from gradstats.kernels.packing import bits_per_symbol, packed_nbytes

__all__ = [
    "ROUNDINGS",
    "add_dequantized",
    "bits_per_symbol",
    "bucket_norms",
    "check",
    "check_rounding",
    "dequantize",
    "pack",
    "packed_nbytes",
    "quantize",
    "steadied",
    "subtract_dequantized",
    "to_symbols",
    "unpack",
    "write_dequantized",
]

KINDS = ("l2", "max", "mean")
INVERTIBLE = 100  # exponent of 2, up to which 1/scale is far from the ends of float32
ROUNDINGS = ("nearest", "nearest-even", "stochastic")


def pack(symbols: Tensor, levels: int, *, trusted: bool = False) -> Tensor:
    """Pack integers below `levels`, see `gradstats.kernels.packing`.

    Args:
        symbols: integers `[n]`.
        levels: L, 2 to 65,536.
        trusted: whether the symbols are known to be in range; else the host reads from the device.

    Returns:
        uint8 `[packed_nbytes(n, levels)]`.

    Raises:
        ValueError: a symbol out of range.
    """
    if symbols.numel() and not trusted:
        least, most = torch.stack(symbols.aminmax()).tolist()
        if not (0 <= least and most < levels):
            raise ValueError(f"symbols must lie in [0, {levels}), got {least:.0f} to {most:.0f}")
    packed: Tensor = _form(symbols).pack(symbols, levels)
    return packed


def unpack(packed: Tensor, n: int, levels: int, *, trusted: bool = False) -> Tensor:
    """The n symbols of packed bytes: uint8, int32 above 256 levels.

    Args:
        packed: uint8 `[packed_nbytes(n, levels)]`.
        n: number of symbols.
        levels: L.
        trusted: whether the bytes are those of `pack`; else the host reads from the device.

    Raises:
        ValueError: bytes that `pack` does not give; of trusted ones, their length is wrong.
    """
    _check_length(packed, n, levels)
    if trusted and not in_numba(packed):
        return coding_eager.unpack_trusted(packed, n, levels)
    symbols: Tensor = _form(packed).unpack(packed, n, levels)
    return symbols


def check(packed: Tensor, n: int, levels: int) -> None:
    """Raise ValueError unless the bytes are those of n packed symbols."""
    _check_length(packed, n, levels)
    if in_numba(packed):
        from gradstats.kernels import coding_cpu

        coding_cpu.check(packed, n, levels)
    else:
        unpack(packed, n, levels)


def quantize(
    values: Tensor,
    scales: Tensor,
    bucket: int,
    levels: Tensor,
    *,
    rounding: str,
    key: tuple[int, int] | None = None,
) -> Tensor:
    r"""Round x_i / scale of its bucket to levels, and pack the symbols.

    With y = x · (1/scale) in float32 (0 for a scale of 0), x and scale first multiplied by a power
    of two where 1/scale is near the ends of the range:

    - "nearest": the nearest level, the lower of two at the same distance;
    - "nearest-even": of two at the same distance the one with an even number of steps to the
      level in the middle, as casts to floats of odd mantissas do;
    - "stochastic": the level below or above, :math:`P(\text{above}) = (y - l_j)/(l_{j+1} - l_j)`,
      decided by word i mod 4 of Philox at counter ⌊i/4⌋.

    Beyond the outermost levels y is moved to them. A NaN takes the level in the middle: callers
    make the scale of its bucket NaN.

    Args:
        values: x, floating point `[n]`, contiguous.
        scales: float32 `[⌈n/bucket⌉]`.
        bucket: elements that share a scale.
        levels: float32 `[L]`, strictly rising.
        rounding: one of `ROUNDINGS`.
        key: two 32-bit words, for stochastic rounding.

    Returns:
        uint8 `[packed_nbytes(n, L)]`.
    """
    values, how = _how(values, scales, bucket, levels, rounding, key)
    packed: Tensor = _form(values).quantize(values, how)
    return packed


def to_symbols(
    values: Tensor,
    scales: Tensor,
    bucket: int,
    levels: Tensor,
    *,
    rounding: str,
    key: tuple[int, int] | None = None,
) -> Tensor:
    """The symbols that `quantize` packs: uint8 `[n]`, int32 above 256 levels."""
    values, how = _how(values, scales, bucket, levels, rounding, key)
    symbols: Tensor = _form(values).to_symbols(values, how)
    return symbols


def _how(
    values: Tensor,
    scales: Tensor,
    bucket: int,
    levels: Tensor,
    rounding: str,
    key: tuple[int, int] | None,
) -> tuple[Tensor, Rounding]:
    rows = -(-values.numel() // bucket)
    if len(scales) != rows:
        raise ValueError(f"scales must be {rows} for buckets of {bucket}, got {len(scales)}")
    check_rounding(rounding, key)
    if values.dtype == torch.float64 or not in_numba(values):  # which steadies on the way
        values, scales = steadied(values, scales, bucket)
    return values, Rounding(scales, bucket, levels, rounding, key or (0, 0))


def check_rounding(rounding: str, key: tuple[int, int] | None) -> None:
    """Raise ValueError unless it is one of `ROUNDINGS`, with a key if it is at random."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if rounding == "stochastic" and key is None:
        raise ValueError("key must be given for stochastic rounding, got None")


def steadied(
    values: Tensor, scales: Tensor, bucket: int, window: int = INVERTIBLE
) -> tuple[Tensor, Tensor]:
    """Values and scales in a unit of their bucket, in which 1/scale is in range.

    The unit is a power of two, and 1 unless the scale is beyond 2^±window.

    Args:
        values: floating point `[n]`.
        scales: float32 `[⌈n/bucket⌉]`.
        bucket: elements that share a scale.
        window: an exponent of 2.
    """
    extreme = (scales < 2.0**-window) | (scales > 2.0**window)
    extreme &= scales.isfinite() & (scales != 0)
    if on_host(values) and not bool(extreme.any()):
        return values, scales
    _, exponent = torch.frexp(scales)
    power = torch.where(extreme, -exponent, 0)
    moved = values if values.dtype == torch.float64 else values.to(torch.float32)
    # a power of two up to 2^149 is no float32, its halves are
    for part in (power // 2, power - power // 2):
        factor = torch.exp2(part.double()).to(moved.dtype)
        moved = coding_eager.times_of_bucket(moved, factor, bucket)
    steady = scales.double() * torch.exp2(power.double())
    return moved.to(torch.float32), steady.to(torch.float32)


def dequantize(
    packed: Tensor,
    n: int,
    scales: Tensor | None,
    bucket: int,
    levels: Tensor,
    offsets: Tensor | None = None,
) -> Tensor:
    """Levels of packed symbols times the scales of their buckets.

    Args:
        packed: from `pack` or `quantize`.
        n: number of symbols.
        scales: float32 `[⌈n/bucket⌉]`; None where levels are those of buckets.
        bucket: elements that share a scale.
        levels: float32 `[L]`, or `[⌈n/bucket⌉, L]`.
        offsets: float32 `[⌈n/bucket⌉]`, added to the elements of buckets, where there are any.

    Returns:
        float32 `[n]`.
    """
    out = _zeros(n) if on_host(packed) else torch.zeros(n, device=packed.device)
    add_dequantized(packed, scales, bucket, levels, out, 1.0, offsets)
    return out


def _zeros(n: int) -> Tensor:
    """Zeros on the host: numpy takes large pages, which the system clears when they are used."""
    return torch.from_numpy(np.zeros(n, np.float32))


def add_dequantized(
    packed: Tensor,
    scales: Tensor | None,
    bucket: int,
    levels: Tensor,
    out: Tensor,
    weight: float,
    offsets: Tensor | None = None,
) -> None:
    """Add `weight` times the result of `dequantize` to `out`, floating point `[n]`.

    The offset of its bucket, float32 `[⌈n/bucket⌉]`, is first added to every element.

    Nothing is read from a device, so that symbols out of range stand for the last level; numba
    sees them in passing, and refuses them.

    Raises:
        ValueError: the wrong number of bytes, scales or levels.
    """
    _check_tables(packed, out.numel(), scales, bucket, levels)
    _form(packed).add_dequantized(packed, scales, bucket, levels, out, weight, offsets)


def write_dequantized(
    packed: Tensor,
    scales: Tensor | None,
    bucket: int,
    levels: Tensor,
    out: Tensor,
    weight: float,
    offsets: Tensor | None = None,
) -> None:
    """Put `weight` times the result of `dequantize` into `out`, as `add_dequantized` to zeros."""
    if in_numba(packed) and out.dtype in WIDE:
        from gradstats.kernels import coding_cpu, coding_cpu_runs

        tables = scales, bucket, levels
        _check_tables(packed, out.numel(), *tables)
        coding_cpu.add_dequantized(packed, *tables, out, weight, offsets, coding_cpu_runs.WRITE)
    else:
        add_dequantized(packed, scales, bucket, levels, out.zero_(), weight, offsets)


def subtract_dequantized(
    packed: Tensor,
    scales: Tensor | None,
    bucket: int,
    levels: Tensor,
    residual: Tensor,
    offsets: Tensor | None = None,
) -> None:
    """Subtract the result of `dequantize` from a residual, as `moving.subtract_sent` does."""
    tables = scales, bucket, levels
    if in_numba(packed) and residual.dtype in WIDE:
        from gradstats.kernels import coding_cpu, coding_cpu_runs

        _check_tables(packed, residual.numel(), *tables)
        way = coding_cpu_runs.SUBTRACT
        coding_cpu.add_dequantized(packed, *tables, residual, 1.0, offsets, way)
    else:
        subtract_sent(residual, dequantize(packed, residual.numel(), *tables, offsets))


def bucket_norms(values: Tensor, bucket: int, kind: str) -> Tensor:
    """Compute the norm of every `bucket` consecutive elements; the last may have fewer.

    Args:
        values: floating point `[n]`, contiguous.
        bucket: number of elements.
        kind: "l2", "max" (of magnitudes) or "mean" (of magnitudes).

    Returns:
        float32 `[⌈n/bucket⌉]`, not finite where an element is not; a norm that float32 cannot hold
        is its largest number.

    Raises:
        ValueError: `kind` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    norms: Tensor = _form(values).bucket_norms(values, bucket, kind)
    return norms


def _check_tables(
    packed: Tensor, n: int, scales: Tensor | None, bucket: int, levels: Tensor
) -> None:
    rows = -(-n // bucket)
    _check_length(packed, n, levels.shape[-1])
    given = len(levels) if scales is None else len(scales)
    if given != rows:
        raise ValueError(f"scales must be {rows} for {n} elements by {bucket}, got {given}")


def _check_length(packed: Tensor, n: int, levels: int) -> None:
    due = packed_nbytes(n, levels)
    if packed.numel() != due:
        raise ValueError(f"{n} symbols must have {due} bytes, got {packed.numel()}")


def _form(tensor: Tensor) -> ModuleType:
    if in_numba(tensor):
        from gradstats.kernels import coding_cpu

        return coding_cpu
    if in_triton(tensor):
        from gradstats.kernels import coding_cuda

        return coding_cuda
    return coding_eager
