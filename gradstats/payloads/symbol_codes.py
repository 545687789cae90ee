"""Codes of the symbols of a quantised gradient: packed, or entropy-coded under a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels import coding
from gradstats.payloads import entropy
from gradstats.payloads.alphabet import Alphabet
from gradstats.payloads.symbol_model import NARROWEST, WIDEST, symbol_probabilities
from gradstats.payloads.wire import PayloadError, Reader, Section, blob, real, refused


class Coder(ABC):
    """The coded symbols 0 … L-1 of an alphabet.

    Attributes:
        kind: the code of its class in the bytes.
    """

    kind: ClassVar[int]

    @abstractmethod
    def packed(self, n: int, levels: int) -> Tensor:
        """The n symbols as `kernels.coding.pack` packs them, uint8."""

    def plain(self, n: int) -> Tensor | None:
        """The n symbols, uint8, where it has them as they are and all are below 256."""
        return None

    @abstractmethod
    def sections(self) -> Iterator[Section]:
        """What it is in bytes, without its kind."""

    @classmethod
    @abstractmethod
    def read(cls, reader: Reader, n: int, alphabet: Alphabet | None, levels: int) -> Self:
        """The coder whose sections come next; its n symbols are checked, see `Reader.checks`."""


@dataclass(frozen=True, eq=False)
class Packed(Coder):
    """All symbols at the same length: log₂ L bits, up to the rounding of words.

    Attributes:
        data: uint8.
    """

    data: Tensor
    kind = 0

    def packed(self, n: int, levels: int) -> Tensor:
        """See `Coder.packed`."""
        return self.data

    def sections(self) -> Iterator[Section]:
        """Their length is known."""
        yield self.data

    @classmethod
    def read(cls, reader: Reader, n: int, alphabet: Alphabet | None, levels: int) -> Self:
        """See `Coder.read`."""
        data = reader.tensor(coding.packed_nbytes(n, levels), torch.uint8)
        if reader.foreign:
            with refused():
                coding.check(data, n, levels)
        return cls(data)


@dataclass(frozen=True, eq=False)
class ANS(Coder):
    """Asymmetric numeral systems under a table of frequencies, which is sent.

    Attributes:
        data: the coded symbols.
        frequencies: int64 `[L]`, of sum 2¹⁶, each at least 1.
    """

    data: bytes
    frequencies: NDArray[np.int64]
    kind = 4
    decode = staticmethod(entropy.decode_symbols)

    @cached_property
    def _symbols(self) -> dict[int, Tensor]:
        """What was decoded, by the number of symbols: a receiver checks, then reads."""
        return {}

    def symbols(self, n: int) -> Tensor:
        """The n symbols: uint8, int32 above 256 levels.

        Raises:
            PayloadError: the data are not those of n symbols.
        """
        if n not in self._symbols:
            with refused():
                symbols = type(self).decode(self.data, n, self.frequencies)
            self._symbols[n] = torch.from_numpy(symbols)
        return self._symbols[n]

    def plain(self, n: int) -> Tensor | None:
        """See `Coder.plain`."""
        return self.symbols(n) if len(self.frequencies) <= 256 else None

    def packed(self, n: int, levels: int) -> Tensor:
        """See `Coder.packed`."""
        return coding.pack(self.symbols(n), levels, trusted=True)

    def sections(self) -> Iterator[Section]:
        """The frequencies less 1 in 16 bits each, the data behind their length."""
        yield (self.frequencies - 1).astype("<u2").tobytes()
        yield from blob(self.data)

    @classmethod
    def read(cls, reader: Reader, n: int, alphabet: Alphabet | None, levels: int) -> Self:
        """See `Coder.read`."""
        frequencies = np.frombuffer(reader.take(2 * levels), "<u2").astype(np.int64) + 1
        if frequencies.sum() != 1 << entropy.BITS:
            raise PayloadError(f"frequencies must sum to 2^16, got {frequencies.sum()}")
        coded = cls(bytes(reader.blob()), frequencies)
        if reader.checks(n):
            coded.symbols(n)
        return coded


@dataclass(frozen=True, eq=False)
class ModelANS(ANS):
    """Entropy code under a generalized normal distribution: two numbers travel, not a table.

    Attributes:
        shape: β of the distribution.
        scale: of what was quantised: α of the distribution in units of the alphabet.
    """

    shape: float
    scale: float
    kind = 5

    @classmethod
    def of(cls, symbols: Tensor, shape: float, scale: float, alphabet: Alphabet) -> ModelANS:
        """Code the symbols of an alphabet; the sender, who knows them, need not decode them."""
        frequencies, known = _frequencies(shape, scale, alphabet), symbols.cpu()
        coded = cls(entropy.encode_symbols(known.numpy(), frequencies), frequencies, shape, scale)
        coded._symbols[len(known)] = known
        return coded

    def sections(self) -> Iterator[Section]:
        """Shape, scale, the data behind their length."""
        yield real(self.shape)
        yield real(self.scale)
        yield from blob(self.data)

    @classmethod
    def read(cls, reader: Reader, n: int, alphabet: Alphabet | None, levels: int) -> Self:
        """See `Coder.read`."""
        shape, scale = reader.real(), reader.real()
        data = bytes(reader.blob())
        if alphabet is None:
            raise PayloadError("a model must have an alphabet, got levels of buckets")
        if not (NARROWEST <= shape <= WIDEST and 1e-6 < scale < 1e6):
            rule = f"model must have a shape from {NARROWEST:g} to {WIDEST:g}, a scale near 1"
            raise PayloadError(f"{rule} (1e-6 to 1e6), got {shape}, {scale}")
        if levels > MODELLED:
            raise PayloadError(f"model must have at most {MODELLED} levels, got {levels}")
        coded = cls(data, _frequencies(shape, scale, alphabet), shape, scale)
        if reader.checks(n):
            coded.symbols(n)
        return coded


@dataclass(frozen=True, eq=False)
class SerialANS(ANS):
    """An `ANS` of version 0.1, with one state for all symbols: read, and never made."""

    kind = 1
    decode = staticmethod(entropy.decode_serial)


@dataclass(frozen=True, eq=False)
class SerialModelANS(ModelANS):
    """A `ModelANS` of version 0.1, with one state for all symbols: read, and never made."""

    kind = 2
    decode = staticmethod(entropy.decode_serial)


@lru_cache(maxsize=256)
def _frequencies(shape: float, scale: float, alphabet: Alphabet) -> NDArray[np.int64]:
    return entropy.frequencies(symbol_probabilities(shape, scale, alphabet))


@dataclass(frozen=True, eq=False)
class ZeroRuns(Coder):
    """Ternary symbols, five to a byte in base 3; 2 to 14 bytes of zeros are one of the rest.

    Attributes:
        data: bytes 0 … 242 for five symbols, 243 … 255 for runs of 121, which is all zero.

    References:
        Lim et al., "3LC", MLSys 2019.
    """

    data: bytes
    kind = 3

    @classmethod
    def of(cls, symbols: Tensor) -> ZeroRuns:
        """Fold symbols 0, 1, 2, of which 1 is zero."""
        digits = symbols.cpu().numpy().astype(np.int64)
        padded = np.pad(digits, (0, -len(digits) % DIGITS), constant_values=1)
        whole = padded.reshape(-1, DIGITS) @ 3 ** np.arange(DIGITS)
        starts = np.flatnonzero(np.diff(whole, prepend=-1) | (whole != ALL_ZERO))
        lengths = np.diff(starts, append=len(whole))
        full, rest = np.divmod(lengths, LONGEST_RUN)
        codes_of_rest = np.where(rest > 1, FIRST_RUN - 2 + rest, whole[starts])
        repeats = np.stack([full, np.minimum(rest, 1)], axis=1).ravel()
        values = np.stack([np.full(len(full), 255), codes_of_rest], axis=1).ravel()
        return cls(np.repeat(values, repeats).astype(np.uint8).tobytes())

    def symbols(self, n: int) -> NDArray[np.uint8]:
        """The n symbols, `[n]`."""
        folded = np.frombuffer(self.data, np.uint8)
        whole = np.where(folded < FIRST_RUN, folded, ALL_ZERO)
        return np.asarray(TERNARY[np.repeat(whole, REPEATS[folded])].ravel()[:n])

    def packed(self, n: int, levels: int) -> Tensor:
        """See `Coder.packed`."""
        return coding.pack(torch.from_numpy(self.symbols(n)), levels, trusted=True)

    def sections(self) -> Iterator[Section]:
        """The data behind their length."""
        yield from blob(self.data)

    @classmethod
    def read(cls, reader: Reader, n: int, alphabet: Alphabet | None, levels: int) -> Self:
        """See `Coder.read`."""
        if levels != 3:
            raise PayloadError(f"runs of zeros must be of 3 levels, got {levels}")
        data = bytes(reader.blob())
        fives = int(REPEATS[np.frombuffer(data, np.uint8)].sum(dtype=np.int64))
        if fives != -(-n // DIGITS):
            rule = f"runs must hold {n} symbols in {-(-n // DIGITS)} bytes of five"
            raise PayloadError(f"{rule}, got {fives} bytes")
        return cls(data)


DIGITS, ALL_ZERO = 5, 121  # ternary digits in a byte, and five ones
FIRST_RUN, LONGEST_RUN = 243, 14
TERNARY = (np.arange(FIRST_RUN)[:, np.newaxis] // 3 ** np.arange(DIGITS) % 3).astype(np.uint8)
REPEATS = np.maximum(np.arange(256) - FIRST_RUN + 2, 1).astype(np.uint8)
MODELLED = 256  # levels
CODERS: tuple[type[Coder], ...] = (Packed, SerialANS, SerialModelANS, ZeroRuns, ANS, ModelANS)
