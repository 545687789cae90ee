"""SIDCo thresholds: the magnitude above which to send, from a Summary and a target ratio.

Only this module handles zeros: families are fitted to finite non-zero magnitudes, and the target
is corrected for the zeros, which no positive threshold keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from gradstats.families import DGamma, DGenPareto, Family, FitError, Laplace
from gradstats.ratios import check_ratio
from gradstats.summary.moments import Moments
from gradstats.summary.summarizing import summarize
from gradstats.summary.summary import Summary

FIRST_RATIO = 0.25
VARIANTS: dict[str, tuple[type[Family], type[Family]]] = {
    "e": (Laplace, Laplace),
    "gp": (DGamma, DGenPareto),
    "p": (DGenPareto, DGenPareto),
}


@dataclass(frozen=True)
class Threshold:
    """A threshold, and how it was estimated. `float(threshold)` is its value.

    Attributes:
        value: send the elements with |g| > value, in the unit of the gradient.
        target_ratio: the requested fraction of all elements.
        variant: "e", "gp" or "p".
        stages: the number of stages that were fitted; fewer than requested if a guard fired.
        guards: the special cases that were handled, in words; empty for an ordinary gradient.
    """

    value: float
    target_ratio: float
    variant: str
    stages: int
    guards: tuple[str, ...] = ()

    def __float__(self) -> float:
        return self.value


def sidco_threshold(
    data: Tensor | NDArray[np.floating] | Summary,
    target_ratio: float,
    *,
    variant: str = "e",
    stages: int = 1,
    first_ratio: float = FIRST_RATIO,
) -> Threshold:
    r"""Estimate the magnitude above which a fraction `target_ratio` of a gradient lies.

    Elements with a magnitude above the threshold are sent. It comes from fitted distributions, so
    that no sorting is needed.

    The target ratio k/d is a fraction of all d elements. Zeros are never kept, so that the
    estimate uses :math:`\delta = k / d_\text{non-zero}`, the fraction of the non-zero elements.
    It is the product of the ratios :math:`\delta_m` of M stages. Stage 1 fits the variant's
    distribution F₁ to the magnitudes. Each later stage m fits its distribution to the amounts by
    which magnitudes exceed the threshold of the stage before:

    .. math:: \eta_m = \eta_{m-1} + F_m^{-1}(1 - \delta_m), \quad
              \delta_1 = \text{first\_ratio}, \quad \delta_m = (\delta/\delta_1)^{1/(M-1)}.

    SIDCo-E fits the exponential in all stages, SIDCo-P the generalized Pareto, SIDCo-GP the gamma
    and then the generalized Pareto. One stage uses δ itself.

    Args:
        data: a gradient of any shape, or its Summary.
        target_ratio: fraction k/d of all elements to keep, zeros counted in d, in (0, 1].
        variant: "e" (default), "gp" or "p", see above.
        stages: number of stages M, a whole number from 1.
        first_ratio: ratio δ₁ of the first of several stages, in (0, 1).

    Returns:
        A `Threshold`: its value in the unit of the gradient, the number of stages that were
        fitted, and the special cases that were handled. Its value is 0, which keeps all non-zero
        elements, if k is not below their number.

    Raises:
        ValueError: an argument is out of its range.

    References:
        Abdelmoniem et al., MLSys 2021; departures are listed in
        docs/differences-from-the-papers.md.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from gradstats import sidco_threshold
        >>> from gradstats.families import Laplace
        >>> grad = torch.from_numpy(Laplace(1.0).ppf((np.arange(10_000) + 0.5) / 10_000))
        >>> threshold = sidco_threshold(grad, 0.01)
        >>> int((grad.abs() > float(threshold)).sum())
        100
    """
    check_ratio("target_ratio", target_ratio)
    check_settings(variant, stages, first_ratio)
    summary = summarize(data)
    guards = list(_data_guards(summary))
    if summary.nonzero == 0:
        return Threshold(0.0, target_ratio, variant, 0, tuple(guards))
    ratio = target_ratio * summary.n / summary.nonzero
    if ratio >= 1:
        guards.append(f"keep all: {summary.nonzero} non-zero elements are within the target")
        return Threshold(0.0, target_ratio, variant, 0, tuple(guards))
    if stages > 1 and ratio >= first_ratio:
        guards.append(
            f"one stage: the target {ratio:.4g} is not below the first ratio {first_ratio:g}"
        )
    unit = summary.power  # so that no square leaves float64
    summary = summary.scaled(1 / unit)
    value, used = 0.0, 0
    for law, stage_ratio in zip(
        _laws(variant), stage_ratios(ratio, stages, first_ratio), strict=False
    ):
        excess = summary.excess(value, logs=law is DGamma)  # no other of the laws reads them
        if used and excess.n < 2:
            guards.append(f"stopped: {excess.n:.3g} exceedances after stage {used}")
            break
        fitted, guard = _fitted(law, excess)
        guards += [f"stage {used + 1}: {guard}"] if guard else []
        value += float(fitted.threshold(stage_ratio))
        used += 1
    return Threshold(value * unit, target_ratio, variant, used, tuple(guards))


def exponential_threshold(total: float, nonzero: int, numel: int, target_ratio: float) -> float:
    """Return the value of `sidco_threshold` with its defaults, from the sum of the magnitudes.

    One stage of the exponential needs no other number.

    Args:
        total: sum of the magnitudes of a gradient whose elements are all finite.
        nonzero: number of its elements that are not 0.
        numel: number of its elements.
        target_ratio: as in `sidco_threshold`.
    """
    if not nonzero:
        return 0.0
    ratio = target_ratio * numel / nonzero
    return 0.0 if ratio >= 1 else float(special.xlogy(-total / nonzero, ratio))  # as Laplace does


def check_settings(variant: str, stages: int, first_ratio: float) -> None:
    """Raise ValueError unless the settings of a SIDCo threshold are in their ranges."""
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if not isinstance(stages, int) or stages < 1:
        raise ValueError(f"stages must be a whole number from 1, got {stages!r}")
    if not 0 < first_ratio < 1:
        raise ValueError(f"first_ratio must lie in (0, 1), got {first_ratio!r}")


def stage_ratios(ratio: float, stages: int, first_ratio: float = FIRST_RATIO) -> tuple[float, ...]:
    """Return the ratios of the stages, δ_1 … δ_M, whose product is `ratio`.

    There is one stage if one is requested, or if `ratio` is not below `first_ratio`.

    Example:
        >>> stage_ratios(0.01, 3)
        (0.25, 0.2, 0.2)
    """
    if stages == 1 or ratio >= first_ratio:
        return (ratio,)
    later = (ratio / first_ratio) ** (1 / (stages - 1))
    return (first_ratio, *[later] * (stages - 1))


def _laws(variant: str) -> Iterator[type[Family]]:
    first, later = VARIANTS[variant]
    yield first
    while True:
        yield later


def _data_guards(summary: Summary) -> Iterator[str]:
    if summary.n == 0:
        yield "empty: no element"
    elif summary.nonfinite:
        yield f"non-finite: {summary.nonfinite} NaN or inf elements, not fitted but sent"
    if summary.n and summary.nonzero == 0:
        yield f"nothing to fit: no finite non-zero element among {summary.n}"


def _fitted(law: type[Family], moments: Moments) -> tuple[Family, str]:
    """The fitted distribution, or the exponential where the distribution is undetermined.

    The guard that fired.
    """
    try:
        fitted = law.from_moments(moments)
    except FitError as error:
        return Laplace.from_moments(moments), f"exponential instead: {error}"
    if isinstance(fitted, DGenPareto) and fitted.shape <= -0.5:
        return (
            fitted,
            f"shape {fitted.shape:.3g} is outside (-1/2, 1/2), where the estimate is valid",
        )
    return fitted, ""


Rule = Literal["step", "reverse", "escape"]


@dataclass(frozen=True)
class Stages:
    """The adaptive number of stages, as a value: `update` returns the next one.

    Over windows of Q = 5 steps the mean of k̂/k is compared with 1 ± 0.2. `step` is the published
    rule: M - 1 when too many were selected, M + 1 when too few. It cannot leave M = 1 when a heavy
    tail over-selects there; `reverse` turns its direction when the error grew, and `escape` also
    when it stayed: it turns unless the last window's move helped. M stays in [1, ⌈log₂(1/ratio)⌉].

    Attributes:
        count: M, the stages to use now.
        rule: "step", "reverse" or "escape".
        direction: +1 as published, -1 when turned.
        window: k̂/k of the steps since the last decision.
        previous: mean k̂/k of the window before, None in the first.

    References:
        Abdelmoniem et al., MLSys 2021, Algorithm 1; the three rules are those of the authors'
        code.

    Example:
        >>> stages = Stages()
        >>> for _ in range(5):
        ...     stages = stages.update(0.1, target_ratio=0.01)
        >>> stages.count
        2
    """

    count: int = 1
    rule: Rule = "step"
    direction: int = 1
    window: tuple[float, ...] = ()
    previous: float | None = None

    def update(self, khat_over_k: float, *, target_ratio: float) -> Stages:
        """Return the state after a step that selected `khat_over_k` of its target."""
        window = (*self.window, khat_over_k)
        if len(window) < WINDOW:
            return replace(self, window=window)
        mean = sum(window) / WINDOW
        direction = -self.direction if self._turns(mean) else self.direction
        move = -direction if mean > 1 + TOLERANCE else direction if mean < 1 - TOLERANCE else 0
        count = min(max(self.count + move, 1), most_stages(target_ratio))
        return Stages(count, self.rule, direction, (), mean)

    def _turns(self, mean: float) -> bool:
        if self.previous is None or self.rule == "step":
            return False
        if self.rule == "reverse":
            return abs(mean - 1) > abs(self.previous - 1)
        rose = mean > self.previous and self.previous < 1 - TOLERANCE
        fell = mean < self.previous and self.previous > 1 + TOLERANCE
        return not (rose or fell)


WINDOW = 5
TOLERANCE = 0.2


def most_stages(target_ratio: float) -> int:
    """Return the largest number of stages, ⌈log₂(1/ratio)⌉ and at least 1.

    Example:
        >>> [most_stages(ratio) for ratio in (1, 0.1, 0.01, 0.001)]
        [1, 4, 7, 10]
    """
    return max(1, math.ceil(math.log2(1 / target_ratio)))
