"""Summaries as bytes: the content of a row of kind "summary"."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.grid import GRIDS
from gradstats.summary.adding import narrow
from gradstats.summary.summary import VERSION, Summary
from gradstats.summary.sums import Sums, fields_of_sums, is_safe

_HEAD = struct.Struct("<BI")  # version, number of Summaries
_FIXED = struct.Struct("<4B I 5q 5d")
_LOG = struct.Struct("<d")  # from version 2 on
_NAMES = tuple(grid.name for grid in GRIDS.values())
_WIDTHS = (1, 2, 4, 8)


def to_bytes(summaries: Iterable[Summary]) -> bytes:
    """Write Summaries one after another, little-endian.

    Each is the index of its dtype among the grids, the widths of three columns, the number of
    bins m, the integer counts, the float64 sums with max|g| and the sampling fraction, the sum of
    ln|g| (NaN if it is not known), and three columns of m unsigned integers: the differences of
    the bins, the positive and the negative counts. Where squares of max|g| leave the range of
    float64 the sums are those over `Summary.power`.

    Raises:
        ValueError: a Summary is in another unit than 1, or on the grid of an earlier version.
    """
    parts = list(summaries)
    for part in parts:
        if part.unit != 1:
            raise ValueError(f"unit of a Summary must be 1 to be written, got {part.unit!r}")
        if part.version != VERSION:
            fact = f"it is of version {part.version}, and {VERSION} is written"
            raise ValueError(f"cannot write a Summary: {fact}; copy its bytes as they are")
    return _HEAD.pack(VERSION, len(parts)) + b"".join(map(_encoded, parts))


def from_bytes(data: bytes) -> list[Summary]:
    """Read what `to_bytes` wrote.

    Raises:
        ValueError: the bytes are something else, of a later version, or cut off.
    """
    try:
        version, count = _HEAD.unpack_from(data)
        if version > VERSION:
            raise ValueError(f"version {version} is newer than {VERSION}; upgrade gradstats")
        if version < 1:
            raise ValueError(f"version {version} was never written")
        place, summaries = _HEAD.size, []
        for _ in range(count):
            summary, place = _decoded(data, place, version)
            summaries.append(summary)
        if place != len(data):
            raise ValueError(f"{len(data) - place} bytes follow the last one")
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"cannot read Summaries from {len(data)} bytes: {error}") from error
    return summaries


def _encoded(summary: Summary) -> bytes:
    steps = summary.bins.copy()
    steps[1:] -= summary.bins[:-1]
    columns = [
        # nothing is narrower than a byte
        column if column.itemsize == 1 else narrow(column)
        for column in (steps, summary.positive, summary.negative)
    ]
    widths = [column.itemsize for column in columns]
    place = _NAMES.index(summary.dtype)
    counts = summary.n, summary.zeros, summary.nan, summary.positive_inf, summary.negative_inf
    sums = summary.sums or Sums(1.0, summary.total, summary.total_abs, summary.total_sq)
    numbers = *counts, *sums[1:], summary.max_abs, summary.fraction
    head = _FIXED.pack(place, *widths, len(summary.bins), *numbers)
    log = math.nan if summary.total_log is None else summary.total_log
    return head + _LOG.pack(log) + b"".join([column.tobytes() for column in columns])


def _decoded(data: bytes, place: int, version: int) -> tuple[Summary, int]:
    dtype, *widths, bins, n, zeros, nan, up, down, total, total_abs, total_sq, top, fraction = (
        _FIXED.unpack_from(data, place)
    )
    place += _FIXED.size
    log = math.nan
    if version > 1:
        (log,) = _LOG.unpack_from(data, place)
        place += _LOG.size
    columns: list[NDArray[np.int64]] = []
    for width in widths:
        if width not in _WIDTHS:
            raise ValueError(f"a column is {width} bytes wide")
        columns.append(np.frombuffer(data, f"<u{width}", bins, place).astype(np.int64))
        place += width * bins
    steps, positive, negative = columns
    name = _NAMES[dtype]
    summary = Summary(
        dtype=name,
        bins=narrow(steps.cumsum()),
        positive=narrow(positive),
        negative=narrow(negative),
        n=n,
        zeros=zeros,
        nan=nan,
        positive_inf=up,
        negative_inf=down,
        total=total,
        total_abs=total_abs,
        total_sq=total_sq,
        max_abs=top,
        fraction=fraction,
        # bfloat16 has had a bin per value from the first
        version=VERSION if name == "bfloat16" else version,
        total_log=None if math.isnan(log) else log,
    )
    return (of_sums(summary) if version > 1 else summary), place


def of_sums(summary: Summary) -> Summary:
    """A Summary whose sums, where those of g leave float64, were given over its `power`."""
    if is_safe(summary.max_abs):
        return summary
    sums = Sums(summary.power, summary.total, summary.total_abs, summary.total_sq)
    return replace(summary, **fields_of_sums(sums, summary.max_abs))
