"""A goodness-of-fit test that is valid although the parameters come from the same data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradstats import extras
from gradstats.families import Family, FitError
from gradstats.families.sampling import subsample
from gradstats.fitting.goodness import ks_distance
from gradstats.summary import Summary, summarize

SUBSAMPLE = 2_000
MOST_LOST = 0.05  # of a distribution, that rounding makes 0


def bootstrap_p_value(
    family: type[Family],
    summary: Summary,
    rng: np.random.Generator,
    *,
    replicates: int = 99,
    size: int = SUBSAMPLE,
    method: str = "mle",
) -> float:
    """Parametric bootstrap of the Kolmogorov-Smirnov distance, refitted each time.

    A random subsample of the magnitudes is fitted; samples as large are drawn from the fitted
    distribution, fitted in turn, and their distances compared with that of the subsample. It is
    meant for few elements: with millions every distribution is rejected, which is why the
    subsample's size is part of the result. Elements are taken as independent.

    Args:
        family: the distribution under test.
        summary: of the gradient.
        rng: the generator of the subsample and of the replicates.
        replicates: simulated samples; the smallest p-value is 1/(replicates + 1).
        size: elements of the subsample, at most all.
        method: estimator.

    Returns:
        (1 + replicates at least as far as the data) / (1 + replicates), over the replicates that
        the family can be fitted to, as it can to the data.

    Raises:
        FitError: more than 5 % of the fitted distribution is rounded to 0, as float16 rounds
            magnitudes below 3e-8, so that it is not known which zeros were elements; or the
            family cannot be fitted to the subsample, or to no replicate.

    References:
        Stute, Manteiga and Quindimil, "Bootstrap based goodness-of-fit-tests", 1993.
    """
    sample = _stored(subsample(summary, min(size, summary.nonzero), rng), summary)
    law = family.fit(sample, method=method)
    _check_rounding(law, summary)
    distance = ks_distance(law, sample)
    farther = fitted = 0
    for _ in range(replicates):
        simulated = _observed(np.abs(law.rvs(sample.nonzero, rng)), summary, rng)
        try:
            again = ks_distance(family.fit(simulated, method=method), simulated)
        except FitError:
            continue  # there is a p-value only of data that can be fitted
        fitted += 1
        farther += again >= distance
    if not fitted:
        raise FitError(f"cannot test {family.name}: none of {replicates} replicates can be fitted")
    return (1 + farther) / (1 + fitted)


def corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fit rows of one step with bootstrap_p_corrected, by Holm's method over its groups.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    multitest = extras.load("statsmodels.stats.multitest")
    p_values: dict[str, dict[str, float]] = {}
    for row in rows:
        if not math.isnan(row["bootstrap_p"]):
            p_values.setdefault(row["family"], {})[row["group"]] = row["bootstrap_p"]
    holm = {
        family: dict(
            zip(
                p_by_group,
                multitest.multipletests([*p_by_group.values()], method="holm")[1],
                strict=True,
            )
        )
        for family, p_by_group in p_values.items()
    }
    return [
        {
            **row,
            "bootstrap_p_corrected": float(
                holm.get(row["family"], {}).get(row["group"], math.nan)
            ),
        }
        for row in rows
    ]


def _observed(magnitudes: NDArray[np.float64], like: Summary, rng: np.random.Generator) -> Summary:
    """The summary of magnitudes that are rounded as the elements of another summary were.

    Its point masses show how, whatever dtype they are stored in now: as large a share of the
    magnitudes is rounded to as many bits, and to multiples of as small a number.
    """
    once = rng.random(len(magnitudes)) < like.point_share
    bits, least = _precision(like)
    place = np.maximum(np.frexp(magnitudes[once])[1] - bits, least)
    magnitudes[once] = np.ldexp(np.rint(np.ldexp(magnitudes[once], -place)), place)
    return _stored(magnitudes, like)


def _precision(summary: Summary) -> tuple[int, int]:
    """Significant bits of the point masses, and the place of the last bit of any of them."""
    mantissa, exponent = np.frexp(summary.edges[0][summary.points])
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = np.log2(whole & -whole)  # of the bits that are set
    return 53 - int(lowest.min(initial=53)), int((exponent - 53 + lowest).min(initial=1023))


def _check_rounding(law: Family, summary: Summary) -> None:
    grain = math.ldexp(1.0, _precision(summary)[1])
    lost = summary.point_share * (1 - float(law.kept(grain / 2)))
    if lost > MOST_LOST:
        fact = f"{lost:.0%} of it is rounded to 0, magnitudes being multiples of {grain:g}"
        raise FitError(f"cannot test {law.name}: {fact}")


def _stored(magnitudes: NDArray[np.float64], like: Summary) -> Summary:
    """The summary of magnitudes in the dtype and the unit of another summary."""
    stored = torch.from_numpy(magnitudes / like.unit).to(getattr(torch, like.dtype))
    return summarize(stored).scaled(like.unit)
