"""Counts of what exchanges move, and of the time they take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gradstats.compressors import AllReduce

KINDS = ("all_reduce", "all_gather", "broadcast", "control")


@dataclass
class Volume:
    """Calls and bytes of the collectives of one kind.

    Attributes:
        calls: Number of collectives.
        nbytes: Bytes that this worker handed to them.
        wire: Bytes that this worker sends where they run on a ring: 2 (n-1)/n of what is
            all-reduced, n-1 times the longest payload that is gathered, once what is broadcast.
    """

    calls: int = 0
    nbytes: int = 0
    wire: float = 0.0


@dataclass
class Traffic:
    """Bytes and calls of one worker by kind of collective; `control` sets up the other kinds.

    Attributes:
        volumes: Volume by kind.
        sum_bits: Width in bits of the widest sum of integers, 0 without one.
        fp16_error: The most that a float sum or mean would lose in float16, ‖s₁₆ - s‖/‖s‖; inf
            where it would overflow, NaN where it was not measured.
    """

    volumes: dict[str, Volume] = field(default_factory=lambda: {kind: Volume() for kind in KINDS})
    sum_bits: int = 0
    fp16_error: float = math.nan

    def count(self, kind: str, nbytes: int, wire: float) -> None:
        """Count one collective."""
        volume = self.volumes[kind]
        volume.calls += 1
        volume.nbytes += nbytes
        volume.wire += wire

    @property
    def nbytes(self) -> int:
        """Bytes handed in, control aside."""
        return sum(self.volumes[kind].nbytes for kind in KINDS[:-1])

    @property
    def wire(self) -> float:
        """Bytes sent on a ring, control included."""
        return sum(volume.wire for volume in self.volumes.values())

    def reduced(self, request: AllReduce, nbytes: int, workers: int) -> None:
        """Count one all-reduce."""
        self.count("all_reduce", nbytes, 2 * (workers - 1) / workers * nbytes)
        if request.levels and request.op != "max":
            self.sum_bits = max(self.sum_bits, (workers * (request.levels - 1)).bit_length())


@dataclass
class Seconds:
    """Seconds of exchanges by phase, on this worker's clock.

    Attributes:
        encode: Seconds before the last collective was requested, without communication.
        communicate: Seconds in collectives, including the wait for slower workers.
        decode: Seconds of reading payloads, and of what follows the last collective.
    """

    encode: float = 0.0
    communicate: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return self.encode + self.communicate + self.decode
