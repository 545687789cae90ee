"""The loops of `ans_cpu`, compiled by numba: eight states in turn, so that none is waited for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.ans_eager import Tables
from gradstats.kernels.compiling import jit

U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
ONE, FOUR, HALF = U64(1), U64(4), U64(16)
LEAST, LOW = U64(1 << 16), U64(0xFFFF)  # of a state, and its lower half
FINE = U64(47)  # bits behind the point of `Tables.inverses`


@jit
def count(symbols: NDArray[Any], counts: NDArray[Any]) -> None:
    """Count symbols in four tables, so that equal ones in a row do not wait for each other."""
    one, two, three, four = counts[0], counts[1], counts[2], counts[3]
    fours = symbols[: symbols.size // 4 * 4].reshape(-1, 4)
    for i in range(fours.shape[0]):
        one[fours[i, 0]] += 1
        two[fours[i, 1]] += 1
        three[fours[i, 2]] += 1
        four[fours[i, 3]] += 1
    for symbol in symbols[4 * fours.shape[0] :]:
        one[symbol] += 1


@jit
def join(symbols: NDArray[Any], levels: int, units: NDArray[Any]) -> None:
    """Of two symbols a + L b; of the last one, if it is alone, itself."""
    pairs, factor = symbols.size // 2, U8(levels)
    two = symbols[: 2 * pairs].view(np.uint16)
    for i in range(pairs):
        units[i] = U8(U8(two[i]) + U8(U8(two[i] >> U16(8)) * factor))
    if symbols.size % 2:
        units[pairs] = symbols[-1]


@jit
def part(units: NDArray[Any], levels: int, symbols: NDArray[Any]) -> bool:
    """The inverse of `join`; whether what follows a last symbol is 0."""
    pairs, inverse = symbols.size // 2, U16((1 << 16) // levels + 1)
    two = symbols[: 2 * pairs].view(np.uint16)
    factor = U16(levels)
    for i in range(pairs):
        upper = U16((U32(units[i]) * U32(inverse)) >> U32(16))
        two[i] = U16(U16(units[i]) - U16(upper * factor)) | U16(upper << U16(8))
    if symbols.size % 2 == 0:
        return True
    symbols[-1] = units[pairs]
    return int(units[pairs]) < levels


@jit
def _put(x: Any, unit: int, place: Any, tables: Tables, out: NDArray[Any]) -> tuple[Any, Any]:
    """A state with a unit on it; its low half goes before `place` where it gets too large."""
    out[place - ONE] = U16(x)
    full = U64(x >= tables.most[unit])
    x >>= full << FOUR
    quotient = ((x + tables.increments[unit]) * tables.inverses[unit]) >> FINE
    return x + tables.starts[unit] + quotient * tables.others[unit], place - full


@jit
def encode(units: NDArray[Any], tables: Tables, states: NDArray[Any], out: NDArray[Any]) -> int:
    """Code the last unit first, words from the end of `out` on; where they begin."""
    states[:] = LEAST
    rest = units.size % 8 if states.size == 8 else units.size
    place: Any = U64(out.size)
    for back in range(1, rest + 1):
        lane = (rest - back) % states.size
        unit = units[units.size - back]
        states[lane], place = _put(states[lane], unit, place, tables, out)
    if rest < units.size:
        place = _encode_eights(units[: units.size - rest], tables, states, out, place)
    return int(place)


@jit
def _encode_eights(
    units: NDArray[Any], tables: Tables, states: NDArray[Any], out: NDArray[Any], place: Any
) -> Any:
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
    for end in range(units.size, 0, -8):
        eight = units[end - 8 : end]
        x7, place = _put(x7, eight[7], place, tables, out)
        x6, place = _put(x6, eight[6], place, tables, out)
        x5, place = _put(x5, eight[5], place, tables, out)
        x4, place = _put(x4, eight[4], place, tables, out)
        x3, place = _put(x3, eight[3], place, tables, out)
        x2, place = _put(x2, eight[2], place, tables, out)
        x1, place = _put(x1, eight[1], place, tables, out)
        x0, place = _put(x0, eight[0], place, tables, out)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return place


@jit
def _take(x: Any, place: Any, tables: Tables, words: NDArray[Any]) -> tuple[Any, Any, Any]:
    """The unit on a state, the state below it, filled up by the next word if it is too small."""
    slot = x & LOW
    unit = tables.units[slot]
    x = (x >> HALF) * tables.frequencies[unit] + slot - tables.starts[unit]
    short = U64(x < LEAST)
    x = x << (short << FOUR) | U64(words[place]) * short
    return unit, x, place + short


@jit
def decode(words: NDArray[Any], tables: Tables, states: NDArray[Any], units: NDArray[Any]) -> bool:
    """The units; whether they end with the states and words. Eight words of 0 follow the last."""
    if states.min() < LEAST:
        return False
    done, place, last = 0, U64(0), U64(words.size - 8)
    if states.size == 8:
        done, place = _decode_eights(words, tables, states, units)
    for i in range(done, units.size):
        if place > last:
            return False
        lane = i % states.size
        units[i], states[lane], place = _take(states[lane], place, tables, words)
    return bool(place == last and states.max() == LEAST)


@jit
def _decode_eights(
    words: NDArray[Any], tables: Tables, states: NDArray[Any], units: NDArray[Any]
) -> tuple[Any, Any]:
    """Units in eights for as long as there are words; how many, and the words taken."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
    done, place, last = 0, U64(0), U64(words.size - 8)
    while done + 8 <= units.size and place <= last:
        eight = units[done : done + 8]
        eight[0], x0, place = _take(x0, place, tables, words)
        eight[1], x1, place = _take(x1, place, tables, words)
        eight[2], x2, place = _take(x2, place, tables, words)
        eight[3], x3, place = _take(x3, place, tables, words)
        eight[4], x4, place = _take(x4, place, tables, words)
        eight[5], x5, place = _take(x5, place, tables, words)
        eight[6], x6, place = _take(x6, place, tables, words)
        eight[7], x7, place = _take(x7, place, tables, words)
        done += 8
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return done, place
