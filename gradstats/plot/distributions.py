"""Figures of one gradient: its magnitudes against distributions, and how compressible it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gradstats.families import Family
from gradstats.fitting.compressibility import COMPRESSIBLE, Decay, best_k_error, decay
from gradstats.fitting.goodness import quantile_pairs
from gradstats.plot.base import (
    CURVE_POINTS,
    Axes,
    Table,
    estimated_over_target,
    fitted_rows,
    legend,
    new_axes,
)
from gradstats.plot.text import lettered, shown
from gradstats.runs.given import of_one
from gradstats.summary import Summary

HISTOGRAM_BINS = 60
FARTHEST = 1e-4  # share of the magnitudes that the histogram leaves off
Distributions = Mapping[str, Family] | Iterable[Family] | Family


@lettered
def density(summary: Summary, distributions: Distributions, ax: Axes = None) -> Axes:
    """Draw the histogram of a gradient's magnitudes against densities of fitted distributions.

    Args:
        summary: of one gradient, as `gradstats.summarize` returns it.
        distributions: one fitted distribution, several, or several by the name to show.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the summary has no non-zero element, or a distribution is not a fitted one.

    Example:
        >>> import gradstats
        >>> step, grad = next(gradstats.load_example().gradients())
        >>> summary = gradstats.summarize(grad)
        >>> laplace = gradstats.families.Laplace.fit(summary)
        >>> gennorm = gradstats.families.GenNorm.fit(summary)
        >>> ax = gradstats.plot.density(summary, [laplace, gennorm])
    """
    _check_summary(summary)
    named = _named(distributions)
    ax = new_axes(ax)
    edges = np.linspace(0, summary.quantile(FARTHEST), HISTOGRAM_BINS + 1)
    kept = np.array([summary.kept(edge) for edge in edges])
    heights = -np.diff(kept) / np.diff(edges) / summary.nonzero
    ax.stairs(heights, edges, fill=True, color="0.85", label="captured")
    x = np.linspace(edges[1] / 4, edges[-1], CURVE_POINTS)
    for name, fitted in named.items():
        ax.plot(x, 2 * fitted.pdf(x), label=shown(name), lw=1.5)
    positive = heights[heights > 0]
    ax.set(yscale="log", ylim=(positive.min() / 3, positive.max() * 3))
    ax.set(xlabel="|g|", ylabel="density", title="Magnitudes and fitted densities")
    legend(ax)
    return ax


@lettered
def survival(summary: Summary, distributions: Distributions, ax: Axes = None) -> Axes:
    """Draw P(|G| > m) of a gradient's magnitudes and of fitted distributions, log-log.

    Thresholds lie in the tail: a distribution that leaves the grey line there keeps too many or
    too few elements.

    Args:
        summary: of one gradient, as `gradstats.summarize` returns it.
        distributions: one fitted distribution, several, or several by the name to show.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the summary has no non-zero element, or a distribution is not a fitted one.

    Example:
        >>> import gradstats
        >>> step, grad = next(gradstats.load_example().gradients())
        >>> summary = gradstats.summarize(grad)
        >>> families = (gradstats.families.Laplace, gradstats.families.Normal)
        >>> ax = gradstats.plot.survival(summary, [each.fit(summary) for each in families])
    """
    _check_summary(summary)
    named = _named(distributions)
    ax = new_axes(ax)
    shares = np.geomspace(1, min(max(2 / summary.nonzero, 1e-6), 1), CURVE_POINTS)
    magnitudes = np.array([summary.quantile(share) for share in shares])
    ax.plot(magnitudes, shares, color="k", lw=3, alpha=0.4, label="captured")
    positive = magnitudes[magnitudes > 0]
    x = np.geomspace(positive.min(), positive.max(), CURVE_POINTS)
    for name, fitted in named.items():
        ax.plot(x, fitted.kept(x), label=shown(name), lw=1.5)
    middle = summary.quantile(min(0.9, 1.0))
    ax.set(xscale="log", yscale="log", xlim=(middle / 10, None), ylim=(shares[-1] / 2, 1.5))
    ax.set(xlabel="m", ylabel="P(|g| > m)", title="Share of elements above a magnitude")
    legend(ax)
    return ax


@lettered
def qq(summary: Summary, distributions: Distributions, ax: Axes = None) -> Axes:
    """Draw a gradient's magnitudes against those of each distribution at equal shares.

    The right distribution is the dotted line.

    Args:
        summary: of one gradient, as `gradstats.summarize` returns it.
        distributions: one fitted distribution, several, or several by the name to show.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the summary has no non-zero element, or a distribution is not a fitted one.

    Example:
        >>> import gradstats
        >>> step, grad = next(gradstats.load_example().gradients())
        >>> summary = gradstats.summarize(grad)
        >>> ax = gradstats.plot.qq(summary, gradstats.families.GenNorm.fit(summary))
    """
    _check_summary(summary)
    named = _named(distributions)
    ax = new_axes(ax)
    pairs = {name: quantile_pairs(fitted, summary) for name, fitted in named.items()}
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
    """Draw k̂/k of each family's threshold by target ratio; 1 is right.

    Dots are medians over steps, bars go from the 10th to the 90th percentile.

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
        >>> fits = gradstats.fit(run, families=["laplace", "normal"], kind="track", stride=60)
        >>> ax = gradstats.plot.tail_error(fits)
    """
    rows = of_one(fitted_rows(fits), "group", "fits")
    ax = new_axes(ax)
    estimated_over_target(rows, "family", ax)
    ax.set(title="Elements kept divided by elements asked for")
    return ax


@lettered
def sorted_magnitudes(summary: Summary, ax: Axes = None) -> Axes:
    """Draw |g| of rank j divided by the largest, log-log; a power law is a straight line.

    The dashed line is the fitted power law, over the ranks to which it was fitted.

    Args:
        summary: of one gradient, as `gradstats.summarize` returns it.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the summary has no non-zero element.

    Example:
        >>> import gradstats
        >>> step, grad = next(gradstats.load_example().gradients())
        >>> ax = gradstats.plot.sorted_magnitudes(gradstats.summarize(grad))
    """
    _check_summary(summary)
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
    """Draw σ_k / ‖g‖, the error of keeping the k largest, over k/n: no sparsifier does better.

    Args:
        summary: of one gradient, as `gradstats.summarize` returns it.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the summary has no non-zero element.

    Example:
        >>> import gradstats
        >>> step, grad = next(gradstats.load_example().gradients())
        >>> ax = gradstats.plot.best_k(gradstats.summarize(grad))
    """
    _check_summary(summary)
    ax = new_axes(ax)
    ratios = np.geomspace(1 / summary.n, 1, CURVE_POINTS // 3)
    ax.plot(ratios, [best_k_error(summary, ratio) for ratio in ratios], color="k", lw=2)
    ax.set(xscale="log", ylim=(0, 1.02), xlabel="k / n", ylabel="$\\sigma_k$ / ‖g‖")
    ax.set(title="Best k-term error")
    return ax


def _check_summary(summary: Any) -> None:
    if not isinstance(summary, Summary):
        rule = "summary must be a Summary, as gradstats.summarize returns it"
        columns = f" with the columns {', '.join(map(str, summary))}" if _tabular(summary) else ""
        raise ValueError(f"{rule}, got {type(summary).__name__}{columns}")
    if not summary.nonzero:
        raise ValueError(f"summary must have a non-zero element, got none of {summary.n:,}")


def _tabular(given: Any) -> bool:
    return hasattr(given, "columns") and hasattr(given, "iloc")


def _named(distributions: Any) -> dict[str, Family]:
    """Fitted distributions by the name to show; those of one family are numbered."""
    if isinstance(distributions, Mapping):
        named = {str(name): each for name, each in distributions.items()}
        _check_fitted(list(named.values()))
        return named
    single = isinstance(distributions, Family | str | type)
    several = single or not isinstance(distributions, Iterable)
    given = [distributions] if several else list(distributions)
    _check_fitted(given)
    names = [each.name for each in given]
    return {
        name if names.count(name) == 1 else f"{name} {index + 1}": each
        for index, (name, each) in enumerate(zip(names, given, strict=True))
    }


def _check_fitted(given: list[Any]) -> None:
    for each in given:
        if not isinstance(each, Family):
            rule = "distributions must be fitted ones, such as families.Laplace.fit(summary)"
            raise ValueError(f"{rule}, got {each!r:.60}")
