"""The loops that pack symbols and unpack them, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.coding_cpu_digits import pack_digits, unpack_digits
from gradstats.kernels.coding_cpu_packer import Packer
from gradstats.kernels.compiling import jit

U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
TO_BITS, BYTES, BIT_OF_BYTE = (
    U64(0x0102040810204080),
    U64(0x0101010101010101),
    U64(0x8040201008040201),
)
LOW_SEVEN = U64(0x7F7F7F7F7F7F7F7F)


@jit
def pack(symbols: NDArray[Any], how: Packer, out: NDArray[Any]) -> None:
    """Write symbols into all bytes of `out`."""
    whole = 0
    if how.powers.size:
        pack_digits(symbols, how, out)
    elif how.bits in (0, 8):
        for i in range(symbols.size):
            out[i] = symbols[i]
    else:
        if how.bits in (1, 2, 4) and symbols.itemsize == 1:
            whole = symbols.size // 8 * 8
            pack_narrow(symbols[:whole], how.bits, out)
        _pack_bits(symbols[whole:], U64(how.bits), out[whole * how.bits // 8 :])


@jit
def pack_narrow(symbols: NDArray[Any], bits: int, out: NDArray[Any]) -> None:
    """Symbols of 1, 2 or 4 bits, whose lanes are shifted together."""
    if bits == 4:
        pairs = symbols.view(np.uint16)
        for i in range(pairs.size):
            out[i] = U8(U16(pairs[i] | U16(pairs[i] >> U16(4))))
    elif bits == 2:
        fours = symbols.view(np.uint32)
        for i in range(fours.size):
            halves = U32(fours[i] | U32(fours[i] >> U32(6)))
            out[i] = U8(U32(halves | U32(halves >> U32(12))))
    else:
        eights = symbols.view(np.uint64)
        for i in range(eights.size):
            out[i] = U8((eights[i] * TO_BITS) >> U64(56))


@jit
def _pack_bits(symbols: NDArray[Any], bits: int, out: NDArray[Any]) -> None:
    held, fill, index = U64(0), U64(0), 0
    for i in range(symbols.size):
        held |= U64(symbols[i]) << fill
        fill += bits
        while fill >= U64(8):
            out[index] = held & U64(255)
            index += 1
            held >>= U64(8)
            fill -= U64(8)
    if fill:
        out[index] = held


@jit
def unpack(data: NDArray[Any], how: Packer, out: NDArray[Any]) -> int:
    """Read symbols from all bytes of `data`; how many are out of range. Those become 0."""
    whole = 0
    if how.powers.size:
        return int(unpack_digits(data, how, out))
    if how.bits == 8:
        whole = out.size
        for i in range(whole):
            out[i] = data[i]
    elif how.bits in (1, 2, 4) and out.itemsize == 1:
        whole = out.size // 8 * 8
        _unpack_narrow(data, how.bits, out[:whole])
    _unpack_bits(data[whole * how.bits // 8 :], U64(how.bits), out[whole:])
    if how.levels == 1 << how.bits:
        return 0
    return int(_refuse(how.levels, out))


@jit
def _refuse(levels: int, symbols: NDArray[Any]) -> int:
    """How many symbols are out of range; they become 0."""
    most, top = U32(levels - 1), U32(0)
    for i in range(symbols.size):
        top = max(top, U32(symbols[i]))
    if top <= most:
        return 0
    wrong = 0
    for i in range(symbols.size):
        if symbols[i] > most:
            wrong += 1
            symbols[i] = 0
    return wrong


@jit
def _unpack_narrow(data: NDArray[Any], bits: int, out: NDArray[Any]) -> None:
    """Symbols of 1, 2 or 4 bits: a byte becomes a wider lane."""
    if bits == 4:
        pairs = out.view(np.uint16)
        for i in range(pairs.size):
            two = U16(data[i])
            pairs[i] = U16(U16(two | U16(two << U16(4))) & U16(0x0F0F))
    elif bits == 2:
        fours = out.view(np.uint32)
        for i in range(fours.size):
            four = U32(data[i])
            four = U32(U32(four | U32(four << U32(12))) & U32(0x000F000F))
            fours[i] = U32(U32(four | U32(four << U32(6))) & U32(0x03030303))
    else:
        eights = out.view(np.uint64)
        for i in range(eights.size):
            eight = (U64(data[i]) * BYTES) & BIT_OF_BYTE
            eights[i] = ((eight + LOW_SEVEN) >> U64(7)) & BYTES


@jit
def _unpack_bits(data: NDArray[Any], bits: int, out: NDArray[Any]) -> None:
    held, fill, index = U64(0), U64(0), 0
    mask = (U64(1) << bits) - U64(1)
    for i in range(out.size):
        while fill < bits:
            held |= U64(data[index]) << fill
            index += 1
            fill += U64(8)
        out[i] = held & mask
        held >>= bits
        fill -= bits
