"""Messages: what a compressor sends, and how it is read from bytes."""

from __future__ import annotations

from gradstats.payloads.alphabet import Alphabet
from gradstats.payloads.base import Constant, Dense, Payload
from gradstats.payloads.bundle import Bundle
from gradstats.payloads.codebooks import (
    DynamicTree,
    Exponential,
    Gauss,
    Powers,
    Sign,
    Uniform,
)
from gradstats.payloads.low_rank import LowRank
from gradstats.payloads.planes import Planes
from gradstats.payloads.quantized import Coded
from gradstats.payloads.sketch import Sketch
from gradstats.payloads.sparse import Masked, Sparse
from gradstats.payloads.symbol_codes import Packed
from gradstats.payloads.wire import PayloadError, Reader, unseal

__all__ = [
    "KINDS",
    "MAX_NUMEL",
    "Alphabet",
    "Bundle",
    "Coded",
    "Constant",
    "Dense",
    "DynamicTree",
    "Exponential",
    "Gauss",
    "LowRank",
    "Masked",
    "Packed",
    "Payload",
    "PayloadError",
    "Planes",
    "Powers",
    "Sign",
    "Sketch",
    "Sparse",
    "Uniform",
    "from_bytes",
]

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
