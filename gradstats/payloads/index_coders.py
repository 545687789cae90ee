"""How each code of rising indices writes them, and reads them from a message that is trusted.

Torch on any device. Nothing waits for the device: k, n and the length of the bytes are known.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from gradstats.kernels.forms import in_numba

MAX_N = 1 << 60  # sums of two gaps, and 7 more bits, fit into 64
LIMBS = range(1, 9)  # bytes of a varint after the first: 9 · 7 bits hold any gap below MAX_N
SHORT = 57  # bits of a gap as they are, from which on torch writes them
FRACTION = 256  # bits behind the point where powers of 1 - ρ are compared
INVERSE_GOLDEN = (math.isqrt(5 << 2 * FRACTION) - (1 << FRACTION)) >> 1  # (φ - 1)·2^FRACTION


@lru_cache(maxsize=4096)
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


def bytes_of(bits: int) -> int:
    """Bytes that hold a number of bits."""
    return -(-bits // 8)


def raw_itemsize(n: int) -> int:
    """Bytes of an index as it is."""
    return 4 if n <= 1 << 31 else 8


def width_of(n: int) -> int:
    """Bits of an index below n."""
    return max(n - 1, 0).bit_length()


def gaps_of(indices: Tensor) -> Tensor:
    """Elements passed over before each index, int64 `[k]`: none is negative where they rise."""
    gaps = indices.clone()
    gaps[1:].sub_(indices[:-1]).sub_(1)
    return gaps


def _from_gaps(gaps: Tensor) -> Tensor:
    return gaps.add_(1).cumsum(0).sub_(1)


def write_raw(indices: Tensor, n: int, nbytes: int) -> Tensor:
    """4 bytes per index, 8 above n = 2³¹."""
    return indices.to(_integer(n)).view(torch.uint8)


def read_raw(data: Tensor, k: int, n: int) -> Tensor:
    """See `write_raw`."""
    indices = torch.empty(k, dtype=_integer(n), device=data.device)
    indices.view(torch.uint8).copy_(data)  # data itself need not be aligned
    return indices.long()


def _integer(n: int) -> torch.dtype:
    return torch.int32 if raw_itemsize(n) == 4 else torch.int64


def _words_of(bits: int) -> int:
    """64-bit words for some bits, and one into which the last value may reach."""
    return -(-bits // 64) + 1


def _lanes(k: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For k values of `width` bits: the word that each begins in, and the bits before it there."""
    starts = torch.arange(k, device=device).mul_(width)
    return starts >> 6, starts & 63


def _pack(values: Tensor, width: int) -> Tensor:
    """Values below 2^width, one after the other."""
    if not width:
        return torch.empty(0, dtype=torch.uint8, device=values.device)
    bits = len(values) * width
    words = values.new_zeros(_words_of(bits))
    word, before = _lanes(len(values), width, values.device)
    words.index_add_(0, word, values << before)
    words.index_add_(0, word.add_(1), values >> 1 >> (63 - before))  # a shift by 64 is undefined
    return words.view(torch.uint8)[: bytes_of(bits)]


def _unpack(data: Tensor, k: int, width: int) -> Tensor:
    if not width:
        return torch.zeros(k, dtype=torch.int64, device=data.device)
    words = torch.zeros(_words_of(k * width), dtype=torch.int64, device=data.device)
    words.view(torch.uint8)[: len(data)] = data
    word, before = _lanes(k, width, data.device)
    first = words.index_select(0, word).bitwise_right_shift_(before)
    first &= ~(-2 << (63 - before))  # copies of the sign
    second = words.index_select(0, word.add_(1)).bitwise_left_shift_(1)
    second <<= 63 - before  # a shift by 64 is undefined
    return first.bitwise_or_(second).bitwise_and_((1 << width) - 1)


def write_packed(indices: Tensor, n: int, nbytes: int) -> Tensor:
    """⌈log₂ n⌉ bits per index."""
    return _pack(indices, width_of(n))


def read_packed(data: Tensor, k: int, n: int) -> Tensor:
    """See `write_packed`."""
    return _unpack(data, k, width_of(n))


def write_bitmap(indices: Tensor, n: int, nbytes: int) -> Tensor:
    """A bit for each element, 1 for those that are sent."""
    return _bitmap(indices, nbytes)


def _bitmap(ones: Tensor, nbytes: int) -> Tensor:
    words = ones.new_zeros(_words_of(8 * nbytes))
    words.index_add_(0, ones >> 6, 1 << (ones & 63))
    return words.view(torch.uint8)[:nbytes]


def read_bitmap(data: Tensor, k: int, n: int) -> Tensor:
    """See `write_bitmap`."""
    most = min(k, len(data))
    used = torch.nonzero_static(data, size=most, fill_value=len(data) - 1).squeeze(1)
    return _ones_of(data.index_select(0, used), used, k)


