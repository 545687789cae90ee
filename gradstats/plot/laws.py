"""Figures of one gradient: its magnitudes against distributions, and how compressible it is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gradstats.families import Family
from gradstats.fitting.compressibility import COMPRESSIBLE, Decay, best_k_error, decay
from gradstats.fitting.goodness import quantile_pairs
from gradstats.plot.base import CURVE_POINTS, Axes, Table, estimated_over_target, legend, new_axes
from gradstats.plot.text import lettered, shown
from gradstats.summary import Summary

HISTOGRAM_BINS = 60
FARTHEST = 1e-4  # share of the magnitudes that the histogram leaves off


@lettered
def density(summary: Summary, laws: Mapping[str, Family], ax: Axes = None) -> Axes:
    """Histogram of the magnitudes, from the Summary's counts, against fitted densities.

    Args:
        summary: of one gradient.
        laws: fitted distributions by name.
        ax: where to draw; a new figure if None.
    """
    ax = new_axes(ax)
    edges = np.linspace(0, summary.quantile(FARTHEST), HISTOGRAM_BINS + 1)
    kept = np.array([summary.kept(edge) for edge in edges])
    heights = -np.diff(kept) / np.diff(edges) / summary.nonzero
    ax.stairs(heights, edges, fill=True, color="0.85", label="captured")
    x = np.linspace(edges[1] / 4, edges[-1], CURVE_POINTS)
    for name, law in laws.items():
        ax.plot(x, 2 * law.pdf(x), label=shown(name), lw=1.5)
    positive = heights[heights > 0]
    ax.set(yscale="log", ylim=(positive.min() / 3, positive.max() * 3))
    ax.set(xlabel="|g|", ylabel="density", title="Magnitudes and fitted densities")
    legend(ax)
    return ax


@lettered
def survival(summary: Summary, laws: Mapping[str, Family], ax: Axes = None) -> Axes:
    """P(|G| > m) of the magnitudes and of fitted distributions, log-log.

    Thresholds live in the tail.
    """
    ax = new_axes(ax)
    shares = np.geomspace(1, min(max(2 / summary.nonzero, 1e-6), 1), CURVE_POINTS)
    magnitudes = np.array([summary.quantile(share) for share in shares])
    ax.plot(magnitudes, shares, color="k", lw=3, alpha=0.4, label="captured")
    positive = magnitudes[magnitudes > 0]
    x = np.geomspace(positive.min(), positive.max(), CURVE_POINTS)
    for name, law in laws.items():
        ax.plot(x, law.kept(x), label=shown(name), lw=1.5)
    middle = summary.quantile(min(0.9, 1.0))
    ax.set(xscale="log", yscale="log", xlim=(middle / 10, None), ylim=(shares[-1] / 2, 1.5))
    ax.set(xlabel="m", ylabel="P(|g| > m)", title="Share of elements above a magnitude")
    legend(ax)
    return ax


@lettered
def qq(summary: Summary, laws: Mapping[str, Family], ax: Axes = None) -> Axes:
    """Magnitudes of the data against those of each distribution at equal shares.

    The right distribution is the line.

    Args:
        summary: of one gradient.
        laws: fitted distributions by name.
        ax: where to draw.
    """
    ax = new_axes(ax)
    pairs = {name: quantile_pairs(law, summary) for name, law in laws.items()}
    for name, (expected, observed) in pairs.items():
        ax.plot(expected, observed, label=shown(name), lw=1.3)
    data = next(iter(pairs.values()))[1] if pairs else np.array([1.0])
    ends = [data[data > 0].min(), data.max()] if (data > 0).any() else [1.0, 1.0]
    ax.plot(ends, ends, color="0.3", lw=1, ls=":")
    ax.set(xscale="log", yscale="log", xlim=(ends[0] / 3, ends[1] * 3))
    ax.set(
        xlabel="|g| of the distribution",
        ylabel="|g| captured",
        title="Quantiles against quantiles",
    )
    legend(ax)
    return ax


@lettered
def tail_error(fits: Table, ax: Axes = None) -> Axes:
    """k̂/k of each distribution's threshold by ratio: median over steps, bars from 10 to 90 %.

    1 is right.

    Args:
        fits: rows of `gradstats.fit`.
        ax: where to draw.
    """
    ax = new_axes(ax)
    estimated_over_target(fits, "family", ax)
    ax.set(title="What the fitted thresholds keep")
    return ax


@lettered
def sorted_magnitudes(summary: Summary, ax: Axes = None) -> Axes:
    """|g| of rank j over the largest, log-log; a power law is a line, here with its window.

    Args:
        summary: of one gradient with non-zero elements.
        ax: where to draw.
    """
    ax = new_axes(ax)
    ranks = np.geomspace(1, summary.nonzero, CURVE_POINTS)
    magnitudes = np.array([summary.quantile(rank / summary.nonzero) for rank in ranks])
    ax.plot(ranks, magnitudes / summary.max_abs, color="k", lw=2, label="captured")
    if (decay_fit := _decay(summary)) is not None:
        window = np.array([decay_fit.first_rank, decay_fit.last_rank])
        middle = math.sqrt(window.prod())
        height = summary.quantile(middle / summary.nonzero) / summary.max_abs
        line = height * (window / middle) ** -decay_fit.exponent
        ax.plot(window, line, "C1--", lw=2, label=f"rank$^{{-{decay_fit.exponent:.2f}}}$")
    ax.plot(ranks, ranks**-COMPRESSIBLE, color="0.6", lw=1, ls=":", label="rank$^{-1/2}$")
    ax.set(xscale="log", yscale="log", xlabel="rank j", ylabel="|g| of rank j / largest")
    ax.set(ylim=(1e-5, 2), title="Sorted magnitudes")
    legend(ax)
    return ax


def _decay(summary: Summary) -> Decay | None:
    try:
        return decay(summary)
    except ValueError:
        return None


@lettered
def best_k(summary: Summary, ax: Axes = None) -> Axes:
    """σ_k / ‖g‖, the error of keeping the k largest, over k/n: no sparsifier does better.

    Args:
        summary: of one gradient with non-zero elements.
        ax: where to draw.
    """
    ax = new_axes(ax)
    ratios = np.geomspace(1 / summary.n, 1, CURVE_POINTS // 3)
    ax.plot(ratios, [best_k_error(summary, ratio) for ratio in ratios], color="k", lw=2)
    ax.set(xscale="log", ylim=(0, 1.02), xlabel="k / n", ylabel="$\\sigma_k$ / ‖g‖")
    ax.set(title="Best k-term error")
    return ax
