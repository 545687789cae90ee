"""How each code of rising indices writes and reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Bytes = NDArray[np.uint8]
MAX_N = 1 << 60  # sums of two gaps, and 7 more bits, fit into 64
LIMBS = range(1, 9)  # bytes of a varint after the first: 9 · 7 bits hold any gap below MAX_N
FRACTION = 256  # bits behind the point where powers of 1 - ρ are compared
INVERSE_GOLDEN = (math.isqrt(5 << 2 * FRACTION) - (1 << FRACTION)) >> 1  # (φ - 1)·2^FRACTION
ONES_IN = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def rice_parameter(k: int, n: int) -> int:
    """The bits b of a gap that are sent as they are: max(0, 1 + ⌊log₂(ln(φ-1)/ln(1-k/n))⌋).

    That is the number of m = 1, 2, 4, 8, … with (1-ρ)^m > φ - 1; 0 where k is 0. The powers are
    integers here, with 256 bits behind the point, so that every machine finds the same b.
    """
    if k == 0:
        return 0
    power = ((n - k) << FRACTION) // n
    b = 0
    while power > INVERSE_GOLDEN:
        power = power * power >> FRACTION
        b += 1
    return b


def _check_size(data: Bytes, size: int) -> None:
    if data.size != size:
        raise ValueError(f"code of indices must have {size} bytes, got {data.size}")


def _gaps(indices: Indices) -> Indices:
    gaps = np.diff(indices, prepend=-1)
    gaps -= 1
    return gaps


def _from_gaps(gaps: Indices, n: int) -> Indices:
    # steps of less than 2⁶¹ cannot leap over [2⁶⁰, 2⁶³): a sum that wraps is seen not to rise
    if gaps.size and gaps.max() >= n:
        raise ValueError(f"gap must be below {n}, got {gaps.max()}")
    indices = np.cumsum(gaps + 1)
    indices -= 1
    return indices


def _bytes_of(bits: int) -> int:
    return -(-bits // 8)


def _index_type(n: int) -> np.dtype[np.signedinteger]:
    return np.dtype("<i4" if n <= 1 << 31 else "<i8")


def _encode_raw(indices: Indices, n: int) -> Bytes:
    return indices.astype(_index_type(n)).view(np.uint8)


def _decode_raw(data: Bytes, k: int, n: int) -> Indices:
    _check_size(data, k * _index_type(n).itemsize)
    return data.view(_index_type(n)).astype(np.int64)


def _width(n: int) -> int:
    return max(n - 1, 0).bit_length()


def _overlaps(width: int) -> Iterator[tuple[int, int, int]]:
    """Value, byte and the value's place in the byte, where 8 values lie in `width` bytes."""
    for lane in range(8):
        first, last = lane * width, (lane + 1) * width
        for byte in range(first // 8, _bytes_of(last)):
            yield lane, byte, first - 8 * byte


def _shifted(values: NDArray[np.uint64], left: int) -> NDArray[np.uint64]:
    return values << np.uint64(left) if left >= 0 else values >> np.uint64(-left)


def _pack(values: Indices, width: int) -> Bytes:
    """Values below 2^width, one after the other."""
    lanes = np.zeros((8, _bytes_of(values.size)), np.uint64)
    lanes.T.flat[: values.size] = values
    packed = np.zeros((width, lanes.shape[1]), np.uint8)
    for lane, byte, left in _overlaps(width):
        packed[byte] |= _shifted(lanes[lane], left).astype(np.uint8)
    return packed.T.ravel()[: _bytes_of(values.size * width)]


def _unpack(data: Bytes, k: int, width: int) -> Indices:
    packed = np.zeros((_bytes_of(k), width), np.uint8)
    packed.reshape(-1)[: data.size] = data
    lanes = np.zeros((8, len(packed)), np.uint64)
    for lane, byte, left in _overlaps(width):
        lanes[lane] |= _shifted(packed[:, byte].astype(np.uint64), -left)
    values = (lanes.T.ravel() & np.uint64((1 << width) - 1)).view(np.int64)
    if values[k:].any() or (k * width % 8 and data[-1] >> (k * width % 8)):
        raise ValueError("bits behind the last index must be 0")
    return values[:k]


def _encode_packed(indices: Indices, n: int) -> Bytes:
    return _pack(indices, _width(n))


def _decode_packed(data: Bytes, k: int, n: int) -> Indices:
    _check_size(data, _bytes_of(k * _width(n)))
    return _unpack(data, k, _width(n))


def _encode_bitmap(indices: Indices, n: int) -> Bytes:
    data = np.zeros(_bytes_of(n), np.uint8)
    places = indices >> 3
    firsts = np.flatnonzero(np.diff(places, prepend=-1))
    if firsts.size:
        bits = np.left_shift(1, indices & 7).astype(np.uint8)
        data[places[firsts]] = np.bitwise_or.reduceat(bits, firsts)
    return data


def _decode_bitmap(data: Bytes, k: int, n: int) -> Indices:
    _check_size(data, _bytes_of(n))
    places = np.flatnonzero(data)
    used = data[places]
    ones = int(ONES_IN[used].sum(dtype=np.int64))
    if ones != k:
        raise ValueError(f"bitmap must have {k} ones, got {ones}")
    bits = np.flatnonzero(np.unpackbits(used, bitorder="little"))
    return np.asarray((places[bits >> 3] << 3) | (bits & 7))


def _encode_golomb(indices: Indices, n: int) -> Bytes:
    """All b low bits of the gaps; from the next byte on, for each a 1 a quotient and a 0."""
    b = rice_parameter(indices.size, n)
    gaps = _gaps(indices)
    ends = np.cumsum((gaps >> b) + 1) - 1
    unary = np.ones(int(ends[-1]) + 1 if ends.size else 0, np.uint8)
    unary[ends] = 0
    low = gaps & ((1 << b) - 1)
    return np.concatenate([_pack(low, b), np.packbits(unary, bitorder="little")])


def _decode_golomb(data: Bytes, k: int, n: int) -> Indices:
    b = rice_parameter(k, n)
    split = _bytes_of(k * b)
    if data.size < split:
        raise ValueError(f"code of indices must have {split} bytes or more, got {data.size}")
    zeros = 8 * (data.size - split) - int(ONES_IN[data[split:]].sum(dtype=np.int64))
    if not k <= zeros < k + 8:
        raise ValueError(f"code of indices must hold {k} gaps, got {zeros}")
    ends = np.flatnonzero(np.unpackbits(data[split:], bitorder="little") == 0)
    used = int(ends[k - 1]) + 1 if k else 0
    _check_size(data, split + _bytes_of(used))
    if ends.size != k + 8 * (data.size - split) - used:
        raise ValueError(f"code of indices must end after {k} gaps, and have 0 behind them")
    quotients = np.diff(ends[:k], prepend=-1) - 1
    if k and quotients.max() > n >> b:
        raise ValueError(f"gap must be below {n}, got {quotients.max()} times {1 << b}")
    return _from_gaps(quotients << b | _unpack(data[:split], k, b), n)


def _golomb_nbytes(indices: Indices, n: int) -> int:
    b = rice_parameter(indices.size, n)
    return _bytes_of(indices.size * b) + _bytes_of(int(((_gaps(indices) >> b) + 1).sum()))


def _golomb_bits(k: int, n: int) -> float:
    b = rice_parameter(k, n)
    return k * (b + 1 / (1 - (1 - k / n) ** (1 << b))) if k else 0.0


def _lengths(gaps: Indices) -> Indices:
    lengths = np.ones(gaps.size, np.int64)
    for limb in LIMBS:
        lengths += gaps >= 1 << 7 * limb
    return lengths


def _encode_delta(indices: Indices, n: int) -> Bytes:
    gaps = _gaps(indices)
    lengths = _lengths(gaps)
    starts = lengths.cumsum() - lengths
    data = np.zeros(int(lengths.sum()), np.uint8)
    for limb in range(int(lengths.max(initial=0))):
        longer = lengths > limb
        more = (lengths[longer] > limb + 1) << 7
        data[starts[longer] + limb] = gaps[longer] >> 7 * limb & 0x7F | more
    return data


def _decode_delta(data: Bytes, k: int, n: int) -> Indices:
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


def _delta_bits(k: int, n: int) -> float:
    if not k:
        return 0.0
    longer = sum((1 - k / n) ** (1 << 7 * limb) for limb in LIMBS)
    return 8 * k * (1 + longer)
