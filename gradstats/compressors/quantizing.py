"""Buckets, scales and payloads of the quantisers."""

from __future__ import annotations

import torch
from torch import Tensor

from gradstats.compressors.contracts import Bound
from gradstats.kernels import coding
from gradstats.kernels.ranges import bounded, saturated
from gradstats.payloads.alphabet import Alphabet
from gradstats.payloads.quantized import Coded
from gradstats.payloads.symbol_codes import Packed


def within_float32(flat: Tensor) -> Tensor:
    """Return the elements, with float64 ones limited to the range of float32."""
    return bounded(flat, torch.float32)


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
        rounding: see `kernels.codes.quantize`.
        key: of the random numbers, for stochastic rounding.
    """
    levels = alphabet.levels(flat.device)
    packed = coding.quantize(flat.contiguous(), scales, bucket, levels, rounding=rounding, key=key)
    return Coded(Packed(packed), flat.numel(), alphabet, scales, bucket)


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
