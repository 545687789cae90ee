"""Entropy coding of symbols by interleaved asymmetric numeral systems.

As in `gradstats.kernels`, the same functions are in `ans_eager` (numpy, the definition) and
`ans_cpu` (numba); bytes are identical. Runs of 2¹⁸ symbols are coded by themselves, so that
threads share them: a byte with the number of states of each, the words of every run but the last
in 32 bits, and for every run its states in 32 bits and its words in 16, all little-endian.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels import ans_eager
from gradstats.kernels.ans_eager import RUN, Coded, Tables
from gradstats.kernels.forms import HAVE_NUMBA, form

LANES = (8, 1)
BRIEF = 1 << 12  # bytes of a run, up to which seven more states are not worth their 14 bytes


def count(symbols: NDArray[np.integer], levels: int) -> NDArray[np.int64]:
    """How often each of the levels is there, `[L]`.

    Args:
        symbols: `[n]`, below L.
        levels: L, at most 2¹⁶.
    """
    counts: NDArray[np.int64] = _form().count(symbols, levels)
    return counts


def encode(symbols: NDArray[np.integer], frequencies: NDArray[np.int64], levels: int = 0) -> bytes:
    """Code symbols.

    Args:
        symbols: `[n]`.
        frequencies: of the units, int64, of sum 2¹⁶, each at least 1.
        levels: L, where two symbols are one unit a + L b, at most 16; else 0.
    """
    tables = _tables(frequencies.tobytes())
    data = b""
    for lanes in LANES:
        data = _joined(_form().encode(symbols, tables, levels, lanes), lanes)
        if len(data) > BRIEF * -(-len(symbols) // RUN):
            break
    return data


def _joined(coded: list[Coded], lanes: int) -> bytes:
    if not coded:
        return b""
    lengths = np.array([len(words) for _, words in coded[:-1]], "<u4")
    parts = [part.astype(f"<u{part.itemsize}").tobytes() for run in coded for part in run]
    return b"".join([bytes([lanes]), lengths.tobytes(), *parts])


def decode(
    data: bytes, n: int, frequencies: NDArray[np.int64], levels: int = 0
) -> NDArray[np.integer]:
    """The n symbols of `encode`: uint8, uint16 above 256 units.

    Raises:
        ValueError: bytes that `encode` does not give.
    """
    tables = _tables(frequencies.tobytes())
    symbols = _form().decode(_split(data, -(-n // RUN)), n, tables, levels)
    if symbols is None:
        raise ValueError(f"coded symbols must end after {n}")
    return np.asarray(symbols)


def _split(data: bytes, runs: int) -> list[Coded]:
    """States and words of every run."""
    lanes = data[0] if data else 0
    head = 1 + 4 * (runs - 1)
    if not runs and not data:
        return []
    if lanes not in LANES or len(data) < head + 4 * lanes * runs or not runs or len(data) % 2 == 0:
        raise ValueError(f"coded symbols must have a head of {runs} runs, got {len(data)} bytes")
    lengths = np.frombuffer(data, "<u4", runs - 1, 1).astype(np.int64)
    last = (len(data) - head - 4 * lanes * runs) // 2 - int(lengths.sum())
    if last < 0:
        raise ValueError(f"coded symbols must have the words of {runs} runs, {-last} are missing")
    coded, place = [], head
    for length in [*lengths.tolist(), last]:
        states = np.frombuffer(data, "<u4", lanes, place)
        place += 4 * lanes
        coded.append((states, np.frombuffer(data, "<u2", length, place)))
        place += 2 * length
    return coded


@lru_cache(maxsize=64)
def _tables(frequencies: bytes) -> Tables:
    return ans_eager.tables(np.frombuffer(frequencies, np.int64))


def _form() -> ModuleType:
    if HAVE_NUMBA and form() == "auto":
        from gradstats.kernels import ans_cpu

        return ans_cpu
    return ans_eager
