"""Counts of what exchanges move, and of the time they take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gradstats.compressors import AllReduce

KINDS = ("all_reduce", "all_gather", "broadcast", "all_to_all", "reduce_scatter", "control")


@dataclass
class Volume:
    """Calls and bytes of the collectives of one kind.

    Attributes:
        calls: Number of collectives.
        nbytes: Bytes that this worker handed to them.
        wire: Bytes that this worker sends to others. All-reduces, gathers and broadcasts run on a
            ring: 2 (n-1)/n of what is all-reduced, (n-1)/n of what is reduced and scattered, n-1
            times the longest payload that is gathered, once what is broadcast. In an all-to-all
            every message is as long as the longest one of all workers.
    """

    calls: int = 0
    nbytes: int = 0
    wire: float = 0.0


@dataclass(repr=False)
class Traffic:
    """Bytes and calls of one worker by kind of collective; `control` sets up the other kinds.

    Attributes:
        volumes: Volume by kind.
        sum_bits: Width in bits of the widest sum of integers, 0 without one.
        fp16_error: The most that a float sum or mean would lose in float16, ‖s₁₆ - s‖/‖s‖; inf
            where it would overflow, NaN where it was not measured.
        dense: What `wire` would be if every gradient were all-reduced as it is; 0 where it was
            not counted, as in a replay.
    """

    volumes: dict[str, Volume] = field(default_factory=lambda: {kind: Volume() for kind in KINDS})
    sum_bits: int = 0
    fp16_error: float = math.nan
    dense: float = 0.0

    def __repr__(self) -> str:
        calls = {kind: volume.calls for kind, volume in self.volumes.items() if volume.calls}
        collectives = [f"{count:,} {kind}" for kind, count in calls.items()]
        return f"Traffic({', '.join([*self.saving(), *(collectives or ['no collectives'])])})"

    def saving(self) -> list[str]:
        """What was sent, and its share of what an uncompressed training sends.

        Example:
            >>> traffic = Traffic(dense=93e6)
            >>> traffic.count("all_gather", 3_100_000, 3_100_000.0)
            >>> traffic
            Traffic(3.1 MB sent, 1/30 of dense, 1 all_gather)
        """
        if not self.wire:
            return ["nothing sent"]
        return [f"{in_bytes(self.wire)} sent", *([self._share()] if self.dense else [])]

    def _share(self) -> str:
        times = self.dense / self.wire
        if times < 1:
            return f"{1 / times:.1f} times dense"
        return f"1/{times:,.{0 if times >= 10 else 1}f} of dense"

    def count(self, kind: str, nbytes: int, wire: float) -> None:
        """Count one collective."""
        volume = self.volumes[kind]
        volume.calls += 1
        volume.nbytes += nbytes
        volume.wire += wire

    def would_send(self, nbytes: int, workers: int) -> None:
        """Count what an all-reduce of this many bytes would send on a ring."""
        self.dense += on_ring(nbytes, workers)

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
        self.count("all_reduce", nbytes, on_ring(nbytes, workers))
        if request.levels and request.op != "max":
            self.sum_bits = max(self.sum_bits, (workers * (request.levels - 1)).bit_length())


def on_ring(nbytes: int, workers: int) -> float:
    """Bytes that a worker sends in an all-reduce on a ring."""
    return 2 * (workers - 1) / workers * nbytes


def in_bytes(count: float) -> str:
    """A number of bytes with its unit.

    Example:
        >>> in_bytes(40), in_bytes(3_100_000), in_bytes(12_345_678_900)
        ('40 bytes', '3.1 MB', '12.3 GB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:.0f} bytes"


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
