"""A quantised gradient: symbols of an alphabet, and scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from gradstats.kernels import coding, rotating
from gradstats.kernels.forms import on_host
from gradstats.kernels.ranges import from_unit, unit_of
from gradstats.payloads.alphabet import Alphabet
from gradstats.payloads.base import Payload
from gradstats.payloads.codebooks import alphabet_of
from gradstats.payloads.symbol_codes import CODERS, Coder
from gradstats.payloads.wire import (
    PayloadError,
    Reader,
    Section,
    code_of,
    real,
    varint,
)

OWN_LEVELS = 0  # in the place of an alphabet's kind: every bucket sends levels of its own
MOST_LEVELS = 1 << 16
PLAIN = 256  # levels whose packed symbols are bytes
ROTATED, MOVED = 1, 2  # flags
LARGEST = torch.finfo(torch.float32).max
WIDEST_BUCKET = 1 << 16  # of a gradient that is shorter: decoding may fill a bucket up


@dataclass(frozen=True, eq=False, repr=False)
class Coded(Payload):
    r"""Symbols of an alphabet, each of which stands for a level times the scale of its bucket.

    .. math:: \hat x_i = \text{unit} \cdot \text{scale}_{\lfloor i/B \rfloor}
              \cdot \text{level}_{s_i} + \text{offset}_{\lfloor i/B \rfloor}

    Where there is a rotation, these are the coordinates of the rotated gradient, each bucket of
    which is turned back by the inverse randomised Hadamard transform.

    Attributes:
        coder: the symbols under way.
        numel: d.
        alphabet: of the levels; None where each bucket sends its own.
        scales: `[⌈d/B⌉]` in a dtype of `wire.DTYPES`; `[⌈d/B⌉, L]`, the levels, without alphabet.
        bucket: B.
        unit: a factor of all scales; of offsets and levels of buckets too where it is the power of
            two of an extreme gradient, see `kernels.ranges`.
        rotation: key of the random signs; d is then padded to whole buckets.
        offsets: float32 `[⌈d/B⌉]`, where there are any.
    """

    coder: Coder
    numel: int
    alphabet: Alphabet | None
    scales: Tensor
    bucket: int
    unit: float = 1.0
    rotation: tuple[int, int] | None = None
    offsets: Tensor | None = None
    kind = 5

    @property
    def count(self) -> int:
        """All elements."""
        return self.numel

    @property
    def symbols(self) -> int:
        """Number of symbols: d, or what it is padded to."""
        return _padded(self.numel, self.bucket) if self.rotation else self.numel

    @property
    def levels(self) -> Tensor:
        """Float32 `[L]`; `[buckets, L]` where each bucket has its own."""
        if self.alphabet is None:
            return self.scales.float()
        return self.alphabet.levels(self.scales.device)

    def decode(self) -> Tensor:
        """Float32 `[numel]`; what float32 cannot hold is its largest number."""
        return from_unit(self._scaled(), self._units[1])

    def _scaled(self) -> Tensor:
        if not self.rotation:
            tables = *self._tables(), self.offsets
            return coding.dequantize(self._packed(), self.numel, *tables)
        return rotating.decode(self._packed(), self.numel, *self._tables(), self.rotation)

    @property
    def _units(self) -> tuple[float, float]:
        """The unit as a factor of the scales, and a power of two that multiplies in the end."""
        if unit_of(self.unit) == 1:
            return self.unit, 1.0
        power = unit_of(self.unit)
        return self.unit / power, power

    @property
    def is_known_finite(self) -> bool:
        """See `Payload.is_known_finite`; of an alphabet on the host the scales tell it."""
        if self.rotation or self.alphabet is None or not on_host(self.scales):
            return False
        tables, (unit, power) = [self.scales.float(), self.levels, self.offsets], self._units
        scale, level, offset = (_peak(each) for each in tables)
        within = abs(unit) * scale * max(level, 1.0) + offset  # before the power of two
        return within * max(abs(power), 1.0) <= LARGEST / 2

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        if self._units[1] != 1:
            super().add_to(out, weight)
        elif self.rotation:
            rotating.add_decoded(self._packed(), *self._tables(), self.rotation, out, weight)
        else:
            tables = self._tables()
            coding.add_dequantized(self._packed(), *tables, out, weight, self.offsets)

    def write_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.write_to`."""
        if self._units[1] != 1 or self.rotation:
            super().write_to(out, weight)
        else:
            tables = self._tables()
            coding.write_dequantized(self._packed(), *tables, out, weight, self.offsets)

    def remove_from(self, residual: Tensor) -> None:
        """See `Payload.remove_from`."""
        if self._units[1] != 1 or self.rotation:
            super().remove_from(residual)
        else:
            tables = self._tables()
            coding.subtract_dequantized(self._packed(), *tables, residual, self.offsets)

    def _packed(self) -> Tensor:
        packed = self._plain
        if packed is None:
            packed = self.coder.packed(self.symbols, self.levels.shape[-1])
        return packed.to(self.scales.device)  # entropy coders decode on the host

    @property
    def _plain(self) -> Tensor | None:
        """Symbols that need not be packed, for they are those of 256 levels."""
        return None if self.alphabet is None else self.coder.plain(self.symbols)

    def _tables(self) -> tuple[Tensor | None, int, Tensor]:
        if self.alphabet is None:
            return None, self.bucket, self.levels
        levels = self.levels
        if self._plain is not None:
            levels = torch.nn.functional.pad(levels, (0, PLAIN - len(levels)))
        return self.scales.float() * self._units[0], self.bucket, levels

    def sections(self) -> Iterator[Section]:
        """Number, alphabet, bucket, unit, flags, rotation, scales, offsets, coder."""
        yield varint(self.numel)
        own = (OWN_LEVELS, self.scales.shape[-1], 0)
        for number in own if self.alphabet is None else self.alphabet.code:
            yield varint(number)
        yield varint(self.bucket)
        yield real(self.unit)
        yield varint(ROTATED * (self.rotation is not None) + MOVED * (self.offsets is not None))
        for word in self.rotation or ():
            yield varint(word)
        yield code_of(self.scales.dtype)
        yield self.scales
        if self.offsets is not None:
            yield self.offsets
        yield varint(self.coder.kind)
        yield from self.coder.sections()

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """See `Payload.read`."""
        numel = reader.numel()
        alphabet, levels = _read_alphabet(reader)
        bucket = reader.number(max(numel, WIDEST_BUCKET), "bucket")
        unit = reader.real()
        flags = reader.number(ROTATED + MOVED, "flags")
        rotation = reader.key() if flags & ROTATED else None
        if flags == ROTATED + MOVED:
            raise PayloadError("cannot decode payload: it has both a rotation and offsets")
        _check_bucket(bucket, numel, rotated=rotation is not None)
        symbols = _padded(numel, bucket) if rotation else numel
        buckets = -(-symbols // bucket)
        dtype = reader.dtype()
        scales = reader.tensor(buckets * (1 if alphabet else levels), dtype)
        if alphabet is None:
            scales = scales.view(buckets, levels)
        offsets = reader.tensor(buckets, torch.float32) if flags & MOVED else None
        coder = CODERS[reader.number(len(CODERS) - 1, "coder")]
        packed = coder.read(reader, symbols, alphabet, levels)
        return cls(packed, numel, alphabet, scales, bucket, unit, rotation, offsets)


def _read_alphabet(reader: Reader) -> tuple[Alphabet | None, int]:
    kind, first, second = (reader.number(MOST_LEVELS, "alphabet") for _ in range(3))
    if kind == OWN_LEVELS:
        if not 2 <= first <= MOST_LEVELS:
            raise PayloadError(f"levels must be 2 … {MOST_LEVELS}, got {first}")
        if second:
            raise PayloadError(f"levels of buckets must have one number, got {second} as well")
        return None, first
    try:
        alphabet = alphabet_of((kind, first, second))
    except ValueError as error:
        raise PayloadError(f"cannot decode payload: {error}") from error
    return alphabet, alphabet.size


def _check_bucket(bucket: int, numel: int, *, rotated: bool) -> None:
    if bucket < 1:
        raise PayloadError(f"bucket must be at least 1, got {bucket}")
    if rotated and (bucket > max(numel, 1) or bucket & (bucket - 1)):
        rule = f"bucket of a rotation must be a power of two up to the {numel} elements"
        raise PayloadError(f"{rule}, got {bucket}")


def _peak(values: Tensor | None) -> float:
    """The largest magnitude, NaN if there is one; 0 of nothing."""
    return 0.0 if values is None or not values.numel() else float(values.abs().max())


def _padded(numel: int, bucket: int) -> int:
    return -(-numel // bucket) * bucket
