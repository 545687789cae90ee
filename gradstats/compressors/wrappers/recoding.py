"""Codes as stages of a pipe: other ways to write indices and symbols."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradstats.compressors.wrappers.pipe import Stage, innermost
from gradstats.kernels import ans, coding
from gradstats.payloads import entropy
from gradstats.payloads.base import Payload
from gradstats.payloads.bundle import Bundle
from gradstats.payloads.index_codes import OF_KNOWN_LENGTH
from gradstats.payloads.quantized import Coded
from gradstats.payloads.sparse import Sparse
from gradstats.payloads.symbol_codes import ANS, Packed


@dataclass(frozen=True)
class IndexCode(Stage):
    """Writes the indices of a sparse payload in one code, not in the shortest.

    Args:
        name: one of `index_codes.CODES`.
    """

    name: str

    @property
    def saves_read(self) -> bool:
        """Whether the number of indices determines the length."""
        return self.name in OF_KNOWN_LENGTH

    def apply(self, payload: Payload) -> Payload:
        """See `Stage.apply`."""
        if isinstance(payload, Bundle):
            return Bundle(tuple(self.apply(part) for part in payload.parts))
        if not isinstance(payload, Sparse):
            raise ValueError(f"{self.name} must follow a sparsifier, got {type(payload).__name__}")
        return replace(payload, index_code=self.name)


@dataclass(frozen=True)
class EntropyCode(Stage):
    """Writes the symbols of a quantiser by asymmetric numeral systems, under their frequencies."""

    name = "ans"
    of_symbols = True

    def apply(self, payload: Payload) -> Payload:
        """See `Stage.apply`."""
        return innermost(payload, _entropy_coded)


def _entropy_coded(payload: Payload) -> Payload:
    if not isinstance(payload, Coded) or not isinstance(payload.coder, Packed):
        raise ValueError(f"ans must follow a quantizer, got {type(payload).__name__}")
    levels = payload.levels.shape[-1]
    symbols = (
        coding.unpack(payload.coder.data, payload.symbols, levels, trusted=True).cpu().numpy()
    )
    counts = ans.count(symbols, levels)
    frequencies = entropy.frequencies((counts + 1) / (counts + 1).sum())
    data = entropy.encode_symbols(symbols, frequencies)
    return replace(payload, coder=ANS(data, frequencies))
