"""What is kept of a gradient: the target ratio, its k, and which parameters are sent dense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from numbers import Real
from typing import Any

from gradstats.settings import SettingError, several


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
    if not isinstance(ratio, Real) or not 0 < float(ratio) <= 1:
        raise ValueError(f"{name} must lie in (0, 1], the fraction that is kept, got {ratio!r}")


def ratios(given: Any) -> tuple[float, ...]:
    """Read target ratios: numbers, or texts such as "0.01", "1%" or "1%,0.1%".

    Args:
        given: One ratio or several.

    Raises:
        SettingError: One is no number in (0, 1].

    Example:
        >>> ratios("1%, 0.001"), ratios(0.5)
        ((0.01, 0.001), (0.5,))
    """
    rule = "must lie in (0, 1], the fraction that is kept, or be a percentage such as 1%"
    chosen, listed = [], several(given)
    among = f" in {','.join(map(str, listed))!r}" if len(listed) > 1 else ""
    for each in listed:
        value = percentage(each) if isinstance(each, str) else each
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= 1:
            raise SettingError("ratios", f"{rule}, got {each!r}{among}")
        chosen.append(float(value))
    return tuple(chosen)


def percentage(text: str) -> float | None:
    """Read a number or a percentage, exactly rounded; None if the text is neither.

    Example:
        >>> percentage("0.7%"), percentage("1e-3"), percentage("much")
        (0.007, 0.001, None)
    """
    number = text.strip()
    try:
        share = Decimal(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except InvalidOperation:
        return None
    return float(share)


MIN_NUMEL, MIN_DIMS = 1024, 2


@dataclass(frozen=True)
class DenseRule:
    """The rule that decides which parameters are sent dense, that is uncompressed.

    A parameter is sent dense if it has fewer than `min_numel` elements or fewer than `min_dims`
    dimensions. By default these are small and one-dimensional parameters. A replay with
    granularity "parameter", the communication hook and the report use this default. Another rule
    is written in a spec, the text that names a compressor:
    `per-parameter(topk(0.01), min_numel=512, min_dims=1)`.

    Args:
        min_numel: Smallest number of elements of a compressed parameter, from 1.
        min_dims: Smallest number of dimensions of a compressed parameter, from 0.

    Raises:
        ValueError: `min_numel` is not a whole number from 1, or `min_dims` not one from 0.

    Example:
        >>> rule = DenseRule()
        >>> rule.is_dense((64, 32)), rule.is_dense((2048,)), rule.is_dense((10, 10))
        (False, True, True)
        >>> print(rule)
        fewer than 1024 elements or 2 dimensions
    """

    min_numel: int = MIN_NUMEL
    min_dims: int = MIN_DIMS

    def __post_init__(self) -> None:
        for name, value, least in (
            ("min_numel", self.min_numel, 1),
            ("min_dims", self.min_dims, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number from {least}, got {value!r}")

    def is_dense(self, shape: Sequence[int]) -> bool:
        """Whether a parameter of this shape is sent dense."""
        return len(shape) < self.min_dims or math.prod(shape) < self.min_numel

    def __str__(self) -> str:
        dims = f" or {self.min_dims} dimensions" if self.min_dims else ""
        return f"fewer than {self.min_numel} elements{dims}"


@dataclass(frozen=True)
class Part:
    """A parameter's share of the flat gradient.

    Attributes:
        name: Name of the parameter.
        numel: Number of its elements in the vector.
        dense: Whether it is sent as it is, see `DenseRule`.
        shape: Shape of the parameter; () where the vector holds a sample of it.
    """

    name: str
    numel: int
    dense: bool = False
    shape: tuple[int, ...] = ()


RATIOS = (0.1, 0.01, 0.001)
