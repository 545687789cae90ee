"""Common parts of all figures: axes, seaborn, legends."""

from __future__ import annotations

from typing import Any

from gradstats import extras
from gradstats.plot.text import named

Axes = Any
Table = Any
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
