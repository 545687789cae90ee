"""Entropy coding: symbols by asymmetric numeral systems, bytes by zstd."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats import extras
from gradstats.kernels import ans

BITS = 16  # frequencies sum to 2^16
PAIRED = 16  # levels up to which two symbols are coded as one
WORD = np.dtype("<u4")


def frequencies(probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Frequencies of sum 2¹⁶, each at least 1, as near to probabilities as whole numbers come.

    What is left after rounding down goes to the largest remainders, the first of equal ones.

    Args:
        probabilities: `[L]`, not negative, of a sum above 0; at most 2¹⁵ of them.

    Example:
        >>> frequencies(np.array([0.5, 0.5, 0.0])).tolist()
        [32768, 32767, 1]
    """
    share = np.asarray(probabilities, np.float64)
    free = (1 << BITS) - share.size
    exact = share / share.sum() * free
    whole = np.floor(exact).astype(np.int64)
    largest_first = np.argsort(whole - exact, kind="stable")
    whole[largest_first[: free - int(whole.sum())]] += 1
    return np.asarray(whole + 1)


def encode_symbols(symbols: NDArray[np.integer], freq: NDArray[np.int64]) -> bytes:
    """Code symbols by asymmetric numeral systems; of few levels, two as one.

    Args:
        symbols: `[n]`, below L.
        freq: `[L]`, from `frequencies`.
    """
    together = _together(freq)
    width = np.uint8 if freq.size <= 256 else np.uint16
    narrow: NDArray[np.integer] = np.ascontiguousarray(symbols, width)
    return ans.encode(narrow, _joint(freq, together), freq.size if together == 2 else 0)


def decode_symbols(data: bytes, n: int, freq: NDArray[np.int64]) -> NDArray[np.integer]:
    """The n symbols: uint8, int32 above 256 levels.

    Raises:
        ValueError: bytes that do not end with the last symbol.
    """
    together = _together(freq)
    symbols = ans.decode(data, n, _joint(freq, together), freq.size if together == 2 else 0)
    return symbols if freq.size <= 256 else symbols.astype(np.int32)


def decode_serial(data: bytes, n: int, freq: NDArray[np.int64]) -> NDArray[np.integer]:
    """As `decode_symbols`, for the bytes of version 0.1: one state for all, by constriction.

    Raises:
        ValueError: bytes that do not end with the last symbol.
    """
    if len(data) % WORD.itemsize:
        raise ValueError(f"coded symbols must have whole words, got {len(data)} bytes")
    words = np.frombuffer(data, WORD).astype(np.uint32)
    if words.size and not words[-1]:
        raise ValueError("the last word of coded symbols must not be 0")
    together = _together(freq)
    coder = extras.load("constriction").stream.stack.AnsCoder(words)
    symbols = coder.decode(_model(_joint(freq, together)), -(-n // together))
    symbols = symbols.astype(np.uint8 if freq.size**together <= 256 else np.int32)
    if together == 2:
        upper, lower = np.divmod(symbols, symbols.dtype.type(freq.size))
        symbols = np.stack([lower, upper], axis=1).ravel()
    if not coder.is_empty() or symbols[n:].any():
        raise ValueError(f"coded symbols must end after {n}")
    return np.asarray(symbols[:n].astype(np.uint8 if freq.size <= 256 else np.int32))


def _together(freq: NDArray[np.int64]) -> int:
    """How many symbols are coded as one: half as many take half the time."""
    return 2 if freq.size <= PAIRED else 1


def _joint(freq: NDArray[np.int64], together: int) -> NDArray[np.int64]:
    """Frequencies of symbols that are coded as one: a + L b."""
    if together == 1:
        return freq
    return frequencies(np.outer(freq, freq).ravel().astype(np.float64))


def _model(freq: NDArray[np.int64]) -> Any:
    # these quotients are exact, so that sender and receiver build the same model
    model = extras.load("constriction").stream.model
    return model.Categorical(freq / (1 << BITS), perfect=False)


def cross_entropy_bits(counts: NDArray[np.integer], freq: NDArray[np.int64]) -> float:
    """Bits that a message with these counts of symbols takes under frequencies, at least."""
    return float(counts @ (BITS - np.log2(freq)))


def compress_bytes(data: bytes, level: int = 3) -> bytes:
    """Compress bytes by zstd."""
    return bytes(extras.load("zstandard").ZstdCompressor(level=level).compress(data))


def decompress_bytes(data: bytes, nbytes: int) -> bytes:
    """What was compressed; no more than `nbytes` are ever allocated for it.

    Raises:
        ValueError: corrupted, or not `nbytes` long.
    """
    zstd = extras.load("zstandard")
    try:
        claimed = zstd.frame_content_size(data)
        plain = zstd.ZstdDecompressor().decompress(data) if claimed == nbytes else b""
    except zstd.ZstdError as error:
        raise ValueError(f"cannot decompress: {error}") from error
    if claimed != nbytes or len(plain) != nbytes:
        raise ValueError(f"compressed bytes must be {nbytes}, got {claimed}")
    return bytes(plain)


def byte_planes(data: bytes, width: int) -> bytes:
    """Bytes of numbers of `width` bytes, those of equal significance together."""
    return np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes()


def from_byte_planes(planes: bytes, width: int) -> bytes:
    """The inverse of `byte_planes`."""
    return np.frombuffer(planes, np.uint8).reshape(width, -1).T.tobytes()
