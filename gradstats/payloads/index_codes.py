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

Indices are encoded on the device that they are on. Of raw, packed and bitmap k and n determine
the length; for the lengths of golomb and delta the host waits for the device, once for both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels.forms import in_numba, on_host
from gradstats.payloads import index_coders as coders
from gradstats.payloads import index_parsers as parsers
from gradstats.payloads.index_coders import LIMBS, MAX_N, bytes_of, rice_parameter


def encode_indices(indices: Tensor, n: int, code: str, nbytes: int | None = None) -> Tensor:
    """Encode indices: uint8 `[nbytes]`, on their device.

    On a device, indices that do not rise are refused by golomb and delta, whose length tells; the
    other codes leave that to `decode_indices`, so that nothing waits.

    Args:
        indices: int64 `[k]`, strictly rising, in [0, n).
        n: number of elements, at most 2⁶⁰.
        code: one of `CODES`.
        nbytes: `encoded_nbytes` of the same, if it is known.

    Raises:
        ValueError: indices that do not rise or lie outside [0, n); an unknown code.
    """
    coder = _coder(code)
    if on_host(indices):
        _check_indices(indices.numpy(), n)
    if nbytes is None:
        nbytes = encoded_nbytes(indices, n, code)
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8, device=indices.device)
    return coder.write(indices, n, nbytes)


def decode_indices(data: bytes | memoryview, k: int, n: int, code: str) -> NDArray[np.int64]:
    """Decode indices from bytes of unknown origin: int64 `[k]`, strictly rising, in [0, n).

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
    indices = coder.parse(np.frombuffer(data, np.uint8), k, n)
    _check_indices(indices, n)
    return indices


def read_indices(data: Tensor, k: int, n: int, code: str) -> Tensor:
    """Decode indices from a message that is known to be intact, on its device.

    Nothing waits for the device, so nothing is checked there but the length: of other bytes the
    result is arbitrary, in [0, n). On the CPU the parser that checks is the faster one.

    Args:
        data: the result of `encode_indices`, uint8 `[nbytes]`.
        k: number of indices.
        n: number of elements.
        code: the code that `data` is in.

    Returns:
        Int64 `[k]`.

    Raises:
        ValueError: a length that no encoding of k indices below n has; on the CPU any other bytes.
    """
    coder = _coder(code)
    _check_counts(k, n)
    least = coder.nbytes(k, n)
    if len(data) < least or (coder.measure is None and len(data) > least):
        raise ValueError(f"code of {k} indices must have {least} bytes, got {len(data)}")
    if not k:
        return torch.empty(0, dtype=torch.int64, device=data.device)
    if code == "golomb" and in_numba(data):
        decoded = coders.golomb_on_host(data, k, n)
        if decoded is not None:  # else the parser says why
            return decoded
    if on_host(data):
        return torch.from_numpy(decode_indices(data.numpy().data, k, n, code))
    return coder.read(data, k, n).clamp(0, n - 1)


def encoded_nbytes(indices: Tensor, n: int, code: str) -> int:
    """Return the length of `encode_indices(indices, n, code)`, without encoding.

    Raises:
        ValueError: as `encode_indices`.
    """
    return _lengths(indices, n, (code,))[code]


def cheapest(indices: Tensor, n: int) -> tuple[str, int]:
    """Return the code with the fewest bytes, of equals the first in `CODES`, and their number.

    Raises:
        ValueError: indices that do not rise or lie outside [0, n).
    """
    lengths = _lengths(indices, n, CODES)
    return min(lengths.items(), key=lambda item: item[1])


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
    write: Callable[[Tensor, int, int], Tensor]
    read: Callable[[Tensor, int, int], Tensor]
    parse: Callable[[parsers.Bytes, int, int], parsers.Indices]
    bits: Callable[[int, int], float]
    nbytes: Callable[[int, int], int]  # of k indices; the fewest, where `measure` has the rest
    measure: Callable[[Tensor, int], Tensor] | None = None  # bytes of gaps


def _coder(code: str) -> _Coder:
    if code not in _CODERS:
        raise ValueError(f"code must be one of {', '.join(CODES)}, got {code!r}")
    return _CODERS[code]


def _lengths(indices: Tensor, n: int, codes: tuple[str, ...]) -> dict[str, int]:
    """Bytes of each code; those that the indices determine are read from the device together."""
    k = len(indices)
    _check_counts(k, n)
    lengths = {code: _coder(code).nbytes(k, n) for code in codes}
    measures = {code: _coder(code).measure for code in codes if k}
    open_ones = {code: measure for code, measure in measures.items() if measure}
    if not open_ones:
        return lengths
    if in_numba(indices):
        least, known = coders.measured(indices, n)
        if least < 0 or int(indices[-1]) >= n:
            _check_indices(indices.numpy(), n)
        return lengths | {code: known[code] for code in open_ones}
    gaps = coders.gaps_of(indices)
    sizes = [measure(gaps, n) for measure in open_ones.values()]
    least, last, *nbytes = torch.stack([gaps.min(), indices[-1], *sizes]).tolist()
    if least < 0 or last >= n:
        _check_indices(indices.cpu().numpy(), n)
    return lengths | dict(zip(open_ones, nbytes, strict=True))


def _check_counts(k: int, n: int) -> None:
    if not 0 <= k <= n <= MAX_N:
        raise ValueError(f"k and n must satisfy 0 <= k <= n <= 2**60, got {k} and {n}")


def _check_indices(indices: NDArray[np.int64], n: int) -> None:
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


def _golomb_bits(k: int, n: int) -> float:
    b = rice_parameter(k, n)
    return k * (b + 1 / (1 - (1 - k / n) ** (1 << b))) if k else 0.0


def _delta_bits(k: int, n: int) -> float:
    if not k:
        return 0.0
    longer = sum((1 - k / n) ** (1 << 7 * limb) for limb in LIMBS)
    return 8 * k * (1 + longer)


_CODERS = {
    "raw": _Coder(
        coders.write_raw,
        coders.read_raw,
        parsers.parse_raw,
        lambda k, n: 8.0 * k * coders.raw_itemsize(n),
        lambda k, n: k * coders.raw_itemsize(n),
    ),
    "packed": _Coder(
        coders.write_packed,
        coders.read_packed,
        parsers.parse_packed,
        lambda k, n: float(k * coders.width_of(n)),
        lambda k, n: bytes_of(k * coders.width_of(n)),
    ),
    "bitmap": _Coder(
        coders.write_bitmap,
        coders.read_bitmap,
        parsers.parse_bitmap,
        lambda k, n: float(n),
        lambda k, n: bytes_of(n),
    ),
    "golomb": _Coder(
        coders.write_golomb,
        coders.read_golomb,
        parsers.parse_golomb,
        _golomb_bits,
        lambda k, n: bytes_of(k * rice_parameter(k, n)) + bytes_of(k),
        coders.golomb_nbytes,
    ),
    "delta": _Coder(
        coders.write_delta,
        coders.read_delta,
        parsers.parse_delta,
        _delta_bits,
        lambda k, n: k,
        coders.delta_nbytes,
    ),
}
CODES = tuple(_CODERS)
OF_KNOWN_LENGTH = tuple(code for code in CODES if _CODERS[code].measure is None)
