"""Parsers of rising indices from bytes of unknown origin: numpy, and every claim is checked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gradstats.payloads.index_coders import bytes_of, raw_itemsize, rice_parameter, width_of

Indices = NDArray[np.int64]
Bytes = NDArray[np.uint8]
ONES_IN = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def _check_size(data: Bytes, size: int) -> None:
    if data.size != size:
        raise ValueError(f"code of indices must have {size} bytes, got {data.size}")


def _from_gaps(gaps: Indices, n: int) -> Indices:
    # steps of less than 2⁶¹ cannot leap over [2⁶⁰, 2⁶³): a sum that wraps is seen not to rise
    if gaps.size and gaps.max() >= n:
        raise ValueError(f"gap must be below {n}, got {gaps.max()}")
    indices = np.cumsum(gaps + 1)
    indices -= 1
    return indices


def _overlaps(width: int) -> Iterator[tuple[int, int, int]]:
    """Value, byte and the value's place in the byte, where 8 values lie in `width` bytes."""
    for lane in range(8):
        first, last = lane * width, (lane + 1) * width
        for byte in range(first // 8, bytes_of(last)):
            yield lane, byte, first - 8 * byte


def _shifted(values: NDArray[np.uint64], left: int) -> NDArray[np.uint64]:
    return values << np.uint64(left) if left >= 0 else values >> np.uint64(-left)


def _unpack(data: Bytes, k: int, width: int) -> Indices:
    packed = np.zeros((bytes_of(k), width), np.uint8)
    packed.reshape(-1)[: data.size] = data
    lanes = np.zeros((8, len(packed)), np.uint64)
    for lane, byte, left in _overlaps(width):
        lanes[lane] |= _shifted(packed[:, byte].astype(np.uint64), -left)
    values = (lanes.T.ravel() & np.uint64((1 << width) - 1)).view(np.int64)
    if values[k:].any() or (k * width % 8 and data[-1] >> (k * width % 8)):
        raise ValueError("bits behind the last index must be 0")
    return values[:k]


def parse_raw(data: Bytes, k: int, n: int) -> Indices:
    """Numbers of 4 or 8 bytes."""
    itemsize = raw_itemsize(n)
    _check_size(data, k * itemsize)
    return data.view(f"<i{itemsize}").astype(np.int64)


def parse_packed(data: Bytes, k: int, n: int) -> Indices:
    """Numbers of ⌈log₂ n⌉ bits, and 0 behind them."""
    _check_size(data, bytes_of(k * width_of(n)))
    return _unpack(data, k, width_of(n))


def parse_bitmap(data: Bytes, k: int, n: int) -> Indices:
    """The ones of n bits; k of them."""
    _check_size(data, bytes_of(n))
    places = np.flatnonzero(data)
    used = data[places]
    ones = int(ONES_IN[used].sum(dtype=np.int64))
    if ones != k:
        raise ValueError(f"bitmap must have {k} ones, got {ones}")
    bits = np.flatnonzero(np.unpackbits(used, bitorder="little"))
    return np.asarray((places[bits >> 3] << 3) | (bits & 7))


def parse_golomb(data: Bytes, k: int, n: int) -> Indices:
    """Low bits and quotients of k gaps, and nothing behind them."""
    b = rice_parameter(k, n)
    split = bytes_of(k * b)
    if data.size < split:
        raise ValueError(f"code of indices must have {split} bytes or more, got {data.size}")
    zeros = 8 * (data.size - split) - int(ONES_IN[data[split:]].sum(dtype=np.int64))
    if not k <= zeros < k + 8:
        raise ValueError(f"code of indices must hold {k} gaps, got {zeros}")
    ends = np.flatnonzero(np.unpackbits(data[split:], bitorder="little") == 0)
    used = int(ends[k - 1]) + 1 if k else 0
    _check_size(data, split + bytes_of(used))
    if ends.size != k + 8 * (data.size - split) - used:
        raise ValueError(f"code of indices must end after {k} gaps, and have 0 behind them")
    quotients = np.diff(ends[:k], prepend=-1) - 1
    if k and quotients.max() > n >> b:
        raise ValueError(f"gap must be below {n}, got {quotients.max()} times {1 << b}")
    return _from_gaps(quotients << b | _unpack(data[:split], k, b), n)


def parse_delta(data: Bytes, k: int, n: int) -> Indices:
    """k varints, each as short as it can be."""
    ends = np.flatnonzero(data < 0x80)
    if ends.size != k or (data.size and data[-1] >= 0x80):
        raise ValueError(f"code of indices must have {k} varints, got {ends.size}")
    lengths = np.diff(ends, prepend=-1)
    if (lengths > 9).any() or (data[ends[lengths > 1]] == 0).any():
        raise ValueError("a varint must be as short as it can, and at most 9 bytes long")
    gaps = np.zeros(k, np.int64)
    for limb in range(int(lengths.max(initial=0))):
        longer = lengths > limb
        place = ends[longer] - lengths[longer] + 1 + limb
        gaps[longer] |= (data[place] & 0x7F).astype(np.int64) << 7 * limb
    return _from_gaps(gaps, n)
