"""Scales of buckets by a rule, and symbols of what is scaled by them: in numba one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gradstats.kernels import coding
from gradstats.kernels.forms import in_numba

MOST_E4M3 = 448.0
KINDS = ("max", "l2", "power", "e4m3", "range")


@dataclass(frozen=True)
class ScaleRule:
    r"""How the scale of a bucket follows from its elements.

    - "max": :math:`\max|x| / \text{divisor}`, float32;
    - "l2": :math:`\|x\|_2`, float32;
    - "power": :math:`2^{\lfloor \log_2 \max|x| \rfloor - \text{power}}` in what E8M0 holds without
      its least number, 2⁻¹²⁶ … 2¹²⁷; :math:`2^{-1 - \text{power}}` where all elements are 0;
    - "e4m3": :math:`\max|x| / \text{divisor}`, at most 448, rounded to E4M3, times the unit;
    - "range": half of max - min, float32, after the middle of the two was subtracted.

    Attributes:
        kind: one of `KINDS`.
        divisor: a number above 0.
        power: an exponent of 2, for "power".
        unit: a number, for "e4m3".
    """

    kind: str
    divisor: float = 1.0
    power: int = 0
    unit: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def stored(self, norms: Tensor) -> Tensor:
        """The scales as they travel; NaN where a norm is not finite and the format knows none."""
        if self.kind == "e4m3":
            return (norms / self.divisor).clamp(max=MOST_E4M3).to(torch.float8_e4m3fn)
        if self.kind != "power":
            return norms if self.divisor == 1 else norms / self.divisor
        _, above = torch.frexp(norms)  # norm = m · 2^above, m in [1/2, 1)
        scales = torch.exp2((above - 1 - self.power).clamp(-126, 127).to(torch.float32))
        return torch.where(norms.isfinite(), scales, torch.nan).to(torch.float8_e8m0fnu)

    def factors(self, stored: Tensor) -> Tensor:
        """The scales as they divide, float32."""
        return stored.float() * self.unit if self.kind == "e4m3" else stored.float()


class Scaled(NamedTuple):
    """Elements of buckets that were scaled and rounded.

    Attributes:
        packed: uint8, see `coding.quantize`.
        scales: `[buckets]`, float32 or the 8-bit format of the rule.
        offsets: float32 `[buckets]`, what was subtracted; None but for "range".
        largest: the largest magnitude, `[]`; a norm for "l2".
    """

    packed: Tensor
    scales: Tensor
    offsets: Tensor | None
    largest: Tensor


def quantize_scaled(
    values: Tensor,
    bucket: int,
    levels: Tensor,
    rule: ScaleRule,
    *,
    rounding: str,
    key: tuple[int, int] | None = None,
) -> Scaled:
    """Scale every bucket by a rule, round to levels and pack the symbols.

    Args:
        values: floating point `[n]`, contiguous.
        bucket: elements that share a scale.
        levels: float32 `[L]`, strictly rising.
        rule: of the scales.
        rounding: see `coding.quantize`.
        key: two 32-bit words, for stochastic rounding.

    Example:
        >>> scaled = quantize_scaled(torch.tensor([1.0, 3.0, -0.5, 0.0]), 2,
        ...     torch.tensor([-1.0, 0.0, 1.0]), ScaleRule("max"), rounding="nearest")
        >>> scaled.scales.tolist(), coding.unpack(scaled.packed, 4, 3).tolist()
        ([3.0, 0.5], [1, 2, 0, 1])
    """
    coding.check_rounding(rounding, key)
    if in_numba(values) and values.dtype != torch.float64:
        from gradstats.kernels import coding_cpu

        fused = coding_cpu.quantize_scaled(values, bucket, levels, rule, rounding, key)
        if fused:
            return Scaled(*fused)
    if rule.kind == "range":
        values, scales, offsets, largest = _centered(values.to(torch.float32), bucket)
    else:
        norms = coding.bucket_norms(values, bucket, "l2" if rule.kind == "l2" else "max")
        scales, offsets = rule.stored(norms), None
        largest = norms.amax() if len(norms) else norms.sum()
    factors = rule.factors(scales)
    packed = coding.quantize(values, factors, bucket, levels, rounding=rounding, key=key)
    return Scaled(packed, scales, offsets, largest)


def _centered(values: Tensor, bucket: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values less the middle of their bucket, half of its range, the middle; the largest."""
    n, missing = values.numel(), -values.numel() % bucket
    filled = torch.nn.functional.pad(values, (0, missing))
    if missing:
        filled[n:] = values[-1]
    rows = filled.view(-1, bucket)
    low, high = rows.amin(1), rows.amax(1)
    middle, half = low / 2 + high / 2, high / 2 - low / 2
    moved = (rows - middle[:, None]).view(-1)[:n]
    extremes = torch.maximum(low.abs(), high.abs())
    return moved, half, middle, extremes.amax() if n else extremes.sum()


def quantize_signs(values: Tensor, bucket: int) -> tuple[Tensor, Tensor]:
    """The signs of all elements, and the mean magnitude of every bucket.

    Args:
        values: floating point `[n]`, contiguous.
        bucket: number of elements.

    Returns:
        uint8 `[⌈n/8⌉]`, a bit per element, 1 above 0 and for a NaN; float32 `[⌈n/bucket⌉]`.

    Example:
        >>> bits, means = quantize_signs(torch.tensor([1.0, -2.0, 0.0, 5.0]), 4)
        >>> bits.tolist(), means.tolist()
        ([9], [2.0])
    """
    if in_numba(values) and values.dtype != torch.float64:
        from gradstats.kernels import coding_cpu

        return coding_cpu.quantize_signs(values, bucket)
    levels = torch.linspace(-1, 1, 2, device=values.device)
    ones = torch.ones(min(values.numel(), 1), device=values.device)
    packed = coding.quantize(values, ones, max(values.numel(), 1), levels, rounding="nearest")
    return packed, coding.bucket_norms(values, bucket, "mean")
