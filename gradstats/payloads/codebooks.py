"""The levels of quantisers: sets of numbers that a few integers describe, so that these travel."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from gradstats.payloads.alphabet import Alphabet, Code, Floats, _both_signs, _check, codebooks


@dataclass(frozen=True)
class Sign(Alphabet):
    """-1 and 1."""

    kind = 1

    @property
    def size(self) -> int:
        """See `Alphabet.size`."""
        return 2

    def exact_levels(self) -> Floats:
        """See `Alphabet.exact_levels`."""
        return np.array([-1.0, 1.0])


@dataclass(frozen=True)
class Uniform(Alphabet):
    """2s + 1 levels from -1 to 1, at equal distances.

    Attributes:
        steps: s, at most 32,767.
    """

    steps: int
    kind = 2

    def __post_init__(self) -> None:
        _check(1 <= self.steps <= 32767, self)

    @property
    def size(self) -> int:
        """See `Alphabet.size`."""
        return 2 * self.steps + 1

    def exact_levels(self) -> Floats:
        """See `Alphabet.exact_levels`."""
        return np.arange(-self.steps, self.steps + 1) / self.steps


@dataclass(frozen=True)
class Exponential(Alphabet):
    """0 and ±2^-s, …, ±1/2, ±1.

    Attributes:
        steps: s, at most 120.
    """

    steps: int
    kind = 3

    def __post_init__(self) -> None:
        _check(1 <= self.steps <= 120, self)

    @property
    def size(self) -> int:
        """See `Alphabet.size`."""
        return 2 * self.steps + 3

    def exact_levels(self) -> Floats:
        """See `Alphabet.exact_levels`."""
        return _both_signs(0.5 ** np.arange(self.steps, -1, -1.0))


@dataclass(frozen=True)
class Powers(Alphabet):
    """0 and ± all normal powers of 2 of float32: 2^-126, …, 2^127."""

    kind = 4

    @property
    def size(self) -> int:
        """See `Alphabet.size`."""
        return 2 * 254 + 1

    def exact_levels(self) -> Floats:
        """See `Alphabet.exact_levels`."""
        return _both_signs(2.0 ** np.arange(-126, 128.0))


@dataclass(frozen=True)
class Gauss(Alphabet):
    """The Lloyd-Max quantiser of the standard normal distribution.

    Each level is the mean of the distribution in its cell, and cells meet halfway between levels.

    Attributes:
        bits: 1 to 8, for 2^bits levels.

    References:
        Max, "Quantizing for minimum distortion", 1960.
    """

    bits: int
    kind = 5

    def __post_init__(self) -> None:
        _check(1 <= self.bits <= 8, self)

    @property
    def size(self) -> int:
        """See `Alphabet.size`."""
        return 1 << self.bits

    def exact_levels(self) -> Floats:
        """See `Alphabet.exact_levels`."""
        half = 1 << (self.bits - 1)
        positive = codebooks()["gauss"][half - 1 : 2 * half - 1]
        return np.concatenate([-positive[::-1], positive])


@dataclass(frozen=True)
class MiniFloat(Alphabet):
    """A small floating-point format: sign, exponent, mantissa, subnormals; 0 and -0 are one level.

    Attributes:
        format: its index in `FORMATS`.
    """

    format: int
    kind = 6

    def __post_init__(self) -> None:
        _check(0 <= self.format < len(FORMATS), self)

    @property
    def size(self) -> int:
        """See `Alphabet.size`."""
        _, mantissa, _, top, unused = FORMATS[self.format]
        return 2 * (((top + 1) << mantissa) - 1 - unused) + 1

    def exact_levels(self) -> Floats:
        """See `Alphabet.exact_levels`."""
        _, mantissa, bias, top, unused = FORMATS[self.format]
        fractions = np.arange(1 << mantissa) / (1 << mantissa)
        subnormal = fractions[1:] * 2.0 ** (1 - bias)
        normal = np.outer(2.0 ** (np.arange(1, top + 1) - bias), 1 + fractions).ravel()
        return _both_signs(np.concatenate([subnormal, normal])[: -unused or None])


# name, bits of the mantissa, bias, largest exponent code, largest codes that are no number
FORMATS = (
    ("CO3's fp4", 1, 1, 2, 0),
    ("CO3's fp8, 1-5-2", 2, 15, 30, 0),
    ("CO3's fp8, 1-4-3", 3, 10, 14, 0),
    ("OCP E2M1", 1, 1, 3, 0),
    ("OCP E4M3", 3, 7, 15, 1),
    ("OCP E5M2", 2, 15, 30, 0),
    ("OCP E2M3", 3, 1, 3, 0),
    ("OCP E3M2", 2, 3, 7, 0),
)
CO3_FP4, CO3_FP8, CO3_FP8_143, E2M1, E4M3, E5M2, E2M3, E3M2 = map(MiniFloat, range(len(FORMATS)))


@dataclass(frozen=True)
class DynamicTree(Alphabet):
    """8 bits: a sign, leading zeros that count decades, a one, and a linear fraction.

    With z leading zeros the magnitude is 10^-z times the middles of 2^(6-z) equal parts of
    [0.1, 1], z = 0 … 6; with 0 and with 1 in place of a last code there are 256 levels.

    References:
        Dettmers, "8-bit approximations for parallelism in deep learning", ICLR 2016.
    """

    kind = 7

    @property
    def size(self) -> int:
        """See `Alphabet.size`."""
        return 256

    def exact_levels(self) -> Floats:
        """See `Alphabet.exact_levels`."""
        magnitudes = [
            10.0**-z * (edges[1:] + edges[:-1]) / 2
            for z in range(7)
            for edges in [np.linspace(0.1, 1, (1 << (6 - z)) + 1)]
        ]
        levels = _both_signs(np.sort(np.concatenate(magnitudes)))
        return np.append(levels, 1.0)


@dataclass(frozen=True)
class Lattice(Alphabet):
    r"""Some of the points of an even grid from -1 to 1, best for a clipped normal distribution.

    Levels are z / (g/2) - 1 for 2^bits integers z in 0 … g with both ends among them. Values are
    those of a standard normal distribution over `CLIP`, and they are rounded at random to a
    neighbouring level without bias; the integers are those that lose least of it,

    .. math:: \sum_j \int_{l_j}^{l_{j+1}} (x - l_j)(l_{j+1} - x) \varphi(x) dx,

    found by dynamic programming (data/codebooks.py).

    Attributes:
        bits: 1 to 8.
        grid: g, from 2^bits - 1 to 255.

    References:
        Li et al., "THC: Accelerating distributed deep learning using tensor homomorphic
        compression", NSDI 2024.
    """

    bits: int
    grid: int
    kind = 8

    def __post_init__(self) -> None:
        _check(1 <= self.bits <= 8 and (1 << self.bits) - 1 <= self.grid <= 255, self)

    @property
    def size(self) -> int:
        """See `Alphabet.size`."""
        return 1 << self.bits

    def integers(self) -> NDArray[np.uint8]:
        """The z, rising, `[2^bits]`."""
        before = sum((257 - (1 << b)) << b for b in range(1, self.bits))
        first = before + ((self.grid + 1 - self.size) << self.bits)
        return np.asarray(codebooks()["lattice"][first : first + self.size])

    def exact_levels(self) -> Floats:
        """See `Alphabet.exact_levels`."""
        return 2 * self.integers().astype(np.float64) / self.grid - 1


CLIP = float(ndtri(1 - 1 / 64))  # a standard normal value is beyond it once in 32
KINDS: dict[int, type[Alphabet]] = {
    each.kind: each
    for each in (Sign, Uniform, Exponential, Powers, Gauss, MiniFloat, DynamicTree, Lattice)
}


def alphabet_of(code: Code) -> Alphabet:
    """The alphabet of a code.

    Raises:
        ValueError: no alphabet has this code.
    """
    kind, *numbers = code
    if kind not in KINDS:
        raise ValueError(f"kind of alphabet must be one of {list(KINDS)}, got {kind}")
    known = len(fields(KINDS[kind]))
    if any(numbers[known:]):
        raise ValueError(f"alphabet must have {known} numbers, got {numbers}")
    return KINDS[kind](*numbers[:known])
