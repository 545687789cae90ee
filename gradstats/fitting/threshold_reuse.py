"""Reuse of thresholds: for how many later steps an exact threshold stays good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.fitting.columns import ReuseRow
from gradstats.ratios import kept_count
from gradstats.runs.groups import Group
from gradstats.summary.summary import Summary

Floats = NDArray[np.float64]
TOLERANCE = 0.2  # of k̂/k about 1, as in SIDCo's stage adaptation


@dataclass(frozen=True)
class Reuse:
    """A threshold that was exact at one step, and for how long it may be used at later steps.

    It is applied to each later step until the number k̂ of kept elements is more than 20 % off k.

    Attributes:
        group: name of the group of parameters.
        step: step whose k-th largest magnitude is the threshold. At this step it keeps k elements;
            if several elements have that magnitude, the largest possible number below k.
        target_ratio: k divided by the number of elements of the group.
        threshold: magnitude above which elements are kept, in the unit of the gradient.
        last_good: last step before `ended`; k̂/k was in [0.8, 1.2] up to it.
        ended: first step at which k̂/k was outside [0.8, 1.2]; -1 while there is none.
        khat_over_k: k̂/k at the last step to which the threshold was applied.
    """

    group: str
    step: int
    target_ratio: float
    threshold: float
    last_good: int
    ended: int = -1
    khat_over_k: float = 1.0

    @property
    def row(self) -> dict[str, Any]:
        """The fields, with reusable_steps: for how many steps the threshold was good."""
        return vars(ReuseRow(**asdict(self), reusable_steps=self.last_good - self.step))


def reuse(open_: Iterable[Reuse], step: int, name: str, summary: Summary) -> list[Reuse]:
    """Try the thresholds of one group on its gradient of a later step.

    Returns:
        The same thresholds; those whose k̂/k left 1 ± 20 % have ended.
    """
    tried = []
    for each in open_:
        if each.group != name or each.ended >= 0 or not summary.nonzero:
            tried.append(each)
            continue
        k = kept_count(summary.n, each.target_ratio)
        khat_over_k = summary.kept(each.threshold) / k
        good = abs(khat_over_k - 1) <= TOLERANCE
        last, ended = (step, -1) if good else (each.last_good, step)
        where = (each.group, each.step, each.target_ratio, each.threshold)
        tried.append(Reuse(*where, last, ended, khat_over_k))
    return tried


def new_thresholds(
    step: int, name: str, summary: Summary, ratios: Sequence[float]
) -> Iterable[Reuse]:
    """Yield the exact thresholds of one gradient; none for a ratio whose k it does not have."""
    for ratio in ratios:
        k = kept_count(summary.n, ratio)
        if 1 < k <= summary.nonzero:
            threshold = summary.quantile(k / summary.nonzero)
            yield Reuse(name, step, ratio, threshold, step, -1, summary.kept(threshold) / k)


def tried_on(
    still: Sequence[Reuse], row_groups: Iterable[Group], ratios: Sequence[float]
) -> list[Reuse]:
    """Try thresholds on the groups of the next captured row, and add the row's own.

    Args:
        still: thresholds of earlier rows that have not ended.
        row_groups: the groups of one captured row.
        ratios: target ratios of the thresholds that begin here; none: no threshold begins.

    Returns:
        The thresholds of `still`, those whose k̂/k left 1 ± 20 % with the step in `ended`, and the
        new ones.
    """
    tried, new = list(still), list[Reuse]()
    for group in row_groups:
        tried = reuse(tried, group.step, group.name, group.summary)
        if group.status == "ok":
            new += new_thresholds(group.step, group.name, group.summary, ratios)
    return tried + new
