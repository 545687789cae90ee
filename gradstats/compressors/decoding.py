"""Reads payloads from bytes: checks everything before it believes it."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from gradstats.compressors.payloads import (
    DTYPES,
    HEADER,
    MAGIC,
    VERSION,
    Bundle,
    Dense,
    Masked,
    Payload,
    PayloadError,
    Sparse,
    index_type,
)
from gradstats.compressors.rng import Stream


def from_bytes(data: bytes, *, max_numel: int = 1 << 31) -> Payload:
    """Read a payload from its bytes alone.

    Args:
        data: what `to_bytes` gave.
        max_numel: refuse payloads that claim a longer gradient, before anything is allocated.

    Raises:
        PayloadError: truncated, corrupted, of a newer version, or inconsistent.
    """
    if len(data) < HEADER.size:
        raise PayloadError(f"cannot decode payload: {len(data)} bytes, header has {HEADER.size}")
    magic, version, kind, code, _, numel, count, k0, k1, checksum = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise PayloadError(
            f"payload must start with {MAGIC!r} version {VERSION}, got {data[:5]!r}"
        )
    body = data[HEADER.size :]
    if zlib.crc32(body, zlib.crc32(data[: HEADER.size - 4] + bytes(4))) != checksum:
        raise PayloadError(f"cannot decode payload: checksum is not {checksum:#010x}")
    if numel > max_numel or kind > Bundle.kind or code >= len(DTYPES):
        fact = f"kind {kind}, dtype {code}, {numel} elements of at most {max_numel}"
        raise PayloadError(f"cannot decode payload: {fact}")
    if kind == Bundle.kind:
        return _read_bundle(body, numel, count)
    dtype = DTYPES[code]
    split = count * dtype.itemsize
    if len(body) != _body_size(kind, code, numel, count) or not _fits(kind, numel, count):
        fact = f"{len(body)} bytes for {count} of {numel} elements"
        raise PayloadError(f"cannot decode payload: {fact}")
    raw = np.frombuffer(body[:split], f"i{dtype.itemsize}").copy()
    values = torch.from_numpy(raw).view(dtype)
    if kind == Dense.kind:
        return Dense(values, numel)
    if kind == Masked.kind:
        return Masked(values, numel, Stream((k0, k1)))
    return Sparse(values, numel, _read_indices(body[split:], numel))


def _fits(kind: int, numel: int, count: int) -> bool:
    return count == numel if kind == Dense.kind else count <= numel


def _body_size(kind: int, code: int, numel: int, count: int) -> int:
    index_size = index_type(numel).itemsize if kind == Sparse.kind else 0
    return count * (DTYPES[code].itemsize + index_size)


def _read_bundle(body: bytes, numel: int, parts: int) -> Bundle:
    found: list[Payload] = []
    start = 0
    while start < len(body):
        _, _, kind, code, _, part_numel, count, *_ = HEADER.unpack(
            body[start : start + HEADER.size].ljust(HEADER.size, b"\0")
        )
        if kind == Bundle.kind or code >= len(DTYPES):
            raise PayloadError(f"cannot decode bundle: part {len(found)} has kind {kind}")
        end = start + HEADER.size + _body_size(kind, code, part_numel, count)
        found.append(from_bytes(body[start:end], max_numel=numel))
        start = end
    if len(found) != parts or sum(part.numel for part in found) != numel:
        raise PayloadError(f"cannot decode bundle: {len(found)} parts of {parts}")
    return Bundle(tuple(found))


def _read_indices(places: bytes, numel: int) -> Tensor:
    indices = np.frombuffer(places, index_type(numel)).astype(np.int64)
    if indices.size and not (0 <= indices.min() and indices.max() < numel):
        raise PayloadError(
            f"index must lie in [0, {numel}), got {indices.min()} … {indices.max()}"
        )
    if np.unique(indices).size != indices.size:
        raise PayloadError(f"indices must differ, got {indices.size} with repetitions")
    return torch.from_numpy(indices)
