"""Summaries as bytes: what a row of kind "summary" holds."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.grid import GRIDS
from gradstats.summary import SUMMED, Summary, narrow

VERSION = 1
_HEAD = struct.Struct("<BI")  # version, number of Summaries
_FIXED = struct.Struct("<4B I 5q 5d")
_NAMES = tuple(grid.name for grid in GRIDS.values())
_WIDTHS = (1, 2, 4, 8)
_numbers = attrgetter(*SUMMED, "max_abs", "fraction")


def to_bytes(summaries: Iterable[Summary]) -> bytes:
    """Write Summaries one after another, little-endian.

    Each is its dtype's place among the grids, the widths of three columns, the number of bins m,
    the integer counts, the float64 sums with max|g| and the sampling fraction, and three columns
    of m unsigned integers: the differences of the bins, the positive and the negative counts.

    Raises:
        ValueError: a Summary is in another unit than 1: rows hold what was captured.
    """
    parts = list(summaries)
    odd = next((part.unit for part in parts if part.unit != 1), None)
    if odd is not None:
        raise ValueError(f"unit of a Summary must be 1 to be written, got {odd!r}")
    return _HEAD.pack(VERSION, len(parts)) + b"".join(map(_encoded, parts))


def from_bytes(data: bytes) -> list[Summary]:
    """Read what `to_bytes` wrote.

    Raises:
        ValueError: it is something else, of a later version, or cut off.
    """
    try:
        version, count = _HEAD.unpack_from(data)
        if version != VERSION:
            raise ValueError(f"version {version} is newer than {VERSION}; upgrade gradstats")
        place, found = _HEAD.size, []
        for _ in range(count):
            summary, place = _decoded(data, place)
            found.append(summary)
        if place != len(data):
            raise ValueError(f"{len(data) - place} bytes follow the last one")
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"cannot read Summaries from {len(data)} bytes: {error}") from error
    return found


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
    head = _FIXED.pack(place, *widths, len(summary.bins), *_numbers(summary))
    return head + b"".join([column.tobytes() for column in columns])


def _decoded(data: bytes, place: int) -> tuple[Summary, int]:
    dtype, *widths, bins, n, zeros, nan, up, down, total, total_abs, total_sq, top, fraction = (
        _FIXED.unpack_from(data, place)
    )
    place += _FIXED.size
    columns: list[NDArray[np.int64]] = []
    for width in widths:
        if width not in _WIDTHS:
            raise ValueError(f"a column is {width} bytes wide")
        columns.append(np.frombuffer(data, f"<u{width}", bins, place).astype(np.int64))
        place += width * bins
    steps, positive, negative = columns
    summary = Summary(
        dtype=_NAMES[dtype],
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
    )
    return summary, place
