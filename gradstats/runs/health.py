"""Parameters with unhealthy gradients: dead, not finite, exploding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from gradstats.runs.groups import Group, summarize_row
from gradstats.runs.run import Run

LOOKED_AT = 16  # rows, evenly spaced, the last among them
EXPLODING = 10.0  # times the median of the root mean square


@dataclass(frozen=True)
class Finding:
    """A fault of the gradients of one parameter.

    Attributes:
        parameter: its name.
        state: "dead" (no gradient, or nothing but zeros, in every row), "not finite" (a NaN or inf
            in some row) or "exploding" (the last root mean square is over 10 times the median).
        detail: the numbers.
    """

    parameter: str
    state: str
    detail: str


def findings(run: Run) -> list[Finding]:
    """Look at up to 16 rows of a run and list the parameters with unhealthy gradients, in order.

    Rows are whole gradients if there are any, else Summaries, else tracked elements, of which a
    parameter may have too few for a finding. Rows whose loss scale is not known are left out.
    """
    kind = run.fitted_kind
    unknown = np.isnan(run.reader(kind).divisors)
    rows = [row for row in run.rows(kind) if not unknown[row]]
    if not rows:
        return []
    chosen = sorted({rows[-1 - i * len(rows) // LOOKED_AT] for i in range(LOOKED_AT)})
    by_parameter: dict[str, list[Group]] = {}
    for row in chosen:
        for group in summarize_row(run, kind, "parameter", row):
            if not group.left_out:
                by_parameter.setdefault(group.name, []).append(group)
    return [one for name, groups in by_parameter.items() for one in _of_one(name, groups)]


def _of_one(name: str, groups: list[Group]) -> Iterator[Finding]:
    present = [group for group in groups if group.status == "ok"]
    if not any(group.summary.nonzero + group.summary.nonfinite for group in present):
        with_gradient = f"a gradient in {len(present)} of {len(groups)} rows"
        yield Finding(name, "dead", f"{with_gradient}, none of them but zeros")
        return
    broken = [group for group in present if group.summary.nonfinite]
    if broken:
        first = broken[0]
        count = f"{first.summary.nonfinite} of {first.summary.n} elements at step {first.step}"
        yield Finding(name, "not finite", f"NaN or inf in {len(broken)} rows, first {count}")
    sizes = [g.summary.norm / math.sqrt(g.summary.nonzero) for g in present if g.summary.nonzero]
    if len(sizes) > 2 and sizes[-1] > EXPLODING * median(sizes):
        detail = f"root mean square {sizes[-1]:.2g} at the end, {median(sizes):.2g} in the median"
        yield Finding(name, "exploding", detail)
