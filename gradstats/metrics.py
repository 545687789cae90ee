"""Distances of a reconstruction from its gradient; sums in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SAFE = (2.0**-450, 2.0**450)  # magnitudes whose sums of squares stay in float64


def relative_error(grad: Tensor, reconstruction: Tensor) -> float:
    """Compute ‖g - ĝ‖ / ‖g‖: 0 is exact, 1 is the error of sending nothing.

    For g = 0 it is 0 if ĝ = 0 and inf otherwise.

    Raises:
        TypeError: one of the two is no tensor.
        ValueError: they differ in their number of elements.

    Example:
        >>> relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]))
        0.8
    """
    g, s = _in_range(grad, reconstruction)
    difference = g - s
    return _ratio(_dot(difference, difference), _dot(g, g))


def cosine(grad: Tensor, reconstruction: Tensor) -> float:
    """Compute ⟨g, ĝ⟩ / ‖g‖‖ĝ‖, in [-1, 1]; NaN if either is zero.

    Raises:
        TypeError: one of the two is no tensor.
        ValueError: they differ in their number of elements.

    Example:
        >>> cosine(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])) > 0.999999
        True
    """
    g, s = _in_range(grad, reconstruction)
    length = math.sqrt(_dot(g, g)) * math.sqrt(_dot(s, s))
    return _dot(g, s) / length if length else math.nan


def closeness(
    grad: Tensor,
    sent: Tensor,
    residual: Tensor | None,
    compensated: Tensor | None = None,
) -> dict[str, float]:
    r"""Compute the errors that a replay reports.

    .. math:: \text{error} = \|g - \hat g\| / \|g\|, \quad
              \text{error\_compensated} = \|v - \hat g\| / \|v\|, \quad
              \text{residual\_ratio} = \|e\| / \|g\|

    Args:
        grad: g, the gradient, `[n]`.
        sent: ĝ, the update: what was sent of v, `[n]`.
        residual: e, what the memory keeps for the next step, `[n]`; None without a memory of what
            was not sent.
        compensated: v, the compensated gradient, `[n]`: gradient + residual of the step before.
            Default: ĝ + e, which is v if the memory keeps all that was not sent; g without a
            residual.

    Returns:
        error, error_compensated (equal to error where v is g), residual_ratio (NaN without a
        residual, and for g = 0), and cosine, that of g and ĝ (NaN if either is zero).
    """
    given = [each for each in (residual, compensated) if each is not None]
    g, s, *others = _in_range(grad, sent, *given)
    gg, gs, ss = _dot(g, g), _dot(g, s), _dot(s, s)
    lost = gg - 2 * gs + ss
    error = _ratio(max(lost, 0.0), gg) if math.isfinite(lost) else math.inf  # a sum overflowed
    angle = gs / (math.sqrt(gg) * math.sqrt(ss)) if gg and ss else math.nan
    held = {"error_compensated": error, "residual_ratio": math.nan}
    if residual is not None and gg:
        held["residual_ratio"] = math.sqrt(_dot(others[0], others[0]) / gg)
    if given:
        missed = others[0] if compensated is None else others[-1] - s
        whole = s + missed if compensated is None else others[-1]
        held["error_compensated"] = _ratio(_dot(missed, missed), _dot(whole, whole))
    return {"error": error, "cosine": angle, **held}


def _in_range(*vectors: Tensor) -> list[Tensor]:
    """Flatten and convert to float64; divide by a power of two if squares leave its range."""
    _check(vectors)
    flat = [vector.double().reshape(-1) for vector in vectors]
    largest = max((float(x.abs().max()) for x in flat if len(x)), default=0.0)
    if not SAFE[0] <= largest <= SAFE[1] and 0 < largest < math.inf:
        unit = math.ldexp(1.0, min(max(math.frexp(largest)[1], -1000), 1000))
        flat = [x / unit for x in flat]
    return flat


def _check(vectors: Sequence[Tensor]) -> None:
    """Check that all are tensors of one length."""
    for each in vectors:
        if not isinstance(each, Tensor):
            remedy = "; pass torch.as_tensor of it" if hasattr(each, "__len__") else ""
            rule = "gradient and reconstruction must be tensors"
            raise TypeError(f"{rule}, got {type(each).__name__}{remedy}")
    lengths = [each.numel() for each in vectors]
    if len(set(lengths)) > 1:
        rule = "gradient and reconstruction must have the same number of elements"
        raise ValueError(f"{rule}, got {' and '.join(map(str, lengths))}")


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b))


def _ratio(square: float, length_square: float) -> float:
    if length_square:
        return math.sqrt(square / length_square)
    return 0.0 if square == 0 else math.inf
