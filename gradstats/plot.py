"""Figures of rows and Summaries; never drawn from millions of points.

Each function draws into `ax`, a new one if None, and returns it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradstats import extras
from gradstats.families import Family
from gradstats.summary import Summary

Axes = Any
Table = Any
HISTOGRAM_BINS = 60
CURVE_POINTS = 300
FARTHEST = 1e-4  # share of the magnitudes that the histogram leaves off


def density(summary: Summary, laws: Mapping[str, Family], ax: Axes = None) -> Axes:
    """Histogram of the magnitudes, from the Summary's counts, against fitted densities.

    Args:
        summary: of one gradient.
        laws: fitted laws by name.
        ax: where to draw; a new figure if None.
    """
    ax = _axes(ax)
    edges = np.linspace(0, summary.quantile(FARTHEST), HISTOGRAM_BINS + 1)
    kept = np.array([summary.kept(edge) for edge in edges])
    heights = -np.diff(kept) / np.diff(edges) / summary.nonzero
    ax.stairs(heights, edges, fill=True, color="0.85", label="captured")
    x = np.linspace(edges[1] / 4, edges[-1], CURVE_POINTS)
    for name, law in laws.items():
        ax.plot(x, 2 * law.pdf(x), label=name, lw=1.5)
    positive = heights[heights > 0]
    ax.set(yscale="log", ylim=(positive.min() / 3, positive.max() * 3))
    ax.set(xlabel="|g|", ylabel="density", title="Magnitudes and fitted densities")
    ax.legend()
    return ax


def survival(summary: Summary, laws: Mapping[str, Family], ax: Axes = None) -> Axes:
    """P(|G| > m) of the magnitudes and of fitted laws, log-log: thresholds live in the tail."""
    ax = _axes(ax)
    shares = np.geomspace(1, min(max(2 / summary.nonzero, 1e-6), 1), CURVE_POINTS)
    magnitudes = np.array([summary.quantile(share) for share in shares])
    ax.plot(magnitudes, shares, color="k", lw=3, alpha=0.4, label="captured")
    positive = magnitudes[magnitudes > 0]
    x = np.geomspace(positive.min(), positive.max(), CURVE_POINTS)
    for name, law in laws.items():
        ax.plot(x, law.kept(x), label=name, lw=1.5)
    middle = summary.quantile(min(0.9, 1.0))
    ax.set(xscale="log", yscale="log", xlim=(middle / 10, None), ylim=(shares[-1] / 2, 1.5))
    ax.set(xlabel="m", ylabel="P(|g| > m)", title="Share of elements above a magnitude")
    ax.legend()
    return ax


def estimation(replayed: Table, ax: Axes = None) -> Axes:
    """k̂/k by compressor and ratio: median over steps, bars from the 10th to the 90th percentile.

    Args:
        replayed: replay rows of one setting of feedback and granularity.
        ax: where to draw.
    """
    ax = _axes(ax)
    rows = replayed[replayed["target_ratio"].notna() & (replayed["khat_over_k"] >= 0)]
    rows = rows.assign(khat_over_k=rows["khat_over_k"].clip(lower=1e-3))
    order = list(dict.fromkeys(rows["method"]))
    _seaborn().pointplot(
        rows,
        x="method",
        y="khat_over_k",
        hue=rows["target_ratio"].map("{:g}".format),
        order=order,
        estimator="median",
        errorbar=("pi", 80),
        dodge=0.4 if rows["target_ratio"].nunique() > 1 else False,
        linestyle="none",
        ax=ax,
    )
    ax.axhline(1, color="0.5", lw=1)
    ax.set(yscale="log", xlabel="", ylabel="k̂/k")
    words = "with" if (rows["feedback"] == "ef").all() else "without"
    ax.set(title=f"Elements sent over elements asked for, {words} feedback")
    ax.legend(title="ratio")
    ax.tick_params(axis="x", rotation=30)
    return ax


def error_against_bytes(methods: Table, ax: Axes = None) -> Axes:
    """Relative error of what is waiting to be sent against bits an element, a line a method.

    Args:
        methods: lines of `gradstats.reporting.tables.methods_table` of one setting.
        ax: where to draw.
    """
    ax = _axes(ax)
    rows = methods[methods["error_compensated"] > 0].sort_values("bits")
    _seaborn().lineplot(
        rows,
        x="bits",
        y="error_compensated",
        hue="method",
        style="method",
        markers=True,
        dashes=False,
        ax=ax,
    )
    ax.set(xscale="log", yscale="log", xlabel="bits an element", ylabel="relative error")
    ax.set(title="Error against bytes sent")
    ax.legend(ncols=2, fontsize="small")
    return ax


def overhead(timings: Table, ax: Axes = None) -> Axes:
    """Seconds of encoding over those of Top-k at the same ratio, log; below 1 is faster."""
    ax = _axes(ax)
    rows = timings[timings["encode_over_topk"].notna()]
    _seaborn().barplot(
        rows,
        x="method",
        y="encode_over_topk",
        hue=rows["target_ratio"].map("{:g}".format),
        ax=ax,
    )
    ax.axhline(1, color="0.5", lw=1)
    ax.set(yscale="log", xlabel="", ylabel="encode time / Top-k's", title="Overhead against Top-k")
    ax.legend(title="ratio")
    ax.tick_params(axis="x", rotation=30)
    return ax


def evolution(fits: Table, ax: Axes = None) -> Axes:
    """Shape parameters over training, a line a family; dashed: mean magnitude over its first."""
    ax = _axes(ax)
    once = fits.drop_duplicates(["step", "group", "family"])
    shaped = once[once["shape"].notna()]
    if len(shaped):
        _seaborn().lineplot(shaped, x="step", y="shape", hue="family", marker="o", ax=ax)
    scales = once[(once["family"] == "laplace") & once["scale"].notna()]
    if len(scales):
        relative = scales["scale"] / scales["scale"].iloc[0]
        ax.plot(scales["step"], relative, "k--", label="mean |g| / first")
    ax.set(xlabel="step", ylabel="shape parameter", title="Fitted parameters over training")
    ax.legend()
    return ax


def residuals(replayed: Table, ax: Axes = None) -> Axes:
    """‖e‖/‖g‖ of the error-feedback memory over steps, a line a method.

    Of a long run some 300 steps are shown, evenly spaced.
    """
    ax = _axes(ax)
    rows = replayed[replayed["residual_ratio"] > 0]
    steps = rows["step"].drop_duplicates()
    every = max(1, -(-len(steps) // CURVE_POINTS))
    rows = rows[rows["step"].isin(steps[::every])]
    _seaborn().lineplot(rows, x="step", y="residual_ratio", hue="method", lw=1, ax=ax)
    ax.set(yscale="log", xlabel="step", ylabel="‖e‖/‖g‖", title="What error feedback holds back")
    ax.legend(ncols=2, fontsize="small")
    return ax


def _axes(ax: Axes) -> Axes:
    if ax is not None:
        return ax
    return extras.load("matplotlib.pyplot").subplots(figsize=(6.4, 4.2), layout="constrained")[1]


def _seaborn() -> Any:
    return extras.load("seaborn")
