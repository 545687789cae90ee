"""Figures over training: distributions, thresholds, ranks, and elements over the steps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from gradstats import extras
from gradstats.fitting.threshold_reuse import Floats
from gradstats.plot.base import Axes, Table, legend, new_axes, seaborn
from gradstats.plot.text import lettered, named, shown

MOST_STEPS = 60  # columns of a heat map
CDF_POINTS = 200


@lettered
def evolution(fits: Table, ax: Axes = None) -> Axes:
    """Shape parameters over training with LOWESS trends; dashed: mean magnitude over its first.

    Args:
        fits: rows of `gradstats.fit` of one group.
        ax: where to draw.
    """
    ax = new_axes(ax)
    once = fits.drop_duplicates(["step", "family"])
    for name, rows in once[once["shape"].notna()].groupby("family", sort=False):
        _with_trend(ax, rows, "shape", shown(name))
    scales = once[(once["family"] == "laplace") & once["scale"].notna()]
    if len(scales):
        relative = scales["scale"] / scales["scale"].iloc[0]
        ax.plot(scales["step"], relative, "k--", label="mean |g| / first")
    ax.set(xlabel="step", ylabel="shape parameter", title="Fitted parameters over training")
    legend(ax)
    return ax


@lettered
def thresholds(reuse: Table, ax: Axes = None) -> Axes:
    """The exact thresholds of one group over training by ratio, with LOWESS trends.

    Args:
        reuse: rows of the table "reuse" of `gradstats.fitting.run.fit_tables`, of one group.
        ax: where to draw.
    """
    ax = new_axes(ax)
    for ratio, rows in reuse.sort_values("step").groupby("target_ratio"):
        _with_trend(ax, rows, "threshold", f"{ratio:g}")
    ax.set(yscale="log", xlabel="step", ylabel="threshold", title="Exact thresholds over training")
    legend(ax, title="ratio")
    return ax


@lettered
def reusable(reuse: Table, ax: Axes = None) -> Axes:
    """For how many steps the threshold of a step keeps k̂/k within 1 ± 20 %, by ratio.

    Args:
        reuse: rows of the table "reuse" of one group; thresholds that still hold at the end are
            hollow: lower bounds.
        ax: where to draw.
    """
    ax = new_axes(ax)
    for i, (ratio, rows) in enumerate(reuse.groupby("target_ratio")):
        held = rows["ended"] < 0
        look = {"color": f"C{i}", "ls": "", "ms": 5, "alpha": 0.7}
        ended, bounds = rows[~held], rows[held]
        ax.plot(ended["step"], ended["reusable_steps"], "o", label=f"{ratio:g}", **look)
        ax.plot(bounds["step"], bounds["reusable_steps"], "^", mfc="none", **look)
    ax.set_yscale("symlog", linthresh=1)
    ax.set(xlabel="step of the threshold", ylabel="steps", ylim=(-0.2, None))
    ax.set(title="How long a threshold lasts")
    legend(ax, title="ratio")
    return ax


@lettered
def winners(best: Table, ax: Axes = None) -> Axes:
    """Group × step: the winning family as a colour.

    Args:
        best: step, group and family, a line each, as `gradstats.fitting.ranking.winners` has them.
        ax: where to draw.
    """
    ax = new_axes(ax)
    best = named(best, "group", "family")
    families = list(best["family"].value_counts().index)
    grid = _grid(best.assign(code=best["family"].map(families.index)), "code")
    palette = seaborn().color_palette("tab10", len(families))
    seaborn().heatmap(grid, cmap=palette, vmin=-0.5, vmax=len(families) - 0.5, ax=ax)
    ax.collections[0].colorbar.set_ticks(range(len(families)), labels=families)
    ax.set(xlabel="step", ylabel="group", title="Law that ranks first")
    return ax


@lettered
def heat(rows: Table, value: str, ax: Axes = None) -> Axes:
    """Group × step: one column of a table as a colour, such as a shape over layers and training.

    k̂/k is shown as a number of doublings about 1.

    Args:
        rows: step, group and the column; one row per step and group.
        value: name of the column.
        ax: where to draw.
    """
    ax = new_axes(ax)
    if value == "khat_over_k":
        name, values = "log2(k̂/k)", np.log2(rows[value].clip(lower=2**-6))
        look = {"cmap": "vlag", "vmin": -values.abs().max(), "vmax": values.abs().max()}
    else:
        name, values, look = shown(value), rows[value], {"cmap": "viridis", "robust": True}
    grid = _grid(named(rows.assign(shown=values), "group"), "shown")
    seaborn().heatmap(grid, ax=ax, cbar_kws={"label": name}, **look)
    ax.set(xlabel="step", ylabel="group", title=f"{name} by group and step")
    return ax


@lettered
def ranks(table: Table, ax: Axes = None) -> Axes:
    """Stable rank over full rank, over training: the median of each module type's matrices.

    Args:
        table: of `gradstats.fitting.over_steps.rank_table`.
        ax: where to draw.
    """
    ax = new_axes(ax)
    rows = table[table["status"] == "ok"]
    rows = named(rows.assign(share=rows["stable_rank"] / rows["full"]), "module_type")
    seaborn().lineplot(
        rows,
        x="step",
        y="share",
        hue="module_type",
        estimator="median",
        errorbar=("pi", 80),
        marker="o",
        ax=ax,
    )
    ax.set(ylim=(0, None), xlabel="step", ylabel="stable rank / full rank")
    ax.set(title="Effective rank over training")
    legend(ax)
    return ax


@lettered
def over_steps(series: Table, value: str = "snr", ax: Axes = None) -> Axes:
    """Share of elements below a value, by module type: signal-to-noise, tail index and others.

    Args:
        series: one row per element, of `gradstats.fitting.over_steps.over_steps`.
        value: name of the column.
        ax: where to draw.
    """
    ax = new_axes(ax)
    shares = np.linspace(0, 1, CDF_POINTS)
    for name, column in series[series[value].notna()].groupby("module_type", sort=False)[value]:
        ax.plot(np.quantile(column, shares), shares, label=shown(f"{name} ({len(column):,})"))
    ax.set(xscale="log" if value == "snr" else "linear", xlabel=value, ylabel="share of elements")
    ax.set(title="Elements over the steps")
    legend(ax)
    return ax


def _with_trend(ax: Axes, rows: Table, value: str, name: str) -> None:
    """A column over steps as dots, and its LOWESS trend as a line."""
    (dots,) = ax.plot(rows["step"], rows[value], "o", ms=3, alpha=0.45)
    smooth = trend(rows["step"], rows[value])
    line = smooth if np.isfinite(smooth).any() else rows[value]
    ax.plot(rows["step"], line, color=dots.get_color(), lw=1.5, label=name)


def _grid(rows: Table, value: str) -> Table:
    """Groups in their order × at most sixty steps, evenly spaced."""
    grid = rows.pivot(index="group", columns="step", values=value)
    places = np.linspace(0, len(grid.columns) - 1, min(MOST_STEPS, len(grid.columns))).astype(int)
    return grid.reindex(list(dict.fromkeys(rows["group"]))).iloc[:, places]


SMOOTHED_SHARE = 2 / 3  # of the steps, in each local line of LOWESS
FEWEST_TO_SMOOTH = 5


def trend(steps: ArrayLike, values: ArrayLike) -> Floats:
    """The LOWESS trend of values over steps, `[n]`: locally linear, robust to outliers.

    NaN where a value is not finite, and everywhere with fewer than five finite values.

    References:
        Cleveland, "Robust locally weighted regression and smoothing scatterplots", 1979.

    Example:
        >>> trend(range(6), [1, 3, 5, 7, 9, 11]).round(6).tolist()
        [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]
    """
    x, y = (np.asarray(each, np.float64) for each in (steps, values))
    smooth = np.full(len(y), math.nan)
    known = np.isfinite(y)
    if known.sum() < FEWEST_TO_SMOOTH:
        return smooth
    lowess = extras.load("statsmodels.nonparametric.smoothers_lowess").lowess
    share = max(SMOOTHED_SHARE, FEWEST_TO_SMOOTH / known.sum())
    smooth[known] = lowess(y[known], x[known], frac=share, return_sorted=False)
    return smooth
