"""Families × Summary → rows: what was fitted, how well, and which threshold follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gradstats.families import FAMILIES, Family, FitError
from gradstats.goodness import ks_distance, log_likelihood, tail_error
from gradstats.summary import Summary, kept_count
from gradstats.thresholds import VARIANTS, sidco_threshold

Row = dict[str, Any]
RATIOS = (0.1, 0.01, 0.001)
STAGES = (1, 2, 3)


def fit_rows(
    summary: Summary,
    *,
    families: Sequence[type[Family]] = FAMILIES,
    ratios: Sequence[float] = RATIOS,
    method: str = "mle",
) -> Iterator[Row]:
    """One row a family and ratio; a fit that fails is a row with its reason, never dropped.

    Args:
        summary: of the gradient or of a part of it.
        families: laws to fit.
        ratios: target ratios, each in (0, 1].
        method: "mle" or "moments".

    Yields:
        Rows with family, method, shape, scale, ks, log_likelihood (nats an element), target_ratio,
        threshold, khat_over_k, n, zeros, nonfinite and status ("ok" or the reason of the failure).
    """
    counted = {"n": summary.n, "zeros": summary.zeros, "nonfinite": summary.nonfinite}
    for family in families:
        base = {"family": family.name, "method": method}
        try:
            law = family.fit(summary, method=method)
        except FitError as error:
            for ratio in ratios:
                yield {
                    **base,
                    **NOT_FITTED,
                    "target_ratio": ratio,
                    **counted,
                    "status": str(error),
                }
            continue
        fitted = {"shape": math.nan, **law.parameters}
        scores = {"ks": ks_distance(law, summary), "log_likelihood": log_likelihood(law, summary)}
        for ratio in ratios:
            threshold, khat_over_k = tail_error(law, summary, ratio)
            tail = {"target_ratio": ratio, "threshold": threshold, "khat_over_k": khat_over_k}
            yield {**base, **fitted, **scores, **tail, **counted, "status": "ok"}


NOT_FITTED = dict.fromkeys(
    ("shape", "scale", "ks", "log_likelihood", "threshold", "khat_over_k"), math.nan
)


def threshold_rows(
    summary: Summary, *, ratios: Sequence[float] = RATIOS, stages: Iterable[int] = STAGES
) -> Iterator[Row]:
    """One row a SIDCo variant, number of stages and ratio: the threshold and what it keeps.

    Args:
        summary: of the gradient or of a part of it.
        ratios: target ratios, each in (0, 1].
        stages: fixed numbers of stages.

    Yields:
        Rows with variant, stages (asked for), stages_used, target_ratio, threshold, khat_over_k
        and guards.
    """
    for variant in VARIANTS:
        for count in stages:
            for ratio in ratios:
                found = sidco_threshold(summary, ratio, variant=variant, stages=count)
                k = kept_count(summary.n, ratio)
                yield {
                    "variant": variant,
                    "stages": count,
                    "stages_used": found.stages,
                    "target_ratio": ratio,
                    "threshold": found.value,
                    "khat_over_k": summary.kept(found.value) / k if k else math.nan,
                    "guards": "; ".join(found.guards),
                }
