"""Sums of a gradient's elements, in a unit in which their squares stay inside float64."""

from __future__ import annotations

from typing import Any, NamedTuple

SAFE = (2.0**-450, 2.0**450)  # of max|g|: inside, sums of squares neither overflow nor underflow


class Sums(NamedTuple):
    """Sums of x, |x| and x² over the finite elements x = g/unit."""

    unit: float
    total: float
    total_abs: float
    total_sq: float

    def over(self, unit: float) -> Sums:
        """The same sums of g over another unit."""
        factor = self.unit / unit
        return Sums(
            unit, self.total * factor, self.total_abs * factor, self.total_sq * factor * factor
        )


def is_safe(max_abs: float) -> bool:
    """Whether sums of squares of such a gradient stay inside float64."""
    return max_abs == 0 or SAFE[0] <= max_abs <= SAFE[1]


def fields_of_sums(sums: Sums, max_abs: float) -> dict[str, Any]:
    """The fields of a Summary with these sums."""
    own = sums.over(1.0)
    fields_ = {"total": own.total, "total_abs": own.total_abs, "total_sq": own.total_sq}
    return {**fields_, "max_abs": max_abs, "sums": None if is_safe(max_abs) else sums}
