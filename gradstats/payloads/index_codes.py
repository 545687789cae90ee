"""Codes of the indices of a sparse payload: k strictly rising indices below n in few bytes.

With ρ = k/n no code of random indices needs fewer than H₂(ρ)/ρ bits per index on average.

    raw      4 bytes per index, 8 above n = 2³¹
    packed   ⌈log₂ n⌉ bits per index
    bitmap   n bits, one for each element
    golomb   Rice code of the gaps, with a parameter that k and n determine
    delta    the gaps as LEB128 varints, 7 bits per byte

A gap is the number of elements passed over: the first index, then differences minus 1. All bits
are little-endian, within bytes too; what is left of a last byte is 0. Each code has one encoding
of a set of indices, and the decoder refuses all other bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gradstats.payloads.index_coders import (
    MAX_N,
    Bytes,
    Indices,
    _bytes_of,
    _decode_bitmap,
    _decode_delta,
    _decode_golomb,
    _decode_packed,
    _decode_raw,
    _delta_bits,
    _encode_bitmap,
    _encode_delta,
    _encode_golomb,
    _encode_packed,
    _encode_raw,
    _gaps,
    _golomb_bits,
    _golomb_nbytes,
    _index_type,
    _lengths,
    _width,
)


def encode_indices(indices: Indices, n: int, code: str) -> bytes:
    """Encode indices.

    Args:
        indices: int64 `[k]`, strictly rising, in [0, n).
        n: number of elements, at most 2⁶⁰.
        code: one of `CODES`.

    Raises:
        ValueError: indices that do not rise or lie outside [0, n); an unknown code.
    """
    coder = _coder(code)
    _check_indices(indices, n)
    return coder.encode(indices, n).tobytes()


def decode_indices(data: bytes | memoryview, k: int, n: int, code: str) -> Indices:
    """Decode indices: int64 `[k]`, strictly rising, in [0, n).

    Time and memory are O(k + len(data)), whatever the bytes are.

    Args:
        data: the result of `encode_indices`.
        k: number of indices.
        n: number of elements.
        code: the code that `data` is in.

    Raises:
        ValueError: any bytes that `encode_indices` does not give for k indices in [0, n).
    """
    coder = _coder(code)
    _check_counts(k, n)
    indices = coder.decode(np.frombuffer(data, np.uint8), k, n)
    _check_indices(indices, n)
    return indices


def encoded_nbytes(indices: Indices, n: int, code: str) -> int:
    """Return the length of `encode_indices(indices, n, code)`, without encoding."""
    return _coder(code).nbytes(indices, n)


def cheapest(indices: Indices, n: int) -> str:
    """Return the code with the fewest bytes for these indices; of equals, the first in `CODES`."""
    return min(CODES, key=lambda code: encoded_nbytes(indices, n, code))


def expected_bits(k: int, n: int, code: str) -> float:
    """Return the mean bits of k random indices below n, whose gaps are geometric with ρ = k/n.

        golomb   k·(b + 1/(1 - (1-ρ)^(2^b))), b as in `index_coders.rice_parameter`
        delta    8k·Σⱼ (1-ρ)^(2^(7j)), j = 1, 2, … and 1 for the first byte

    Args:
        k: number of indices.
        n: number of elements.
        code: one of `CODES`, or `auto` for the least of them all.

    Raises:
        ValueError: k outside [0, n]; an unknown code.
    """
    if code == "auto":
        return min(expected_bits(k, n, each) for each in CODES)
    coder = _coder(code)
    _check_counts(k, n)
    return coder.bits(k, n)


class _Coder(NamedTuple):
    encode: Callable[[Indices, int], Bytes]
    decode: Callable[[Bytes, int, int], Indices]
    nbytes: Callable[[Indices, int], int]
    bits: Callable[[int, int], float]


def _coder(code: str) -> _Coder:
    if code not in _CODERS:
        raise ValueError(f"code must be one of {', '.join(CODES)}, got {code!r}")
    return _CODERS[code]


def _check_counts(k: int, n: int) -> None:
    if not 0 <= k <= n <= MAX_N:
        raise ValueError(f"k and n must satisfy 0 <= k <= n <= 2**60, got {k} and {n}")


def _check_indices(indices: Indices, n: int) -> None:
    _check_counts(indices.size, n)
    if indices.size == 0:
        return
    rises = indices[1:] > indices[:-1]
    if not rises.all():
        first = int(rises.argmin())
        got = f"{indices[first]} before {indices[first + 1]}"
        raise ValueError(f"indices must rise strictly, got {got}")
    if indices[0] < 0 or indices[-1] >= n:
        raise ValueError(f"indices must lie in [0, {n}), got {indices[0]} … {indices[-1]}")


_CODERS = {
    "raw": _Coder(
        _encode_raw,
        _decode_raw,
        lambda indices, n: indices.size * _index_type(n).itemsize,
        lambda k, n: 8.0 * k * _index_type(n).itemsize,
    ),
    "packed": _Coder(
        _encode_packed,
        _decode_packed,
        lambda indices, n: _bytes_of(indices.size * _width(n)),
        lambda k, n: float(k * _width(n)),
    ),
    "bitmap": _Coder(
        _encode_bitmap, _decode_bitmap, lambda indices, n: _bytes_of(n), lambda k, n: float(n)
    ),
    "golomb": _Coder(_encode_golomb, _decode_golomb, _golomb_nbytes, _golomb_bits),
    "delta": _Coder(
        _encode_delta,
        _decode_delta,
        lambda indices, n: int(_lengths(_gaps(indices)).sum()),
        _delta_bits,
    ),
}
CODES = tuple(_CODERS)
