"""Buckets, scales and payloads of the quantisers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gradstats.compressors.contracts import Bound
from gradstats.kernels import coding
from gradstats.kernels.coding_scaled import Scaled, ScaleRule, quantize_scaled
from gradstats.kernels.forms import on_host
from gradstats.kernels.ranges import (
    bounded,
    in_range,
    in_unit,
    largest_magnitude,
    saturated,
    unit_of,
)
from gradstats.payloads.alphabet import Alphabet
from gradstats.payloads.quantized import Coded
from gradstats.payloads.symbol_codes import Packed


def within_float32(flat: Tensor) -> Tensor:
    """Return the elements, with float64 ones limited to the range of float32."""
    return bounded(flat, torch.float32)


def peak_of(flat: Tensor) -> float:
    """Read the largest magnitude, NaN if there is one, 0 of nothing."""
    if on_host(flat) and flat.dtype != torch.float64 and flat.numel():
        return float(coding.bucket_norms(flat, flat.numel(), "max"))
    return abs(largest_magnitude(flat))  # which may be -0


def coded_bits(text: str) -> Bound:
    """Bits of all symbols and scales of a `Coded` that is packed, with the formula as written."""
    return Bound(text, _coded_bits)


def _coded_bits(payload: Coded) -> float:
    of_symbols = coding.bits_per_symbol(payload.levels.shape[-1]) * payload.symbols
    offsets = 0 if payload.offsets is None else payload.offsets.nbytes
    return of_symbols + 8.0 * (payload.scales.nbytes + offsets)


def quantized(
    flat: Tensor,
    alphabet: Alphabet,
    scales: Tensor,
    bucket: int,
    *,
    rounding: str = "nearest",
    key: tuple[int, int] | None = None,
) -> Coded:
    """The payload of x_i / scale of its bucket, rounded to levels of the alphabet.

    Args:
        flat: x, `[d]`.
        alphabet: of the levels.
        scales: float32 `[⌈d/B⌉]`.
        bucket: B.
        rounding: see `kernels.coding.quantize`.
        key: of the random numbers, for stochastic rounding.
    """
    levels = alphabet.levels(flat.device)
    packed = coding.quantize(flat.contiguous(), scales, bucket, levels, rounding=rounding, key=key)
    return Coded(Packed(packed), flat.numel(), alphabet, scales, bucket)


def scaled(
    flat: Tensor,
    alphabet: Alphabet,
    bucket: int,
    rule: ScaleRule,
    *,
    rounding: str = "nearest",
    key: tuple[int, int] | None = None,
) -> Coded:
    """The payload of elements over the scale that a rule gives to their bucket.

    Args:
        flat: x, `[d]`.
        alphabet: of the levels.
        bucket: B.
        rule: of the scales.
        rounding: see `kernels.coding.quantize`.
        key: of the random numbers, for stochastic rounding.
    """
    payload, _ = _scaled(flat, alphabet, bucket, rule, rounding, key)
    return payload


def scaled_in_range(
    flat: Tensor,
    alphabet: Alphabet,
    bucket: int,
    rule: ScaleRule,
    *,
    rounding: str = "nearest",
    key: tuple[int, int] | None = None,
) -> Coded:
    """As `scaled`, in a unit in which an extreme gradient is none, see `kernels.ranges`.

    On the host the largest magnitude comes with the payload, which is made again in another unit
    if it is extreme; a device reads it before.
    """
    how = alphabet, bucket, rule, rounding, key
    if on_host(flat) and flat.dtype != torch.float64:
        payload, blocks = _scaled(flat, *how)
        unit = unit_of(float(blocks.largest))
        if unit == 1:
            return payload
        flat = in_unit(flat, unit)
    else:
        flat, unit = in_range(flat)
    payload, _ = _scaled(flat, *how)
    return replace(payload, unit=unit)


def _scaled(
    flat: Tensor,
    alphabet: Alphabet,
    bucket: int,
    rule: ScaleRule,
    rounding: str,
    key: tuple[int, int] | None,
) -> tuple[Coded, Scaled]:
    levels = alphabet.levels(flat.device)
    blocks = quantize_scaled(flat.contiguous(), bucket, levels, rule, rounding=rounding, key=key)
    packed, numel = Packed(blocks.packed), flat.numel()
    coded = Coded(packed, numel, alphabet, blocks.scales, bucket, offsets=blocks.offsets)
    return (replace(coded, unit=rule.unit) if rule.unit != 1 else coded), blocks


def own_levels(
    flat: Tensor, symbols: Tensor, levels: Tensor, bucket: int, *, trusted: bool = False
) -> Coded:
    """The payload of symbols whose levels each bucket sends.

    Args:
        flat: what was quantised, `[d]`.
        symbols: integers below L, `[d]`.
        levels: `[⌈d/B⌉, L]`.
        bucket: B.
        trusted: whether the symbols are known to be in range; else the host reads two numbers.
    """
    packed = coding.pack(symbols, levels.shape[-1], trusted=trusted)
    return Coded(Packed(packed), flat.numel(), None, saturated(levels, torch.float32), bucket)


def in_buckets(flat: Tensor, bucket: int) -> Tensor:
    """`[⌈d/B⌉, B]`, the last one filled up with zeros; a view where nothing is filled up."""
    missing = -flat.numel() % bucket
    return torch.nn.functional.pad(flat, (0, missing)).view(-1, bucket)


def bucket_of(bucket: int, numel: int) -> int:
    """The size of a bucket; 0 is the whole vector, and none is longer."""
    return max(1, min(bucket or numel, numel))


def check_bucket(bucket: int) -> None:
    """Raise ValueError unless it is a size, 0 for the whole vector."""
    if not isinstance(bucket, int) or bucket < 0:
        raise ValueError(f"bucket must be a number of elements, 0 for all, got {bucket!r}")