def _ones_of(data: Tensor, places: Tensor, k: int) -> Tensor:
    """The first k ones of bytes that lie at some places; of too few ones, the last bit again."""
    powers = 1 << torch.arange(8, dtype=torch.uint8, device=data.device)
    bits = (data.unsqueeze(1) & powers).reshape(-1)
    ones = torch.nonzero_static(bits, size=k, fill_value=len(bits) - 1).squeeze(1)
    return places.index_select(0, ones >> 3) << 3 | ones & 7


def write_golomb(indices: Tensor, n: int, nbytes: int) -> Tensor:
    """All b low bits of the gaps; from the next byte on, for each a 1 a quotient and a 0."""
    k = len(indices)
    b = rice_parameter(k, n)
    if in_numba(indices) and b < SHORT:
        from gradstats.payloads import index_loops

        return torch.from_numpy(index_loops.write_golomb(indices.numpy(), b, nbytes))
    gaps = gaps_of(indices)
    ends = (gaps >> b).add_(1).cumsum(0).sub_(1)
    unary = _bitmap(ends, nbytes - bytes_of(k * b)).bitwise_not_()
    unary[-1:].bitwise_and_((2 << (ends[-1:] & 7)) - 1)
    return torch.cat([_pack(gaps & ((1 << b) - 1), b), unary])


def golomb_nbytes(gaps: Tensor, n: int) -> Tensor:
    """Bytes of `write_golomb`, int64 `[]`."""
    k = len(gaps)
    b = rice_parameter(k, n)
    return ((gaps >> b).sum() + (k + 7) >> 3) + bytes_of(k * b)


def measured(indices: Tensor, n: int) -> tuple[int, dict[str, int]]:
    """The least gap of indices on the host, and the bytes of golomb and delta, in one pass."""
    from gradstats.payloads import index_loops

    k = len(indices)
    b = rice_parameter(k, n)
    least, quotients, delta = index_loops.measure(indices.numpy(), b, _most_limbs(n))
    return least, {"golomb": bytes_of(k * b) + bytes_of(quotients + k), "delta": delta}


def read_golomb(data: Tensor, k: int, n: int) -> Tensor:
    """See `write_golomb`."""
    b = rice_parameter(k, n)
    split = bytes_of(k * b)
    unary = data[split:]
    ends = _ones_of(~unary, torch.arange(len(unary), device=data.device), k)
    return _from_gaps(gaps_of(ends) << b | _unpack(data[:split], k, b))


def golomb_on_host(data: Tensor, k: int, n: int) -> Tensor | None:
    """Decode what `write_golomb` has written, on the host; None for any other bytes."""
    from gradstats.payloads import index_loops

    b = rice_parameter(k, n)
    decoded = index_loops.read_golomb(data.numpy(), k, n, b) if b < SHORT else None
    return None if decoded is None else torch.from_numpy(decoded)


def write_delta(indices: Tensor, n: int, nbytes: int) -> Tensor:
    """The gaps as LEB128: 7 bits per byte, and a top bit of 1 on all but the last."""
    gaps = gaps_of(indices)
    lengths = _lengths(gaps, n)
    places = lengths.cumsum(0).sub_(lengths)
    data = torch.zeros(nbytes + len(LIMBS), dtype=torch.uint8, device=gaps.device)
    for limb in range(_most_limbs(n)):
        byte = (gaps & 0x7F).to(torch.uint8)
        byte |= (lengths > limb + 1).to(torch.uint8) << 7
        data.index_add_(0, places, byte)  # to what follows a varint that has ended, 0 is added
        gaps >>= 7
        places += 1
    return data[:nbytes]


def delta_nbytes(gaps: Tensor, n: int) -> Tensor:
    """Bytes of `write_delta`, int64 `[]`."""
    return _lengths(gaps, n).sum()


def _most_limbs(n: int) -> int:
    return max(1, -(-width_of(n) // 7))


def _lengths(gaps: Tensor, n: int) -> Tensor:
    lengths = torch.ones_like(gaps)
    for limb in range(1, _most_limbs(n)):
        lengths += gaps >= 1 << 7 * limb
    return lengths


def read_delta(data: Tensor, k: int, n: int) -> Tensor:
    """See `write_delta`."""
    last = len(data) - 1
    ends = torch.nonzero_static(data < 0x80, size=k, fill_value=last).squeeze(1)
    places = torch.cat([ends.new_zeros(1), ends[:-1] + 1])
    gaps = torch.zeros_like(ends)
    for limb in range(_most_limbs(n)):
        bits = data.index_select(0, places.clamp(max=last)).long() & 0x7F
        gaps |= torch.where(places <= ends, bits, 0) << 7 * limb
        places += 1
    return _from_gaps(gaps)
