"""The codes in numba: each thread encodes, or decodes and adds, a chunk in runs in its cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels import coding_cpu_loops as loops
from gradstats.kernels.coding_cpu_finders import finder
from gradstats.kernels.coding_cpu_levels import UNKNOWN, formula
from gradstats.kernels.coding_cpu_packer import Packer, count_long, packer_of
from gradstats.kernels.coding_cpu_packing import pack as pack_run
from gradstats.kernels.coding_cpu_packing import unpack as unpack_run
from gradstats.kernels.coding_cpu_patterns import AS_IT_IS, BFLOAT16, FLOAT16
from gradstats.kernels.coding_cpu_runs import ADD, Decoder, add, count_wrong, encode
from gradstats.kernels.coding_cpu_scaling import E4M3, GIVEN, L2, LARGEST, POWER, RANGE, Scaling
from gradstats.kernels.coding_eager import Rounding
from gradstats.kernels.coding_scaled import ScaleRule
from gradstats.kernels.counting_cpu import _patterns
from gradstats.kernels.packing import Packing, packing
from gradstats.kernels.ranges import saturated
from gradstats.kernels.threads import CHUNK, in_threads

RUN = 1 << 14  # elements, at most about, that go through all loops together
DECODED_RUN = 1 << 11  # of decoding, whose three vectors then stay in the nearest cache
LONGEST_RUN = 1 << 15
FLOAT32 = torch.float32
RULES = {"max": LARGEST, "l2": L2, "power": POWER, "e4m3": E4M3, "range": RANGE}
STORED = {"power": torch.float8_e8m0fnu, "e4m3": torch.float8_e4m3fn}
KINDS = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
NONE, ONES = np.zeros(0, np.float32), (np.float32(1), np.float32(1), 0)
POWERS = np.zeros(0, np.uint64)


def pack(symbols: Tensor, levels: int) -> Tensor:
    """See `coding.pack`."""
    array = symbols.numpy().astype(np.uint8 if levels <= 256 else np.uint16, copy=False)
    rule, how = packing(levels), packer_of(levels)
    # torch's own, for an empty array of numpy has no stride by which to view it in another dtype
    packed = torch.empty(rule.nbytes(len(array)), dtype=torch.uint8)
    out = packed.numpy()

    def work(runs: Iterator[slice]) -> None:
        for run in runs:
            pack_run(array[run], how, out[_bytes(rule, run, len(array))])

    _in_runs(work, len(array), rule.group, CHUNK)
    return packed


def unpack(packed: Tensor, n: int, levels: int) -> Tensor:
    """See `coding.unpack`."""
    rule, how, data = packing(levels), packer_of(levels), packed.numpy()
    out = np.empty(n, np.uint8 if levels <= 256 else np.int32)

    def work(runs: Iterator[slice]) -> int:
        return sum(unpack_run(data[_bytes(rule, run, n)], how, out[run]) for run in runs)

    wrong = sum(_in_runs(work, n, rule.group, CHUNK))
    if wrong or _behind(data, rule, n):
        raise ValueError(f"a symbol must be below {levels}, and 0 behind the last")
    return torch.from_numpy(out)


def check(packed: Tensor, n: int, levels: int) -> None:
    """See `coding.check`."""
    how, unit, data = packer_of(levels), _unit(levels, 1), packed.numpy()
    run, wrong = max(RUN // unit, 1) * unit, 0

    def work(runs: Iterator[slice]) -> int:
        symbols = np.empty(run, np.uint8 if levels <= 256 else np.uint16)
        return sum(count_wrong(data, each.start, each.stop, run, how, symbols) for each in runs)

    if not how.bits:
        wrong = count_long(data, how, n)
    elif levels < 1 << how.bits:
        wrong = sum(_in_runs(work, n, run, CHUNK))
    if wrong or _behind(data, packing(levels), n):
        raise ValueError(f"a symbol must be below {levels}, and 0 behind the last")


def quantize(values: Tensor, how: Rounding) -> Tensor:
    """See `coding.quantize`."""
    packed, _ = _encoded(values, Scaling(GIVEN, how.bucket, *ONES), how, _floats(how.scales))
    return packed


def to_symbols(values: Tensor, how: Rounding) -> Tensor:
    """See `coding.to_symbols`."""
    levels = len(how.levels)
    out = np.empty(len(values), np.uint8 if levels <= 256 else np.int32)
    given = Scaling(GIVEN, how.bucket, *ONES)
    symbols, _ = _encoded(values, given, how, _floats(how.scales), out=out)
    return symbols


def quantize_scaled(
    values: Tensor,
    bucket: int,
    levels: Tensor,
    rule: ScaleRule,
    rounding: str,
    key: tuple[int, int] | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor] | None:
    """See `coding_scaled.quantize_scaled`; None where runs of whole buckets are too long."""
    if not len(values) or _unit(len(levels), bucket) > LONGEST_RUN:
        return None
    buckets, narrow = -(-len(values) // bucket), rule.kind in STORED
    scales = np.empty(buckets, np.uint8 if narrow else np.float32)
    offsets = np.empty(buckets, np.float32) if rule.kind == "range" else NONE
    how = Rounding(values[:0], bucket, levels, rounding, key or (0, 0))
    floats = np.float32(rule.divisor), np.float32(rule.unit)
    scaling = Scaling(RULES[rule.kind], bucket, *floats, rule.power)
    packed, peak = _encoded(values, scaling, how, scales, offsets)
    stored = torch.from_numpy(scales)
    if narrow:
        stored = stored.view(STORED[rule.kind])
    centers = torch.from_numpy(offsets) if rule.kind == "range" else None
    return packed, stored, centers, torch.from_numpy(peak)


def _encoded(
    values: Tensor,
    scaling: Scaling,
    how: Rounding,
    scales: NDArray[Any],
    offsets: NDArray[np.float32] = NONE,
    out: NDArray[Any] | None = None,
) -> tuple[Tensor, NDArray[np.float32]]:
    """The bytes, or the symbols that go into `out`, and the largest magnitude."""
    levels, n = len(how.levels), len(values)
    array, source = _elements(values)
    plain = out is not None
    unit = _unit(levels, scaling.bucket if scaling.rule else 1)
    run, find = max(RUN // unit, 1) * unit, finder(how.levels, how.rule, how.key)
    packer = Packer(levels, 0, POWERS, 0) if plain else packer_of(levels)
    data = np.empty(packing(levels).nbytes(n), np.uint8) if out is None else out

    def work(chunks: Iterator[slice]) -> int:
        symbols, peak = np.empty(run, np.uint8 if levels <= 256 else np.uint16), 0
        for each in chunks:
            turn = array[each], each.start, source, run, scaling, find, packer, symbols
            peak = max(peak, encode(*turn, scales, offsets, data))
        return peak

    peaks = _in_runs(work, n, run, CHUNK)
    return torch.from_numpy(data), np.array(max(peaks, default=0), np.uint32).view(np.float32)


def add_dequantized(
    packed: Tensor,
    scales: Tensor | None,
    bucket: int,
    levels: Tensor,
    out: Tensor,
    weight: float,
    offsets: Tensor | None = None,
    way: int = ADD,
) -> None:
    """See `coding.add_dequantized`; another way than `ADD` is for float32 and float64."""
    count, data = levels.shape[-1], packed.numpy()
    packer, unit = packer_of(count), _unit(count, 1)
    most = RUN if packer.powers.size else DECODED_RUN
    run = max(most // unit, 1) * unit
    target, kind = _elements(out)
    factor = (target.dtype if kind == AS_IT_IS else np.dtype(np.float32)).type(weight)
    factors, centers = (NONE if each is None else _floats(each) for each in (scales, offsets))
    books = _floats(levels.reshape(-1, count))
    how = UNKNOWN if scales is None else formula(books)
    decoder = Decoder(bucket, books, factors, centers, how)

    def work(runs: Iterator[slice]) -> int:
        symbols, wrong = np.empty(run, np.uint8 if count <= 256 else np.uint16), 0
        for each in runs:
            turn = data, each.start, run, packer, decoder, symbols, factor, way, kind
            wrong += add(*turn, target[each])
        return wrong

    if sum(_in_runs(work, len(target), run, CHUNK)):
        raise ValueError(f"a symbol must be below {count}")


def quantize_signs(values: Tensor, bucket: int) -> tuple[Tensor, Tensor]:
    """See `coding_scaled.quantize_signs`."""
    n, piece = len(values), bucket if bucket < len(values) else CHUNK
    unit = math.lcm(piece, 8)
    run = RUN if piece % RUN == 0 else unit * max(RUN // unit, 1)
    if piece > CHUNK or run > LONGEST_RUN:
        how = Rounding(torch.ones(1), max(n, 1), torch.tensor([-1.0, 1.0]), "nearest", (0, 0))
        return quantize(values, how), bucket_norms(values, bucket, "mean")
    array, kind = _elements(values)
    sums, out = np.empty(-(-n // piece)), np.empty(-(-n // 8), np.uint8)

    def work(chunks: Iterator[slice]) -> None:
        for each in chunks:
            part = sums[each.start // piece : -(-each.stop // piece)]
            loops.signs(array[each], kind, run, piece, part, out[each.start // 8 :])

    _in_runs(work, n, max(run, piece), CHUNK)
    whole = piece != bucket and n > 0
    return torch.from_numpy(out), _means(sums.sum(keepdims=True) if whole else sums, n, bucket)


def bucket_norms(values: Tensor, bucket: int, kind: str) -> Tensor:
    """See `coding.bucket_norms`."""
    n = values.numel()
    wide = values if values.dtype.itemsize > 2 or kind == "max" else values.to(FLOAT32)
    if bucket <= CHUNK:
        sums = _gathered(wide, bucket, kind)
    else:
        parts = [_gathered(part, CHUNK, kind) for part in torch.split(wide, bucket) if n]
        sums = np.array([part.max() if kind == "max" else part.sum() for part in parts])
    if kind == "max":
        patterns = sums.astype(f"int{8 * wide.dtype.itemsize}")
        return saturated(torch.from_numpy(patterns).view(wide.dtype), FLOAT32)
    if kind == "l2":
        return saturated(torch.from_numpy(np.sqrt(sums)), FLOAT32)
    return _means(sums, n, bucket)


def _means(sums: NDArray[np.float64], n: int, bucket: int) -> Tensor:
    """Of sums over n elements in buckets."""
    sizes = np.full(len(sums), bucket)
    sizes[-1:] = n - (len(sums) - 1) * bucket
    return saturated(torch.from_numpy(sums / sizes), FLOAT32)


def _gathered(values: Tensor, piece: int, kind: str) -> NDArray[Any]:
    """Of every `piece` elements the sum of magnitudes or squares, or the largest pattern."""
    # the largest as integers, so that a NaN is it
    array, patterns = _elements(values)[0], _patterns(values)
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

    return in_threads(runs, -(-n // together) * CHUNK)


def _elements(values: Tensor) -> tuple[NDArray[Any], int]:
    """Floats that numba knows, or patterns and what they are."""
    kind = KINDS.get(values.dtype, AS_IT_IS)
    return values.numpy() if kind == AS_IT_IS else _patterns(values), kind


def _floats(values: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.to(FLOAT32).numpy())


def _unit(levels: int, bucket: int) -> int:
    """Elements of the shortest run: whole buckets, groups of symbols, and random words."""
    return math.lcm(bucket, packing(levels).group, 4)


def _bytes(rule: Packing, symbols: slice, n: int) -> slice:
    """The bytes of symbols that begin a group, of n in all."""
    start, stop = (rule.nbytes(i) for i in (symbols.start, symbols.stop))
    return slice(start, stop)


def _behind(data: NDArray[np.uint8], rule: Packing, n: int) -> bool:
    """Whether bits are set behind those of the last symbol; behind digits `unpack` looks."""
    used = n * rule.bits % 8
    return not rule.digits and bool(used) and bool(data[n * rule.bits // 8] >> used)
