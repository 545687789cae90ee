"""The loops from elements to bytes and back, compiled by numba: each run of a vector in turn."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.coding_cpu_finding import Finder, find
from gradstats.kernels.coding_cpu_levels import FEW, Formula, look_up, work_out
from gradstats.kernels.coding_cpu_packer import Packer, byte_of
from gradstats.kernels.coding_cpu_packing import pack, unpack
from gradstats.kernels.coding_cpu_patterns import AS_IT_IS, F32, U32, load, store
from gradstats.kernels.coding_cpu_scaling import RANGE, Scaling, divide, multiply, scale_rows
from gradstats.kernels.compiling import jit

ADD, WRITE, SUBTRACT = range(3)  # what becomes of what is decoded


class Decoder(NamedTuple):
    """What symbols stand for.

    Attributes:
        bucket: elements that share a factor.
        books: float32 `[1 or buckets, L]`.
        factors: float32 `[buckets]`; empty where each bucket has its own book.
        offsets: float32 `[buckets]`, or empty.
        formula: of the levels of a single book.
    """

    bucket: int
    books: NDArray[np.float32]
    factors: NDArray[np.float32]
    offsets: NDArray[np.float32]
    formula: Formula


@jit
def encode(
    values: NDArray[Any],
    start: int,
    source: int,
    run: int,
    scaling: Scaling,
    finder: Finder,
    packer: Packer,
    symbols: NDArray[Any],
    scales: NDArray[Any],
    offsets: NDArray[Any],
    out: NDArray[Any],
) -> Any:
    """Scale, round and pack the elements of a vector from `start` on.

    Args:
        values: floats, or the patterns of 16-bit ones, `[n]`.
        start: index of the first, a multiple of a run.
        source: what the patterns are.
        run: elements that are handled together: whole buckets and groups of symbols.
        scaling: the rule of scales, which are written, or given.
        finder: of symbols.
        packer: of symbols.
        symbols: of a run, to be overwritten.
        scales: of all buckets.
        offsets: of all buckets, or empty.
        out: all bytes.

    Returns:
        The pattern of the largest magnitude, 0 where scales are given or Euclidean norms.
    """
    peak, bucket = U32(0), scaling.bucket
    x, words = np.empty(run, F32), np.empty(run, np.uint32)
    own = np.empty(run // bucket + 2, F32)
    for i in range(0, values.size, run):
        size = min(run, values.size - i)
        first, last = (start + i) // bucket, (start + i + size - 1) // bucket + 1
        mine, rows = slice(first, last), last - first
        whole = rows * bucket if scaling.rule else size
        load(values[i : i + size], source, scaling.rule == RANGE, x[:whole])
        if scaling.rule:
            boxes = x[:whole].reshape(-1, bucket)
            top = scale_rows(boxes, scaling, scales[mine], offsets[mine], own[:rows])
            peak = max(peak, top)
        else:
            own[:rows] = scales[mine]
        divide(x[:size], own[:rows], (start + i) % bucket, bucket)
        find(x[:size], finder, (start + i) // 4, words, symbols[:size])
        end = byte_of(packer, start + i + size) if size == run else out.size
        pack(symbols[:size], packer, out[byte_of(packer, start + i) : end])
    return peak


@jit
def add(
    data: NDArray[Any],
    start: int,
    run: int,
    packer: Packer,
    decoder: Decoder,
    symbols: NDArray[Any],
    weight: float,
    way: int,
    target: int,
    out: NDArray[Any],
) -> int:
    """Decode symbols from `start` on into `out`; how many of them are out of range.

    Args:
        data: all bytes.
        start: index of the first, a multiple of a run.
        run: elements that are handled together, whole groups of symbols.
        packer: of symbols.
        decoder: what they stand for.
        symbols: of a run, to be overwritten.
        weight: factor, in the dtype of `out`, or float32.
        way: `ADD` to `out`, `WRITE` over it, or `SUBTRACT` it as `moving.subtract_sent` does;
            patterns can only be added to.
        target: what patterns `out` has.
        out: the elements from `start` on.
    """
    wrong, bucket = 0, decoder.bucket
    decoded, wide = np.empty(run, F32), np.empty(run, F32)
    for i in range(0, out.size, run):
        size = min(run, out.size - i)
        first, last = (start + i) // bucket, (start + i + size - 1) // bucket + 1
        end = byte_of(packer, start + i + size) if size == run else data.size
        wrong += unpack(data[byte_of(packer, start + i) : end], packer, symbols[:size])
        offset, piece, part = (start + i) % bucket, decoded[:size], out[i : i + size]
        if decoder.factors.size and last - first == 1 and decoder.books.shape[1] <= FEW:
            look_up(symbols, decoder.books[0] * decoder.factors[first], piece)
        elif decoder.factors.size:
            if decoder.formula.kind:
                work_out(symbols, decoder.formula, piece)
            else:
                look_up(symbols, decoder.books[0], piece)
            multiply(piece, decoder.factors[first:last], offset, bucket)
        else:
            _look_up_own(symbols, decoder.books[first:last], offset, bucket, piece)
        if decoder.offsets.size:
            _shift(piece, decoder.offsets[first:last], offset, bucket)
        if target == AS_IT_IS:
            _put(piece, weight, way, part)
        else:
            load(part, target, False, wide[:size])
            for j in range(size):
                wide[j] = F32(wide[j] + F32(weight * piece[j]))
            store(wide[:size], target, part)
    return wrong


@jit
def _put(values: NDArray[Any], weight: float, way: int, out: NDArray[Any]) -> None:
    zero = out.dtype.type(0)
    if way == ADD:
        for i in range(out.size):
            out[i] += weight * values[i]
    elif way == WRITE:
        for i in range(out.size):
            out[i] = zero + weight * values[i]  # as a sum from 0 on, which is never -0
    else:
        for i in range(out.size):
            rest = out[i] - values[i]
            out[i] = rest if values[i] - values[i] == F32(0) else zero


@jit
def count_wrong(
    data: NDArray[Any], start: int, stop: int, run: int, packer: Packer, symbols: NDArray[Any]
) -> int:
    """How many symbols from `start` to `stop` are out of range, see `add`."""
    wrong = 0
    for i in range(start, stop, run):
        size = min(run, stop - i)
        end = byte_of(packer, i + size) if size == run else data.size
        wrong += unpack(data[byte_of(packer, i) : end], packer, symbols[:size])
    return wrong


@jit
def _look_up_own(
    symbols: NDArray[Any], books: NDArray[Any], offset: int, bucket: int, out: NDArray[Any]
) -> None:
    i = 0
    for book in books:
        end = min(out.size, i + bucket - offset)
        look_up(symbols[i:end], book, out[i:end])
        i, offset = end, 0


@jit
def _shift(values: NDArray[Any], offsets: NDArray[Any], offset: int, bucket: int) -> None:
    i = 0
    for each in offsets:
        end = min(values.size, i + bucket - offset)
        part = values[i:end]
        for j in range(part.size):
            part[j] += each
        i, offset = end, 0
