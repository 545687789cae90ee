"""Figures of replays and timings."""

from __future__ import annotations

from gradstats.plot.base import (
    CURVE_POINTS,
    Axes,
    Table,
    estimated_over_target,
    legend,
    new_axes,
    seaborn,
)
from gradstats.plot.text import lettered, named


@lettered
def estimation(replayed: Table, ax: Axes = None) -> Axes:
    """k̂/k by compressor and ratio: median over steps, bars from the 10th to the 90th percentile.

    Args:
        replayed: replay rows of one setting of feedback and granularity.
        ax: where to draw.
    """
    ax = new_axes(ax)
    rows = replayed[replayed["target_ratio"].notna() & (replayed["khat_over_k"] >= 0)]
    estimated_over_target(rows, "method", ax)
    words = "with" if (rows["feedback"] == "ef").all() else "without"
    ax.set(title=f"Elements sent over elements asked for, {words} feedback")
    return ax


@lettered
def error_against_bytes(methods: Table, ax: Axes = None) -> Axes:
    """Draw the relative error of the compensated gradient over bits per element, by method.

    Args:
        methods: lines of `gradstats.replaying.ranking.methods_table` of one setting.
        ax: where to draw.
    """
    ax = new_axes(ax)
    rows = named(methods[methods["error_compensated"] > 0].sort_values("bits"), "method")
    seaborn().lineplot(
        rows,
        x="bits",
        y="error_compensated",
        hue="method",
        style="method",
        markers=True,
        dashes=False,
        ax=ax,
    )
    ax.set(xscale="log", yscale="log", xlabel="bits per element", ylabel="relative error")
    ax.set(title="Error against bytes sent")
    legend(ax, ncols=2)
    return ax


@lettered
def equal_bits(rows: Table, ax: Axes = None) -> Axes:
    """Draw the error over that of exact Top-k with as many bytes, by bits per element.

    Args:
        rows: from `gradstats.replaying.equal_bits.equal_bits`.
        ax: where to draw.
    """
    ax = new_axes(ax)
    rows = rows[(rows["topk_error"] > 0) & (rows["error"] > 0)].sort_values("bits")
    rows = named(rows, "method")
    seaborn().lineplot(
        rows,
        x="bits",
        y="over_topk",
        hue="method",
        style="method",
        markers=True,
        dashes=False,
        ax=ax,
    )
    ax.axhline(1, color="0.5", lw=1)
    ax.set(xscale="log", yscale="log", xlabel="bits per element", ylabel="error / Top-k's")
    ax.set(title="Error at equal bits")
    legend(ax, ncols=2)
    return ax


@lettered
def overhead(timings: Table, ax: Axes = None) -> Axes:
    """Seconds of encoding over those of Top-k at the same ratio, log; below 1 is faster."""
    ax = new_axes(ax)
    rows = named(timings[timings["encode_over_topk"].notna()], "method")
    seaborn().barplot(
        rows,
        x="method",
        y="encode_over_topk",
        hue=rows["target_ratio"].map("{:g}".format).replace("nan", "none"),
        ax=ax,
    )
    ax.axhline(1, color="0.5", lw=1)
    ax.set(yscale="log", xlabel="", ylabel="encode time / Top-k's", title="Overhead against Top-k")
    legend(ax, title="ratio")
    ax.tick_params(axis="x", rotation=30)
    return ax


@lettered
def residuals(replayed: Table, ax: Axes = None) -> Axes:
    """Draw ‖e‖/‖g‖ of the error-feedback memory over steps, one line per method.

    For a long run some 300 steps are shown, evenly spaced.
    """
    ax = new_axes(ax)
    rows = named(replayed[replayed["residual_ratio"] > 0], "method")
    steps = rows["step"].drop_duplicates()
    every = max(1, -(-len(steps) // CURVE_POINTS))
    rows = rows[rows["step"].isin(steps[::every])]
    seaborn().lineplot(rows, x="step", y="residual_ratio", hue="method", lw=1, ax=ax)
    ax.set(yscale="log", xlabel="step", ylabel="‖e‖/‖g‖", title="What error feedback holds back")
    legend(ax, ncols=2)
    return ax
