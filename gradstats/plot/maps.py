"""Figures of groups of parameters over training, as maps of colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradstats.fitting import ranking
from gradstats.fitting.ranking import RANKED
from gradstats.plot.base import Axes, Table, check_value, fitted_rows, new_axes, seaborn
from gradstats.plot.text import lettered, named, shown
from gradstats.runs.given import given_table

MOST_STEPS = 60  # columns of a map
OF_A_RATIO = ("khat_over_k", "threshold")


@lettered
def winners(fits: Table, ax: Axes = None) -> Axes:
    r"""Draw the family that ranks first as a colour, by group and step.

    The ranking is that of `gradstats.best_distribution` at each step.

    Args:
        fits: the table of `gradstats.fit`; several groups come from `by`.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of a fit, or nothing was fitted.

    Example:
        >>> import gradstats
        >>> run = gradstats.load_example()
        >>> settings = {"by": r"blocks\.\d", "kind": "track", "stride": 60}
        >>> fits = gradstats.fit(run, families=["laplace", "normal"], ratios=0.1, **settings)
        >>> ax = gradstats.plot.winners(fits)
    """
    rows = fitted_rows(given_table(fits, RANKED, name="fits", verb="fit"))
    best = named(ranking.winners(rows), "group", "family")
    ax = new_axes(ax)
    families = list(best["family"].value_counts().index)
    grid = _grid(best.assign(code=best["family"].map(families.index)), rows, "code")
    palette = seaborn().color_palette("tab10", len(families))
    seaborn().heatmap(grid, cmap=palette, vmin=-0.5, vmax=len(families) - 0.5, ax=ax)
    ax.collections[0].colorbar.set_ticks(range(len(families)), labels=families)
    ax.set(xlabel="step", ylabel="group", title="Distribution that ranks first")
    return ax


@lettered
def heat(
    fits: Table,
    value: str = "khat_over_k",
    ax: Axes = None,
    *,
    family: str | None = None,
    target_ratio: float | None = None,
) -> Axes:
    r"""Draw one column of a fit as a colour, by group and step.

    k̂/k is drawn as a number of doublings: red keeps too many elements.

    Args:
        fits: the table of `gradstats.fit`; several groups come from `by`.
        value: name of a column of numbers, such as "khat_over_k" or "shape".
        ax: the axes to draw into; default: those of a new figure.
        family: the family to draw; default: the one that ranks first among those with that value,
            see `gradstats.best_distribution`.
        target_ratio: the target ratio to draw; default: the smallest.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of a fit, or has no such column, family or ratio.

    Example:
        >>> import gradstats
        >>> run = gradstats.load_example()
        >>> settings = {"by": r"blocks\.\d", "kind": "track", "stride": 30}
        >>> fits = gradstats.fit(run, families="laplace", ratios=0.1, **settings)
        >>> ax = gradstats.plot.heat(fits)
    """
    every = fitted_rows(fits)
    check_value(every, value, "fits")
    rows = _chosen(every[every[value].notna()], "target_ratio", target_ratio, min)
    rows = _chosen(rows, "family", family, lambda families: _first(rows, families))
    ax = new_axes(ax)
    name, values, look = _colours(value, rows[value])
    grid = _grid(rows.assign(group=rows["group"].map(shown), shown=values), rows, "shown")
    seaborn().heatmap(grid, ax=ax, cbar_kws={"label": name}, **look)
    ratio = f" at ratio {rows['target_ratio'].iloc[0]:g}" if value in OF_A_RATIO else ""
    ax.set(xlabel="step", ylabel="group")
    ax.set(title=f"{name} of {shown(rows['family'].iloc[0])}{ratio}, by group and step")
    return ax


def _chosen(rows: Table, column: str, given: object, default: Callable[[list[Any]], Any]) -> Table:
    """The rows with one value in a column."""
    values = list(rows[column].unique())
    value = default(values) if given is None else given
    if value not in values:
        shown_values = ", ".join(map(str, values))
        raise ValueError(f"{column} must be one of {shown_values}, got {value!r}")
    return rows[rows[column] == value]


def _first(rows: Table, families: list[str]) -> str:
    """The family that ranks first."""
    if len(families) == 1:
        return families[0]
    return str(ranking.best_distribution(rows)["family"].iloc[0])


def _colours(value: str, values: Table) -> tuple[str, Table, dict[str, Any]]:
    """Name, numbers and look of a heat map."""
    if value != "khat_over_k":
        return shown(value), values, {"cmap": "viridis", "robust": True}
    doublings = np.log2(values.clip(lower=2**-6))
    most = max(doublings.abs().max(), 0.1)  # all that is 1 is white
    return "log2(k̂/k)", doublings, {"cmap": "vlag", "vmin": -most, "vmax": most}


def _grid(rows: Table, every: Table, value: str) -> Table:
    """Groups, in the order of a table of all rows, × at most sixty steps, evenly spaced."""
    grid = rows.pivot(index="group", columns="step", values=value)
    places = np.linspace(0, len(grid.columns) - 1, min(MOST_STEPS, len(grid.columns))).astype(int)
    order = dict.fromkeys(map(shown, every["group"].unique()))
    return grid.reindex(list(order)).iloc[:, places]
