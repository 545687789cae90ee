"""Every method against exact Top-k that may send as many bits: one yardstick for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors import (
    SUPPORTED,
    Compressor,
    Contract,
    ExactThreshold,
    Memory,
    Payload,
    Rng,
    compressors,
)
from gradstats.compressors.wrappers.per_parameter import without_parts
from gradstats.metrics import relative_error
from gradstats.replaying.columns import EqualBitsRow
from gradstats.runs.tables import frame
from gradstats.settings import several

Row = dict[str, Any]
RATIOS = (0.1, 0.01, 0.001)
BITS = (1, 2, 3, 4, 6, 8)
AVERAGED = 8  # workers that would send the same gradient, each with its own random numbers
HYBRIDS = ("exact-threshold | bf16", "exact-threshold | mxfp4", "exact-threshold | sign")
MOST_ELEMENTS = 4_000_000  # of a gradient that is encoded so many times


def equal_bits(
    grad: Tensor,
    specs: str | Compressor | Iterable[str | Compressor] = (*SUPPORTED, *HYBRIDS),
    *,
    ratios: float | Iterable[float] = RATIOS,
    seed: int = 0,
) -> Any:
    """Encode one gradient by each method, and by exact Top-k with at most as many bytes.

    Each method encodes one step from a fresh state, without error feedback. A spec without
    arguments is run with several settings: at each of `ratios` if the method has a ratio, and at
    1, 2, 3, 4, 6 and 8 bits (those that it allows) if it has a number of bits.

    Args:
        grad: a finite gradient as one vector, `[n]`.
        specs: one or several methods, each an instance or a spec, that is text such as
            "topk(0.01)" (see `gradstats.compressor`). Default: all supported methods and three
            pipes of Top-k and a number format. Methods that need matrices, such as "powersgd",
            are skipped without an error, in the default too: they give no row. So are two-shot
            exchanges and rings, which encode sums again: no single message has their error.
        ratios: one or several target ratios k/d (fraction of elements to keep), each in (0, 1].
        seed: whole number from which random methods derive their random numbers.

    Returns:
        A pandas DataFrame with the columns of `gradstats.replaying.columns.EqualBitsRow`: one row
        per method and setting, sorted by over_topk, the smallest (best) first. over_topk is the
        method's error divided by that of Top-k; it is NaN, and last, where Top-k sends every
        element within the same bytes.

    Raises:
        ValueError: an unknown method, a ratio outside (0, 1], or a memory such as "ef(topk)":
            error feedback needs several steps.

    Example:
        >>> import gradstats
        >>> grad = torch.linspace(-1, 1, 1001) ** 3
        >>> table = gradstats.equal_bits(grad, ["topk", "sign"], ratios=0.1)
        >>> table["compressor"].tolist()
        ['sign', 'topk(0.1)']
    """
    rows = equal_bits_rows(Topk(grad), specs, several(ratios), seed)
    best = sorted(rows, key=lambda row: (math.isnan(row["over_topk"]), row["over_topk"]))
    return frame(best, EqualBitsRow)


def equal_bits_rows(
    topk: Topk,
    specs: str | Compressor | Iterable[str | Compressor],
    ratios: tuple[float, ...],
    seed: int,
) -> list[Row]:
    """Measure each method and setting, see `equal_bits`."""
    members = [each for spec in several(specs) for each in _settings(spec, ratios)]
    measured = [member for member in members if _has_one_message(member.contract)]
    return [_row(member, topk, seed) for member in measured]


def _has_one_message(contract: Contract) -> bool:
    """Whether one message of a vector is all that a method sends of it, and all that it loses."""
    return "matrix" not in contract.needs and contract.collective in ("all_reduce", "all_gather")


def _settings(spec: str | Compressor, ratios: tuple[float, ...]) -> Iterator[Compressor]:
    for written in compressors(spec, ratios) if isinstance(spec, str) else (spec,):
        member, _ = without_parts(written)  # the gradient is one vector here
        if isinstance(member, Memory):
            raise ValueError(f"compressor must have no memory here, got {member}")
        bare = isinstance(spec, str) and "(" not in spec
        yield from _with_bits(member) if bare and hasattr(member, "bits") else (member,)


def _with_bits(member: Compressor) -> Iterator[Compressor]:
    for bits in BITS:
        settings: Any = {"bits": bits}
        try:
            yield replace(member, **settings)  # type: ignore[type-var]
        except ValueError:  # fewer or more than the method has
            continue


def _row(member: Compressor, topk: Topk, seed: int) -> Row:
    grad = topk.grad
    payload = _encoded(member, grad, Rng(seed))
    error = relative_error(grad, payload.decode())
    yardstick = topk.error_within(payload.nbytes)
    row = EqualBitsRow(
        compressor=str(member),
        method=member.name,
        target_ratio=math.nan if member.ratio_asked is None else member.ratio_asked,
        bits=8 * payload.nbytes / grad.numel(),
        error=error,
        averaged_error=_averaged(member, grad, seed) if member.contract.random else error,
        topk_error=yardstick,
        over_topk=error / yardstick if yardstick else math.nan,
    )
    return vars(row)


def _encoded(member: Compressor, grad: Tensor, rng: Rng) -> Payload:
    return member.encode(grad, member.init(grad), rng)[0]


def _averaged(member: Compressor, grad: Tensor, seed: int) -> float:
    wide = torch.promote_types(grad.dtype, torch.float32)  # a sum in 16 bits may leave the range
    total = torch.zeros_like(grad, dtype=wide)
    for worker in range(AVERAGED):
        _encoded(member, grad, Rng(seed, worker=worker)).add_to(total, 1 / AVERAGED)
    return relative_error(grad, total)


class Topk:
    """Exact Top-k of one gradient.

    Args:
        grad: `[n]`.
    """

    def __init__(self, grad: Tensor) -> None:
        self.grad = grad
        self._nbytes: dict[int, int] = {}

    def error_within(self, nbytes: int) -> float:
        """‖g - ĝ‖/‖g‖ of the largest Top-k of at most so many bytes; 0 if that is all of them."""
        low, high = 1, self.grad.numel()
        if self._size(high) <= nbytes:
            return 0.0
        while high - low > max(1, low // 10_000):
            middle = (low + high) // 2
            low, high = (middle, high) if self._size(middle) <= nbytes else (low, middle)
        return relative_error(self.grad, self._of(low).decode())

    def _size(self, k: int) -> int:
        """Bytes of k elements, which are looked for once."""
        if k not in self._nbytes:
            self._nbytes[k] = self._of(k).nbytes
        return self._nbytes[k]

    def _of(self, k: int) -> Payload:
        return _encoded(ExactThreshold(k / self.grad.numel()), self.grad, Rng())
