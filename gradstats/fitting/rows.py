"""Families × Summary → rows: what was fitted, how well, and which threshold follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from gradstats.families import FAMILIES, Family, FitError
from gradstats.families.reference import Reference
from gradstats.fitting.bootstrap import bootstrap_p_value
from gradstats.fitting.columns import Counted, Fit, Structure, Threshold
from gradstats.fitting.compressibility import best_k_error, decay_row
from gradstats.fitting.goodness import (
    ad_distance,
    ks_distance,
    log_likelihood,
    rescaled,
    tail_error,
    wasserstein,
)
from gradstats.fitting.tail_index import stable_index
from gradstats.fitting.uncertainty import standard_errors
from gradstats.ratios import RATIOS, check_ratio, kept_count
from gradstats.summary.summarizing import summarize
from gradstats.summary.summary import Summary
from gradstats.thresholds import VARIANTS, sidco_threshold

Row = dict[str, Any]
STAGES = (1, 2, 3)
NOTHING = summarize(torch.zeros(0))


def fit_rows(
    summary: Summary,
    *,
    following: Summary | None = None,
    families: Sequence[type[Family]] = FAMILIES,
    ratios: Sequence[float] = RATIOS,
    method: str = "mle",
    bootstrap: int = 0,
) -> Iterator[Row]:
    """One row per family and ratio; a fit that fails is a row with its reason, never dropped.

    Args:
        summary: of the gradient or of a part of it.
        following: of the same part at the next captured step, on which the fit is scored.
        families: distributions to fit.
        ratios: target ratios, each in (0, 1].
        method: "mle" or "moments".
        bootstrap: replicates of the parametric bootstrap; 0 for none.

    Yields:
        Rows with the columns of `gradstats.fitting.columns.Fit`.
    """
    counted: Row = vars(_counted(summary))
    for ratio in ratios:
        check_ratio("ratio", ratio)
    for family in families:
        base = {
            **counted,
            "family": family.name,
            "method": method,
            "reference": family.reference,
        }
        family.check_method(method)
        scored: Row = {}
        tails = [(math.nan, math.nan) for _ in ratios]
        status = "ok"
        try:
            law = family.fit(summary, method=method)
            reached = [tail_error(law, summary, ratio) for ratio in ratios]
            scored, tails = _scored(law, summary, following, method, bootstrap), reached
        except FitError as error:
            status = str(error)
        except Exception as error:  # a family may be anyone's
            status = f"cannot score {family.name}: {type(error).__name__}: {error}"
        for ratio, (threshold, khat_over_k) in zip(ratios, tails, strict=True):
            tail: Row = {"target_ratio": ratio, "threshold": threshold, "khat_over_k": khat_over_k}
            yield vars(Fit(**base, **scored, **tail, status=status))


def _counted(summary: Summary) -> Counted:
    """What every row says of its sample, whose axis it names."""
    return Counted(
        n=summary.n,
        zeros=summary.zeros,
        nonfinite=summary.nonfinite,
        mean=summary.mean,
        sign_asymmetry=sign_asymmetry(summary),
    )


def failed_rows(
    reason: str,
    *,
    families: Sequence[type[Family]] = FAMILIES,
    ratios: Sequence[float] = RATIOS,
    method: str = "mle",
) -> Iterator[Row]:
    """The rows of `fit_rows` where there is no gradient to fit, with the reason."""
    counted = vars(_counted(NOTHING))
    for family in families:
        for ratio in ratios:
            fit = Fit(
                **counted,
                family=family.name,
                method=method,
                reference=family.reference,
                target_ratio=ratio,
                status=reason,
            )
            yield vars(fit)


def _scored(
    law: Family, summary: Summary, following: Summary | None, method: str, bootstrap: int
) -> Row:
    """Parameters, their errors, and every score of one fit."""
    mean, n = log_likelihood(law, summary), summary.nonzero
    untold: list[str] = []
    free = law.free
    scores: Row = {
        **law.parameters,
        "ks": ks_distance(law, summary),
        "anderson_darling": ad_distance(law, summary),
        "log_likelihood": mean,
        "aic": 2 * free - 2 * n * mean,
        "bic": free * math.log(n) - 2 * n * mean,
    }
    if not law.reference:  # thousands of scipy's quantiles take minutes
        scores |= {f"wasserstein_{order}": wasserstein(law, summary, order) for order in (1, 2)}
    if method == "mle" and not law.reference:
        errors = standard_errors(law, summary)
        scores |= {f"{name}_se": error for name, error in errors.items()}
    if following is not None and following.nonzero:
        scores["next_log_likelihood"] = log_likelihood(law, following)
        scores["next_log_likelihood_rescaled"] = log_likelihood(
            rescaled(law, following), following
        )
    if bootstrap and not law.reference:
        rng = np.random.default_rng([summary.n, n, bootstrap])
        try:
            scores["bootstrap_p"] = bootstrap_p_value(
                type(law), summary, rng, replicates=bootstrap, method=method
            )
        except FitError as error:
            scores["bootstrap_p"], untold = math.nan, [f"bootstrap_p: of the subsample: {error}"]
    return {**scores, "notes": "; ".join([*notes(law, scores, summary), *untold])}


def notes(law: Family, scores: Row, summary: Summary) -> Iterator[str]:
    """What a reader must know of a fit: parameters at a bound, and why a distance is infinite."""
    if isinstance(law, Reference):
        yield law.fitted_to(summary)
    for name in law.at_bound:
        yield f"{name} is at the bound of its search, or beyond it"
    end = float(law.threshold(0.0))
    if scores["anderson_darling"] == math.inf:
        fact = f"the distribution ends at {end:.4g}" if end < math.inf else "its tail underflows"
        yield f"anderson_darling: {fact}, the data at {summary.max_abs:.4g}"
    for order, moment in ((1, "mean"), (2, "variance")):
        if scores.get(f"wasserstein_{order}") == math.inf:
            index = f"no {moment} (tail index {law.tail_index:.3g})"
            fact = index if law.tail_index <= order else f"a {moment} above the range of float64"
            yield f"wasserstein_{order}: the distribution has {fact}"
    if scores.get("next_log_likelihood") == -math.inf:
        bounded = f"the next step has magnitudes beyond the end, {end:.4g}"
        fact = bounded if end < math.inf else "it is below the range of float64"
        yield f"next_log_likelihood: {fact}"


def sign_asymmetry(summary: Summary) -> float:
    """(Positive - negative elements) / both, in [-1, 1]; 0 for a symmetric law, NaN without any.

    Example:
        >>> import torch
        >>> from gradstats.summary import summarize
        >>> sign_asymmetry(summarize(torch.tensor([1.0, 2.0, -3.0, 4.0])))
        0.5
    """
    if not summary.nonzero:
        return math.nan
    difference = int(summary.positive.sum()) - int(summary.negative.sum())
    return difference / summary.nonzero


def structure_row(summary: Summary, ratios: Sequence[float] = RATIOS) -> Row:
    """One row of what needs no distribution: moments, tail index, decay and best-k errors.

    Args:
        summary: of the gradient or of a part of it.
        ratios: at which the error of keeping the k largest is told, a column each.

    Returns:
        The columns of `gradstats.fitting.columns.Structure`, and best_k_error_RATIO.
    """
    row = Structure(
        **vars(_counted(summary)),
        mean_abs=summary.moments(logs=False).mean,
        max_abs=summary.max_abs,
        stable_index=stable_index(summary),
        **decay_row(summary),
    )
    errors = {f"best_k_error_{ratio:g}": best_k_error(summary, ratio) for ratio in ratios}
    return {**vars(row), **errors}


def threshold_rows(
    summary: Summary, *, ratios: Sequence[float] = RATIOS, stages: Iterable[int] = STAGES
) -> Iterator[Row]:
    """One row a SIDCo variant, number of stages and ratio: the threshold and what it keeps.

    Args:
        summary: of the gradient or of a part of it.
        ratios: target ratios, each in (0, 1].
        stages: fixed numbers of stages.

    Yields:
        Rows with the columns of `gradstats.fitting.columns.Threshold`.
    """
    for variant in VARIANTS:
        for count in stages:
            for ratio in ratios:
                threshold = sidco_threshold(summary, ratio, variant=variant, stages=count)
                k = kept_count(summary.n, ratio)
                row = Threshold(
                    variant=variant,
                    stages=count,
                    stages_used=threshold.stages,
                    target_ratio=ratio,
                    threshold=threshold.value,
                    khat_over_k=summary.kept(threshold.value) / k if k else math.nan,
                    guards="; ".join(threshold.guards),
                )
                yield vars(row)
