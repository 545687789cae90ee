"""Entropy coding in numba: each thread codes runs of symbols."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels import ans_cpu_loops as loops
from gradstats.kernels.ans_eager import RUN, Coded, Tables
from gradstats.kernels.threads import CHUNK, in_threads

PAD = np.zeros(8, np.uint16)  # see `loops.decode`


def count(symbols: NDArray[np.integer], levels: int) -> NDArray[np.int64]:
    """See `ans.count`."""
    narrow = symbols.astype(np.uint8 if levels <= 256 else np.uint16, copy=False)

    def work(turns: Iterator[int]) -> NDArray[np.int64]:
        counts = np.zeros((4, levels), np.int64)
        for turn in turns:
            loops.count(narrow[turn * RUN : (turn + 1) * RUN], counts)
        return counts

    tables = np.concatenate([np.zeros((1, levels), np.int64), *_by_turns(work, _runs(symbols))])
    return np.asarray(tables.sum(axis=0))


def encode(symbols: NDArray[np.integer], tables: Tables, levels: int, lanes: int) -> list[Coded]:
    """See `ans_eager.encode`."""
    coded: list[Coded] = [None] * _runs(symbols)  # type: ignore[list-item]

    def work(turns: Iterator[int]) -> None:
        together = 2 if levels else 1
        held = np.empty(RUN // together, tables.units.dtype)
        out = np.empty(RUN // together + 1, np.uint16)
        for turn in turns:
            run = symbols[turn * RUN : (turn + 1) * RUN]
            units = held[: -(-len(run) // together)]
            if levels:
                loops.join(run, levels, units)
            else:
                units[:] = run
            states = np.empty(lanes, np.uint64)
            first = loops.encode(units, tables, states, out)
            coded[turn] = states.astype(np.uint32), out[first:].copy()

    _by_turns(work, len(coded))
    return coded


def decode(coded: list[Coded], n: int, tables: Tables, levels: int) -> NDArray[np.integer] | None:
    """See `ans_eager.decode`."""
    symbols = np.empty(n, tables.units.dtype)

    def work(turns: Iterator[int]) -> bool:
        together, good = 2 if levels else 1, True
        held = np.empty(RUN // together, tables.units.dtype)
        for turn in turns:
            run = symbols[turn * RUN : (turn + 1) * RUN]
            units = held[: -(-len(run) // together)] if levels else run
            states, words = coded[turn]
            padded = np.concatenate([words, PAD])
            good &= loops.decode(padded, tables, states.astype(np.uint64), units)
            if levels:
                good &= loops.part(units, levels, run)
        return good

    return symbols if all(_by_turns(work, len(coded))) else None


def _runs(symbols: NDArray[np.integer]) -> int:
    return -(-len(symbols) // RUN)


def _by_turns(work: Callable[[Iterator[int]], Any], turns: int) -> list[Any]:
    """Share turns among threads."""
    return in_threads(lambda chunks: work(c.start // CHUNK for c in chunks), turns * CHUNK)
