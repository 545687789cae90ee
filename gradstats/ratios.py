"""Target ratios: k, and what they may be."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any


def kept_count(numel: int, ratio: float) -> int:
    """k, the number of elements a target ratio keeps: max(1, round(ratio · numel)).

    Raises:
        ValueError: ratio outside (0, 1].

    Example:
        >>> kept_count(1000, 0.01), kept_count(5, 0.01)
        (10, 1)
    """
    check_ratio("target_ratio", ratio)
    return min(numel, max(1, round(ratio * numel)))


def check_ratio(name: str, ratio: Any) -> None:
    """Raise ValueError unless `ratio` is a fraction of kept elements, in (0, 1]."""
    if not isinstance(ratio, Real) or not 0 < ratio <= 1:
        raise ValueError(f"{name} must lie in (0, 1], the fraction that is kept, got {ratio!r}")


MIN_NUMEL = 1024


@dataclass(frozen=True)
class Part:
    """A parameter's place in the flat gradient.

    Attributes:
        name: of the parameter.
        numel: elements in the vector.
        dense: sent as it is, because it is too small to be worth compressing.
        shape: of the parameter; () where the vector holds a sample of it.
    """

    name: str
    numel: int
    dense: bool = False
    shape: tuple[int, ...] = ()


RATIOS = (0.1, 0.01, 0.001)
