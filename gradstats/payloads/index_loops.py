"""Golomb codes of rising indices on the host, in numba: one pass over the indices each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.compiling import jit


@jit
def measure(indices: NDArray[np.int64], b: int, limbs: int) -> tuple[int, int, int]:
    """The least gap, the sum of gaps >> b, and the bytes of the gaps as varints."""
    least, quotients, nbytes = indices[0], 0, indices.size
    before = -1
    for i in range(indices.size):
        gap = indices[i] - before - 1
        before = indices[i]
        least = min(least, gap)
        quotients += gap >> b
        for limb in range(1, limbs):
            nbytes += gap >= 1 << 7 * limb
    return least, quotients, nbytes


@jit
def _write_golomb(
    indices: NDArray[np.int64], b: int, low: NDArray[np.uint8], unary: NDArray[np.uint8]
) -> None:
    waiting, bits, place, position = np.uint64(0), 0, 0, 0
    mask = (1 << b) - 1
    before = -1
    for i in range(indices.size):
        gap = indices[i] - before - 1
        before = indices[i]
        waiting |= np.uint64(gap & mask) << np.uint64(bits)
        bits += b
        while bits >= 8:
            low[place] = np.uint8(waiting & np.uint64(255))
            waiting >>= np.uint64(8)
            place, bits = place + 1, bits - 8
        for _ in range(gap >> b):
            unary[position >> 3] |= np.uint8(1 << (position & 7))
            position += 1
        position += 1
    if bits:
        low[place] = np.uint8(waiting)


def write_golomb(indices: NDArray[np.int64], b: int, nbytes: int) -> NDArray[Any]:
    """See `index_coders.write_golomb`; uint8 `[nbytes]`.

    Args:
        indices: rising, `[k]`.
        b: low bits of a gap, at most 56: beside 7 that wait they fit into 64.
        nbytes: length of the code.
    """
    data = np.zeros(nbytes, np.uint8)
    split = -(-indices.size * b // 8)
    _write_golomb(indices, b, data[:split], data[split:])
    return data


@jit
def _read_golomb(
    low: NDArray[np.uint8], unary: NDArray[np.uint8], b: int, n: int, out: NDArray[np.int64]
) -> bool:
    waiting, bits, place, position = np.uint64(0), 0, 0, 0
    mask, total = np.uint64((1 << b) - 1), 8 * unary.size
    index = np.int64(-1)
    for i in range(out.size):
        while bits < b:
            waiting |= np.uint64(low[place]) << np.uint64(bits)
            place, bits = place + 1, bits + 8
        rest = np.int64(waiting & mask)
        waiting, bits = waiting >> np.uint64(b), bits - b
        first = position
        while position < total and unary[position >> 3] >> (position & 7) & 1:
            position += 1
        if position == total or position - first > n >> b:
            return False
        index = np.int64(index + 1 + ((position - first) << b | rest))
        if index >= n:
            return False
        out[i] = index
        position += 1
    ended = position + 7 >> 3 == unary.size and place == low.size and waiting == np.uint64(0)
    while ended and position < total:
        ended = not unary[position >> 3] >> (position & 7) & 1
        position += 1
    return ended


def read_golomb(data: NDArray[np.uint8], k: int, n: int, b: int) -> NDArray[np.int64] | None:
    """Decode k indices below n; None for any bytes that `write_golomb` does not give."""
    split = -(-k * b // 8)
    out = np.empty(k, np.int64)
    return out if _read_golomb(data[:split], data[split:], b, n, out) else None
