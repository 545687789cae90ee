"""Reads payloads from bytes."""

from __future__ import annotations

from gradstats.payloads.base import Bundle, Constant, Dense, Payload
from gradstats.payloads.low_rank import LowRank
from gradstats.payloads.planes import Planes
from gradstats.payloads.quantized import Coded
from gradstats.payloads.sketch import Sketch
from gradstats.payloads.sparse import Masked, Sparse
from gradstats.payloads.wire import Reader, unseal

KINDS: tuple[type[Payload], ...] = (
    Dense,
    Constant,
    Sparse,
    Masked,
    Bundle,
    Coded,
    Planes,
    LowRank,
    Sketch,
)
MAX_NUMEL = 1 << 31


def from_bytes(data: bytes, *, max_numel: int = MAX_NUMEL) -> Payload:
    """Read a payload from its bytes alone, in time and memory that go with their number.

    Args:
        data: what `to_bytes` gave.
        max_numel: refuse payloads that claim a longer gradient, before anything is allocated.

    Raises:
        PayloadError: truncated, corrupted, of another version, or inconsistent.
    """
    reader = Reader(unseal(data), KINDS, max_numel)
    payload: Payload = reader.payload(max_numel)
    reader.end()
    return payload
