from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.checks import check_choice
from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.short_forms import Stateless
from gradstats.families import FitError, GenNorm
from gradstats.kernels import ans, coding
from gradstats.kernels.ranges import in_range
from gradstats.payloads import entropy
from gradstats.payloads.codebooks import CO3_FP4, CO3_FP8
from gradstats.payloads.quantized import Coded
from gradstats.payloads.symbol_codes import ModelANS
from gradstats.payloads.symbol_model import on_grid, optimal_scale
from gradstats.rng import Rng
from gradstats.summary import Summary, summarize

FORMATS = {"fp4": CO3_FP4, "fp8": CO3_FP8}


@dataclass(frozen=True)
class CO3(Stateless):
    r"""Convert to 4- or 8-bit floats, compress them losslessly under the fitted distribution.

    .. math:: \hat x = Q(s x)/s, \quad s = \frac{1}{\alpha}
              \arg\min_{s'} E\Big(\frac{Q(s'X)}{s'} - X\Big)^2,\ X \sim \text{GenNorm}(\beta, 1)

    with (β, α) fitted to this gradient, Q rounding to the nearest level of the format. Levels
    travel by asymmetric numeral systems under their probabilities in the fitted distribution, so
    that two numbers are sent in place of a code table. Its third part, correction, is a leaky
    memory: `ef(co3(fp4), gamma=0.7)`.

    Rounding never moves an element further than it is from 0: ‖x - C(x)‖² <= ‖x‖².

    Args:
        format: "fp4" of 11 levels up to 3, or "fp8" of 247 levels up to 57344.

    References:
        Chen et al., "CO3: Communication-efficient federated learning", 2022. The scale is found
        numerically: the published polynomial is wrong for shapes below 0.4.
    """

    format: str = "fp4"
    name = "co3"
    contract = Contract(
        "all_gather",
        delta=Bound("0", lambda payload: 0.0),
        bits=Bound(
            "cross entropy of the levels under the distribution", lambda payload: _bits(payload)
        ),
        wants_feedback=True,
    )

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Fit, round, code."""
        flat, unit = in_range(flat)
        alphabet = FORMATS[self.format]
        shape, spread = _fitted(summarize(flat))
        best = optimal_scale(shape, alphabet)
        scales = torch.full((min(len(flat), 1),), spread / best, device=flat.device)
        bucket, levels = max(flat.numel(), 1), alphabet.levels(flat.device)
        symbols = coding.to_symbols(flat, scales, bucket, levels, rounding="nearest")
        coder = ModelANS.of(symbols, shape, best, alphabet)
        return Coded(coder, flat.numel(), alphabet, scales, bucket, unit)


def _fitted(summary: Summary) -> tuple[float, float]:
    """β on the grid, and α; NaN where the gradient is not finite."""
    if summary.nonfinite:
        return 1.0, float("nan")
    try:
        fitted = GenNorm.fit(summary, method="moments")
        return on_grid(fitted.shape), fitted.scale
    except FitError:  # all magnitudes are equal, or there are none
        return 1.0, summary.total_abs / summary.nonzero if summary.nonzero else 1.0


def _bits(payload: Coded) -> float:
    coder = payload.coder
    assert isinstance(coder, ModelANS)
    counts = ans.count(coder.symbols(payload.numel).numpy(), len(coder.frequencies))
    return entropy.cross_entropy_bits(counts, coder.frequencies)
