"""The byte format of payloads: a checked envelope, numbers as varints, tensors as they are."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradstats.kernels.threads import copied
from gradstats.payloads.checking import crc32
from gradstats.payloads.index_codes import decode_indices

MAGIC = b"GSPL"
VERSION = 2
ENVELOPE = struct.Struct("<4sBI")  # magic, version, CRC-32 of the version and what follows
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.float8_e4m3fn,
    torch.float8_e8m0fnu,
)
FLOATS = DTYPES[:4]  # those that a gradient may have
DEEPEST = 4  # payloads inside payloads
CHECKED, CHECKED_PER_BYTE = 1 << 16, 64  # entropy-coded elements that are decoded to be checked

Section = bytes | Tensor


class PayloadError(ValueError):
    """Raised for bytes that are not a payload, or not an intact one."""


@contextmanager
def refused() -> Iterator[None]:
    """Raise ValueErrors of the block as PayloadError."""
    try:
        yield
    except ValueError as error:
        raise PayloadError(f"cannot decode payload: {error}") from error


def varint(number: int) -> bytes:
    """Encode an integer as LEB128: seven bits per byte, the least significant first.

    Example:
        >>> varint(300).hex()
        'ac02'
    """
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def size(section: Section) -> int:
    """Return the length of a section in bytes."""
    return section.nbytes if isinstance(section, Tensor) else len(section)


def raw(section: Section) -> bytes:
    """A section as bytes: of a tensor its elements, little-endian."""
    if isinstance(section, bytes):
        return section
    return raw_view(section).cpu().numpy().tobytes()


def raw_view(section: Tensor) -> Tensor:
    """The bytes of a tensor's elements, uint8, on its device; a view where it is contiguous."""
    flat = section.detach().reshape(-1)
    # one element that was expanded is contiguous to torch, but no bytes to view
    side_by_side = (
        flat if flat.stride() == (1,) else flat.clone(memory_format=torch.contiguous_format)
    )
    return side_by_side.view(torch.uint8)


def seal(sections: Iterable[Section]) -> bytes:
    """Put sections into an envelope; the elements of tensors are copied once."""
    body, checksum = [_buffer(each) for each in sections], VERSION
    for part in body:
        checksum = crc32(part, checksum)
    return b"".join([ENVELOPE.pack(MAGIC, VERSION, checksum), *body])


def _buffer(section: Section) -> bytes | memoryview:
    """What `raw` copies."""
    return section if isinstance(section, bytes) else raw_view(section).cpu().numpy().data


def unseal(data: bytes) -> memoryview:
    """Return the content of an envelope.

    Raises:
        PayloadError: truncated, corrupted, or of another version.
    """
    if len(data) < ENVELOPE.size:
        raise PayloadError(
            f"cannot decode payload: {len(data)} bytes, envelope has {ENVELOPE.size}"
        )
    magic, version, checksum = ENVELOPE.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise PayloadError(
            f"payload must start with {MAGIC!r} version {VERSION}, got {bytes(data[:5])!r}"
        )
    body = memoryview(data)[ENVELOPE.size :]
    if _checksum(body) != checksum:
        raise PayloadError(f"cannot decode payload: checksum is not {checksum:#010x}")
    return body


def _checksum(body: bytes | memoryview) -> int:
    return crc32(body, VERSION)


class Reader:
    """A reader of a payload's body, from its start; it checks every claim.

    Time and memory go with the length of the body, whatever it claims.

    Args:
        body: of an envelope.
        kinds: the payload classes, indexed by their `kind`.
        max_numel: the most elements that a gradient may have.

    Attributes:
        foreign: whether the bytes are of unknown origin.
    """

    foreign = True

    def __init__(self, body: memoryview, kinds: tuple[type[Any], ...], max_numel: int) -> None:
        self._body = body
        self._kinds = kinds
        self._place = self._depth = 0
        self._checkable = CHECKED + CHECKED_PER_BYTE * len(body)
        self.max_numel = max_numel

    def payload(self, max_numel: int) -> Any:
        """A payload of at most `max_numel` elements, with those inside it."""
        if self._depth == DEEPEST:
            raise PayloadError(f"payloads must not be nested more than {DEEPEST} deep")
        kind = self._kinds[self.number(len(self._kinds) - 1, "kind")]
        before, self.max_numel = self.max_numel, max_numel
        self._depth += 1
        payload = kind.read(self)
        self._depth -= 1
        self.max_numel = before
        return payload

    def rest(self) -> int:
        """Bytes that are left."""
        return len(self._body) - self._place

    def take(self, length: int) -> memoryview:
        """The next bytes."""
        if length > self.rest():
            raise PayloadError(
                f"cannot decode payload: {length} bytes are due, {self.rest()} left"
            )
        self._place += length
        return self._body[self._place - length : self._place]

    def checks(self, elements: int) -> bool:
        """Whether to decode these entropy-coded elements now, so that bad ones are refused.

        A few bytes may claim any number of elements. Up to 65,536 elements and 64 per byte of a
        body are checked; beyond that, bad ones are detected when they are decoded.
        """
        affordable = elements <= self._checkable
        self._checkable -= elements * affordable
        return affordable

    def number(self, most: int, what: str) -> int:
        """A varint, at most `most`."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:
                raise PayloadError(f"cannot decode payload: {what} does not end")
        if value > most or (byte == 0 and shift > 7):
            raise PayloadError(f"cannot decode payload: {what} is {value}, at most {most}")
        return value

    def numel(self) -> int:
        """Elements of a gradient."""
        return self.number(self.max_numel, "number of elements")

    def dtype(self) -> torch.dtype:
        """A dtype, by its index in `DTYPES`."""
        return DTYPES[self.number(len(DTYPES) - 1, "dtype")]

    def float_dtype(self) -> torch.dtype:
        """A dtype that a gradient may have."""
        return FLOATS[self.number(len(FLOATS) - 1, "dtype")]

    def key(self) -> tuple[int, int]:
        """The key of a stream of random numbers: two 32-bit words."""
        return self.number(0xFFFFFFFF, "key"), self.number(0xFFFFFFFF, "key")

    def real(self) -> float:
        """A float64."""
        return float(struct.unpack("<d", self.take(8))[0])

    def tensor(self, count: int, dtype: torch.dtype) -> Tensor:
        """`[count]`, of its own memory."""
        data = self.take(count * dtype.itemsize)
        bits = copied(np.frombuffer(data, f"u{dtype.itemsize}"))
        signed = bits if dtype.itemsize == 1 else bits.view(f"i{dtype.itemsize}")
        return torch.from_numpy(signed).view(dtype)

    def blob(self) -> memoryview:
        """Bytes behind their number."""
        return self.take(self.number(self.rest(), "length"))

    def indices(self, count: int, numel: int, code: str) -> Tensor:
        """Rising indices below `numel`, int64 `[count]`, in one of `index_codes.CODES`."""
        with refused():
            return torch.from_numpy(decode_indices(self.blob(), count, numel, code))

    def end(self) -> None:
        """Nothing may follow."""
        if self.rest():
            raise PayloadError(f"cannot decode payload: {self.rest()} bytes too many")


def code_of(dtype: torch.dtype) -> bytes:
    """The dtype as `Reader.dtype` reads it."""
    return varint(DTYPES.index(dtype))


def real(number: float) -> bytes:
    """A float64."""
    return struct.pack("<d", number)


def blob(section: Section) -> Iterator[Section]:
    """Bytes behind their number, as `Reader.blob` reads them."""
    yield varint(size(section))
    yield section
