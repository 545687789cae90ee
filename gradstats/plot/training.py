"""Figures over training: distributions, thresholds, ranks, and elements over the steps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from gradstats import extras
from gradstats.fitting.threshold_reuse import Floats
from gradstats.plot.base import Axes, Table, check_value, fitted_rows, legend, new_axes, seaborn
from gradstats.plot.text import lettered, named, shown
from gradstats.runs.given import given_table, measured_rows, of_one, one_row_per

REUSE = ("group", "step", "target_ratio", "threshold", "ended", "reusable_steps")
RANKS = ("step", "parameter", "module_type", "stable_rank", "full", "status")
SERIES = ("parameter", "module_type", "element", "snr", "tail_index", "autocorrelation")
CDF_POINTS = 200


@lettered
def evolution(fits: Table, ax: Axes = None) -> Axes:
    """Draw shape parameters over training with LOWESS trends.

    The dashed line is the mean magnitude divided by the first one, if Laplace was fitted.

    Args:
        fits: the table of `gradstats.fit`, of one group.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of a fit, is of several groups, or nothing was fitted.

    Example:
        >>> import gradstats
        >>> run = gradstats.load_example()
        >>> fits = gradstats.fit(run, families=["laplace", "gennorm"], kind="track", stride=20)
        >>> ax = gradstats.plot.evolution(fits)
    """
    once = of_one(fitted_rows(fits), "group", "fits").drop_duplicates(["step", "family"])
    ax = new_axes(ax)
    once = once.sort_values("step", kind="stable")
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
    """Draw the exact thresholds over training by ratio, with LOWESS trends.

    Args:
        reuse: the table of `gradstats.threshold_reuse`, of one group.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of `gradstats.threshold_reuse`, or is of several groups.

    Example:
        >>> import gradstats
        >>> reuse = gradstats.threshold_reuse(gradstats.load_example(), kind="track")
        >>> ax = gradstats.plot.thresholds(reuse)
    """
    rows_of = _reused(reuse).sort_values("step").groupby("target_ratio")
    ax = new_axes(ax)
    for ratio, rows in rows_of:
        _with_trend(ax, rows, "threshold", f"{ratio:g}")
    ax.set(yscale="log", xlabel="step", ylabel="threshold", title="Exact thresholds over training")
    legend(ax, title="ratio")
    return ax


@lettered
def reusable(reuse: Table, ax: Axes = None) -> Axes:
    """Draw for how many steps the threshold of a step keeps k̂/k within 1 ± 20 %, by ratio.

    Thresholds that still hold at the end are hollow: their numbers are lower bounds.

    Args:
        reuse: the table of `gradstats.threshold_reuse`, of one group.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of `gradstats.threshold_reuse`, or is of several groups.

    Example:
        >>> import gradstats
        >>> reuse = gradstats.threshold_reuse(gradstats.load_example(), kind="track")
        >>> ax = gradstats.plot.reusable(reuse)
    """
    rows_of = _reused(reuse).groupby("target_ratio")
    ax = new_axes(ax)
    for i, (ratio, rows) in enumerate(rows_of):
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


def _reused(reuse: Table) -> Table:
    table = given_table(reuse, REUSE, name="reuse", verb="threshold_reuse")
    table = of_one(table, "group", "reuse")
    return one_row_per(table, ("step", "target_ratio"), "reuse")


@lettered
def ranks(table: Table, ax: Axes = None) -> Axes:
    """Draw stable rank divided by full rank over training: medians of each module type.

    The band goes from the 10th to the 90th percentile of the matrices.

    Args:
        table: the table of `gradstats.ranks`.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of `gradstats.ranks`, or no matrix could be read.

    Example:
        >>> import gradstats
        >>> ax = gradstats.plot.ranks(gradstats.ranks(gradstats.load_example()))
    """
    table = given_table(table, RANKS, name="table", verb="ranks")
    rows = measured_rows(one_row_per(table, ("step", "parameter"), "table"), "table")
    rows = named(rows.assign(share=rows["stable_rank"] / rows["full"]), "module_type")
    ax = new_axes(ax)
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
    """Draw the share of elements below a value, by module type.

    Args:
        series: the table of `gradstats.series`: statistics of each tracked element over the steps.
        value: name of a column of numbers: "snr" (signal-to-noise ratio), "tail_index",
            "autocorrelation", "mean", "variance" or "zeros".
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of `gradstats.series`, or has no number in that column.

    Example:
        >>> import gradstats
        >>> ax = gradstats.plot.over_steps(gradstats.series(gradstats.load_example()), "snr")
    """
    table = given_table(series, SERIES, name="series", verb="series")
    table = one_row_per(table, ("parameter", "element"), "series")
    check_value(table, value, "series")
    ax = new_axes(ax)
    shares = np.linspace(0, 1, CDF_POINTS)
    for name, column in table[table[value].notna()].groupby("module_type", sort=False)[value]:
        ax.plot(np.quantile(column, shares), shares, label=shown(f"{name} ({len(column):,})"))
    ax.set(xscale="log" if value == "snr" else "linear", xlabel=shown(value))
    ax.set(ylabel="share of elements", title="Elements over the steps")
    legend(ax)
    return ax


def _with_trend(ax: Axes, rows: Table, value: str, name: str) -> None:
    """A column over steps as dots, and its LOWESS trend as a line."""
    (dots,) = ax.plot(rows["step"], rows[value], "o", ms=3, alpha=0.45)
    smooth = trend(rows["step"], rows[value])
    line = smooth if np.isfinite(smooth).any() else rows[value]
    ax.plot(rows["step"], line, color=dots.get_color(), lw=1.5, label=name)


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
