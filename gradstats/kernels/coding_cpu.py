"""The codes in numba: each thread quantises and packs, or unpacks and adds, a run in its cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels import coding_cpu_loops as loops
from gradstats.kernels.coding_eager import Rounding, boundaries, inverse_gaps
from gradstats.kernels.counting_cpu import CHUNK, _in_threads, _patterns
from gradstats.kernels.packing import Packing, packing
from gradstats.kernels.ranges import saturated

RUN = 1 << 12  # symbols that are quantised, then packed
HEADS = 1 << 16
FLOAT32 = torch.float32


class Steps(NamedTuple):
    """Where a float32 lies among the boundaries of an alphabet.

    Attributes:
        first: int32 `[65536]`, for the leading half of its pattern, boundaries that are below
            all floats that begin so; ~ that number where one lies among them.
        boundaries: float32 `[m]`.
        middle: symbol of a NaN.
    """

    first: NDArray[np.int32]
    boundaries: NDArray[np.float32]
    middle: int


def pack(symbols: Tensor, levels: int) -> Tensor:
    """See `coding.pack`."""
    rule = packing(levels)
    array = symbols.numpy().astype(np.uint16, copy=False)
    out = np.zeros(rule.nbytes(len(array)) + 8, np.uint8)
    powers = _powers(rule)

    def work(runs: Iterator[slice]) -> None:
        for run in runs:
            start = _byte(rule, run.start)
            loops.pack(array[run], rule.bits, powers, out[start:])

    _in_runs(work, len(array), rule.group)
    return torch.from_numpy(out[:-8])


def unpack(packed: Tensor, n: int, levels: int) -> Tensor:
    """See `coding.unpack`."""
    rule = packing(levels)
    data = np.append(packed.numpy(), np.zeros(8, np.uint8))
    out = np.empty(n, np.uint8 if levels <= 256 else np.int32)
    digits = rule.digits

    def work(runs: Iterator[slice]) -> int:
        wrong = 0
        for run in runs:
            start = _byte(rule, run.start)
            wrong += loops.unpack(data[start:], rule.bits, digits, levels, out[run])
        return wrong

    wrong = sum(_in_runs(work, n, rule.group))
    if wrong or _behind(data, rule, n):
        raise ValueError(f"a symbol must be below {levels}, and 0 behind the last")
    return torch.from_numpy(out)


def quantize(values: Tensor, how: Rounding) -> Tensor:
    """See `coding.quantize`."""
    rule = packing(len(how.levels))
    out = np.zeros(rule.nbytes(len(values)) + 8, np.uint8)
    powers = _powers(rule)

    def put(symbols: NDArray[np.uint16], run: slice) -> None:
        loops.pack(symbols, rule.bits, powers, out[_byte(rule, run.start) :])

    _rounded(values, how, put)
    return torch.from_numpy(out[:-8])


def to_symbols(values: Tensor, how: Rounding) -> Tensor:
    """See `coding.to_symbols`."""
    out = np.empty(len(values), np.uint8 if len(how.levels) <= 256 else np.int32)

    def put(symbols: NDArray[np.uint16], run: slice) -> None:
        out[run] = symbols

    _rounded(values, how, put)
    return torch.from_numpy(out)


def _rounded(
    values: Tensor, how: Rounding, put: Callable[[NDArray[np.uint16], slice], None]
) -> None:
    """Hand the symbols of every run to `put`, while they are in the cache."""
    array, factors = values.to(FLOAT32).numpy(), how.inverse.numpy()
    steps = _steps(tuple(how.levels.tolist()), how.rule)
    low, gaps = how.levels.double().numpy(), inverse_gaps(how.levels).numpy()
    words = np.array(how.key, np.uint32)

    def work(runs: Iterator[slice]) -> None:
        symbols = np.empty(RUN, np.uint16)
        y, drawn = np.empty(RUN, np.float32), np.empty(RUN + 4, np.uint32)
        for run in runs:
            size = run.stop - run.start
            loops.scale(array[run], factors, how.bucket, run.start, y)
            loops.find(y[:size], *steps, symbols)
            if how.rule == "stochastic":
                loops.draw(words[0], words[1], run.start // 4, drawn)
                loops.round_up(y[:size], low, gaps, drawn, symbols)
            put(symbols[:size], run)

    _in_runs(work, len(array), math.lcm(packing(len(how.levels)).group, 4))


def add_dequantized(
    packed: Tensor,
    scales: Tensor | None,
    bucket: int,
    levels: Tensor,
    out: Tensor,
    weight: float,
) -> None:
    """See `coding.add_dequantized`."""
    rule, n = packing(levels.shape[-1]), out.numel()
    if out.dtype.itemsize == 2:  # numba knows no 16-bit floats
        decoded = torch.zeros(n, dtype=FLOAT32)
        add_dequantized(packed, scales, bucket, levels, decoded, 1.0)
        out.add_(decoded, alpha=weight)
        return
    data = np.append(packed.numpy(), np.zeros(8, np.uint8))
    factors = np.ones(-(-n // bucket), np.float32) if scales is None else scales.numpy()
    books = levels.reshape(-1, levels.shape[-1]).numpy()
    target = out.numpy()
    factor = target.dtype.type(weight)

    def work(runs: Iterator[slice]) -> int:
        symbols, wrong = np.empty(RUN, np.uint16), 0
        for run in runs:
            size = run.stop - run.start
            tail = data[_byte(rule, run.start) :]
            wrong += loops.unpack(tail, rule.bits, rule.digits, rule.levels, symbols[:size])
            loops.add(symbols, books, factors, bucket, run.start, factor, target[run])
        return wrong

    if sum(_in_runs(work, n, rule.group)):
        raise ValueError(f"a symbol must be below {rule.levels}")


def bucket_norms(values: Tensor, bucket: int, kind: str) -> Tensor:
    """See `coding.bucket_norms`."""
    n = values.numel()
    wide = values if values.dtype.itemsize > 2 else values.to(FLOAT32)
    if bucket <= CHUNK:
        sums = _gathered(wide, bucket, kind)
    else:
        parts = [_gathered(part, CHUNK, kind) for part in torch.split(wide, bucket) if n]
        sums = np.array([part.max() if kind == "max" else part.sum() for part in parts])
    if kind == "max":
        largest = torch.from_numpy(sums.astype(_patterns(wide).dtype)).view(wide.dtype)
        return saturated(largest, FLOAT32)
    if kind == "l2":
        return saturated(torch.from_numpy(np.sqrt(sums)), FLOAT32)
    sizes = np.full(len(sums), bucket)
    sizes[-1:] = n - (len(sums) - 1) * bucket
    return saturated(torch.from_numpy(sums / sizes), FLOAT32)


def _gathered(values: Tensor, piece: int, kind: str) -> NDArray[Any]:
    """Of every `piece` elements the sum of magnitudes or squares, or the largest pattern."""
    array, patterns = values.numpy(), _patterns(values)
    # as integers, so that a NaN is the largest
    dtype = patterns.dtype if kind == "max" else np.dtype(np.float64)
    results = np.zeros(-(-len(array) // piece), dtype)

    def work(runs: Iterator[slice]) -> None:
        for run in runs:
            part = results[run.start // piece : -(-run.stop // piece)]
            if kind == "max":
                loops.largest(patterns[run], piece, part)
            elif kind == "l2":
                loops.squares(array[run], piece, part)
            else:
                loops.magnitudes(array[run], piece, part)

    _in_runs(work, len(array), piece, CHUNK)
    return results


def _in_runs(
    work: Callable[[Iterator[slice]], Any], n: int, unit: int, most: int = RUN
) -> list[Any]:
    """Share runs of a multiple of `unit` elements, about `most`, among threads."""
    size = max(unit, most // unit * unit)
    together = max(CHUNK // size, 1) * size  # what a thread takes at a time

    def runs(chunks: Iterator[slice]) -> Any:
        return work(run for chunk in chunks for run in _runs(chunk.start // CHUNK))

    def _runs(turn: int) -> Iterator[slice]:
        first = turn * together
        for start in range(first, min(first + together, n), size):
            yield slice(start, min(start + size, n))

    return _in_threads(runs, -(-n // together) * CHUNK)


def _byte(rule: Packing, symbol: int) -> int:
    """Where the bytes of a symbol that begins a group begin."""
    return symbol // rule.digits * 8 if rule.digits else symbol * rule.bits // 8


@lru_cache
def _powers(rule: Packing) -> NDArray[np.uint64]:
    """1, L, L², … for digits; nothing where symbols have bits of their own."""
    return np.array([rule.levels**i for i in range(rule.digits)], np.uint64)


def _behind(data: NDArray[np.uint8], rule: Packing, n: int) -> bool:
    """Whether anything is left behind the last symbol."""
    if rule.digits:
        rest = n % rule.digits
        word = int(data[_byte(rule, n - rest) :][:8].view("<u8")[0]) if rest else 0
        return word >= rule.levels**rest and bool(rest)
    used = n * rule.bits % 8
    return bool(used) and bool(data[n * rule.bits // 8] >> used)


@lru_cache(maxsize=64)
def _steps(levels: tuple[float, ...], rounding: str) -> Steps:
    tensor = torch.tensor(levels)
    if rounding == "stochastic":  # level j + 1 is reached from the float below it on
        inner = tensor[1:-1]
        bounds = torch.nextafter(inner, torch.full_like(inner, -torch.inf)).numpy()
    else:
        bounds = boundaries(tensor, rounding).numpy()
    heads = np.arange(HEADS, dtype=np.uint32) << 16
    ends = np.stack([heads.view(np.float32), (heads | 0xFFFF).view(np.float32)])
    low, high = (
        np.asarray(np.searchsorted(bounds, end, side="left"))
        for end in (np.fmin(*ends), np.fmax(*ends))
    )
    first = np.where(low == high, low, ~low).astype(np.int32)
    first[np.isnan(ends).any(axis=0)] = len(levels) // 2
    first[[0x7F80, 0xFF80]] = ~0  # infinity and NaN
    return Steps(first, bounds, len(levels) // 2)
