r"""Interleaved asymmetric numeral systems in numpy: the definition.

Eight states, or one, take the units of a run in turn. A state is 2¹⁶ … 2³² - 1; to put unit u on
it, with frequency f of 2¹⁶ and F the sum of those before it, its low half goes to the words if it
is at least 2¹⁶ f, and then

.. math:: x \to 2^{16} \lfloor x/f \rfloor + F + x \bmod f.

The last unit is coded first, so that words are read in the order of units. References: Duda,
"Asymmetric numeral systems", 2009; Giesen, "Interleaved entropy coders", 2014.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RUN = 1 << 18  # symbols that are coded by themselves
LEAST, LOW, SHIFT = np.uint64(1 << 16), np.uint64(0xFFFF), np.uint64(16)
FINE = np.uint64(1 << 47)  # one in `inverses`

U64s = NDArray[np.uint64]
Coded = tuple[NDArray[np.uint32], NDArray[np.uint16]]  # states, words


class Tables(NamedTuple):
    r"""What coding a unit takes.

    ⌊x/f⌋ is :math:`\lfloor (x + i) m / 2^{47} \rfloor` for all x below 2¹⁶ f: with m rounded up
    and i = 0 where that moves 2⁴⁷/f by at most f/2, else with m rounded down and i = 1.

    Attributes:
        units: uint8 or uint16 `[65536]`, the unit of the low half of a state.
        frequencies: f, `[L]`.
        starts: F, `[L]`.
        others: 2¹⁶ - f, `[L]`.
        most: 2¹⁶ f, from which on a state is too large, `[L]`.
        inverses: m, `[L]`.
        increments: i, `[L]`.
    """

    units: NDArray[np.unsignedinteger]
    frequencies: U64s
    starts: U64s
    others: U64s
    most: U64s
    inverses: U64s
    increments: U64s


def tables(frequencies: NDArray[np.int64]) -> Tables:
    """Tables of frequencies of sum 2¹⁶, each at least 1 and below 2¹⁶."""
    f = frequencies.astype(np.uint64)
    down, rest = np.divmod(FINE, f)
    up = 2 * (f - rest) <= f
    exact = rest == 0
    width = np.uint8 if len(f) <= 256 else np.uint16
    return Tables(
        units=np.repeat(np.arange(len(f)).astype(width), frequencies),
        frequencies=f,
        starts=np.cumsum(f) - f,
        others=LEAST - f,
        most=f << SHIFT,
        inverses=down + (up & ~exact),
        increments=(~up & ~exact).astype(np.uint64),
    )


def count(symbols: NDArray[np.integer], levels: int) -> NDArray[np.int64]:
    """See `ans.count`."""
    return np.bincount(symbols, minlength=levels)


def encode(symbols: NDArray[np.integer], tables: Tables, levels: int, lanes: int) -> list[Coded]:
    """States and words of every run.

    Args:
        symbols: `[n]`.
        tables: of the units.
        levels: L, where a unit is two symbols a + L b, or one at the end; else 0.
        lanes: states, 1 or 8.
    """
    runs = [symbols[start : start + RUN] for start in range(0, len(symbols), RUN)]
    return [_encoded(_joined(run, levels), tables, lanes) for run in runs]


def _joined(symbols: NDArray[np.integer], levels: int) -> NDArray[np.integer]:
    if not levels:
        return symbols
    padded = np.pad(symbols.astype(np.uint8), (0, len(symbols) % 2))
    return np.asarray(padded[::2] + levels * padded[1::2])


def _encoded(units: NDArray[np.integer], tables: Tables, lanes: int) -> Coded:
    states = np.full(lanes, LEAST, np.uint64)
    words = [np.zeros(0, np.uint16)]
    for start in reversed(range(0, len(units), lanes)):
        some = units[start : start + lanes]
        x, f = states[: len(some)], tables.frequencies[some]
        full = x >= tables.most[some]
        words.append((x[full] & LOW).astype(np.uint16))
        x = np.where(full, x >> SHIFT, x)
        states[: len(some)] = (x // f << SHIFT) + tables.starts[some] + x % f
    return states.astype(np.uint32), np.concatenate(words[::-1])


def decode(coded: list[Coded], n: int, tables: Tables, levels: int) -> NDArray[np.integer] | None:
    """The n symbols; None for states and words that do not end with them."""
    symbols = np.empty(n, tables.units.dtype)
    for start, (states, words) in zip(range(0, n, RUN), coded, strict=True):
        run = symbols[start : start + RUN]
        units = _decoded(states, words, tables, -(-len(run) // 2) if levels else len(run))
        if units is None:
            return None
        if levels:
            both = np.stack([units % levels, units // levels], axis=1).ravel()
            if both[len(run) :].any():
                return None
            units = both[: len(run)]
        run[:] = units
    return symbols


def _decoded(
    states: NDArray[np.uint32], words: NDArray[np.uint16], tables: Tables, count: int
) -> NDArray[np.unsignedinteger] | None:
    x, place, lanes = states.astype(np.uint64), 0, len(states)
    units = np.empty(count, tables.units.dtype)
    if (x < LEAST).any():
        return None
    for start in range(0, count, lanes):
        width = min(lanes, count - start)
        slots = x[:width] & LOW
        unit = units[start : start + width] = tables.units[slots]
        below = (x[:width] >> SHIFT) * tables.frequencies[unit] + slots - tables.starts[unit]
        short = np.flatnonzero(below < LEAST)
        some = words[place : place + len(short)]
        if len(some) < len(short):
            return None
        below[short] = below[short] << SHIFT | some
        x[:width] = below
        place += len(short)
    return units if place == len(words) and (x == LEAST).all() else None
