"""Common parts of all figures: axes, seaborn, legends."""

from __future__ import annotations

from typing import Any

from gradstats import extras
from gradstats.plot.text import named
from gradstats.runs.given import given_table, measured_rows, of_one, one_row_per

Axes = Any
Table = Any
FITS = ("step", "group", "family", "target_ratio", "khat_over_k", "shape", "scale", "status")
KEYS = ("step", "target_ratio", "element")  # numbers that name a row
CURVE_POINTS = 300
MOST_INSIDE = 9  # names in a legend inside the axes


def new_axes(ax: Axes) -> Axes:
    """Return the given axes, or the axes of a new figure."""
    if ax is not None:
        return ax
    return extras.load("matplotlib.pyplot").subplots(figsize=(6.4, 4.2), layout="constrained")[1]


def seaborn() -> Any:
    """The package of the optional dependencies."""
    return extras.load("seaborn")


def fitted_rows(fits: Table) -> Table:
    """The rows of a table of `gradstats.fit` that were fitted, one per fit and target ratio.

    Raises:
        ValueError: it is another table, is of two estimators, or nothing was fitted.
    """
    rows = of_one(given_table(fits, FITS, name="fits", verb="fit"), "method", "fits")
    return measured_rows(one_row_per(rows, FITS[:4], "fits"), "fits")


def estimated_over_target(rows: Table, name: str, ax: Axes) -> None:
    """k̂/k by `name` and ratio: median over steps, bars from the 10th to the 90th percentile."""
    rows = named(rows.assign(khat_over_k=rows["khat_over_k"].clip(lower=1e-3)), name)
    seaborn().pointplot(
        rows,
        x=name,
        y="khat_over_k",
        hue=rows["target_ratio"].map("{:g}".format),
        order=list(dict.fromkeys(rows[name])),
        estimator="median",
        errorbar=("pi", 80),
        dodge=0.4 if rows["target_ratio"].nunique() > 1 else False,
        linestyle="none",
        ax=ax,
    )
    ax.axhline(1, color="0.5", lw=1)
    ax.set(yscale="log", xlabel="", ylabel="k̂/k")
    legend(ax, title="ratio")
    ax.tick_params(axis="x", rotation=30)


def legend(ax: Axes, **settings: Any) -> None:
    """Draw a small legend if there is something to name; beside the axes if it is long."""
    names = ax.get_legend_handles_labels()[1]
    if len(names) > MOST_INSIDE:
        beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "fontsize": "x-small"}
        ax.legend(**beside, frameon=False)
    elif names:
        ax.legend(**{"fontsize": "small", **settings})


def check_value(table: Table, value: str, name: str) -> None:
    """Raise ValueError unless `value` is a column of numbers of a table, some of them known."""
    numbers = [column for column in table.select_dtypes("number") if column not in KEYS]
    if value not in numbers:
        raise ValueError(f"value must be one of {', '.join(numbers)}, got {value!r}")
    if not table[value].notna().any():
        raise ValueError(f"{name} must have a number in {value}, got NaN in {len(table):,} rows")
