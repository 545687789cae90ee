"""Figures of replays and timings."""

from __future__ import annotations

from collections.abc import Sequence

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
from gradstats.runs.given import given_table, measured_rows, one_row_per

SETTING = ("feedback", "granularity", "dense", "workers")
NAMED = ("compressor", "method", "target_ratio", "feedback", "granularity", "status")
REPLAYED = (*NAMED, "workers", "step", "khat_over_k", "residual_ratio")
METHODS = (*NAMED, "bits", "error_compensated", "exchange_seconds")
TIMINGS = ("compressor", "method", "target_ratio", "feedback", "encode_over_topk")
EQUAL_BITS = ("compressor", "method", "bits", "error", "topk_error", "over_topk")


@lettered
def estimation(replayed: Table, ax: Axes = None) -> Axes:
    """Draw k̂/k by compressor and ratio; 1 is right.

    Dots are medians over steps, bars go from the 10th to the 90th percentile. Rows of several
    settings are told apart: `topk, ef` is Top-k with error feedback.

    Args:
        replayed: the table of `gradstats.replay`.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of a replay, or has no method with a target ratio.

    Example:
        >>> import gradstats
        >>> run = gradstats.load_example()
        >>> replayed = gradstats.replay(run, ["topk", "dgc", "sidco-e"], ratios=[0.1, 0.01])
        >>> ax = gradstats.plot.estimation(replayed)
    """
    every = _replayed(replayed)
    rows = every[every["target_ratio"].notna() & (every["khat_over_k"] >= 0)]
    if not len(rows):
        methods = ", ".join(every["method"].unique())
        raise ValueError(f"replayed must have a method with a target ratio, got {methods}")
    ax = new_axes(ax)
    estimated_over_target(told_apart(rows, ("target_ratio",)), "method", ax)
    title = f"Elements sent divided by elements asked for{_feedback(rows)}"
    ax.set_title(title, fontsize="medium")  # else it is wider than the axes
    return ax


@lettered
def error_against_bytes(methods: Table, ax: Axes = None) -> Axes:
    """Draw the relative error of the compensated gradient over bits per element, by method.

    A line joins the settings of a method, such as its target ratios.

    Args:
        methods: the table of `gradstats.methods`.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of `gradstats.methods`, or no method loses anything.

    Example:
        >>> import gradstats
        >>> run = gradstats.load_example()
        >>> replayed = gradstats.replay(run, ["topk", "randomk", "qsgd(2)", "qsgd(4)", "sign"])
        >>> ax = gradstats.plot.error_against_bytes(gradstats.methods(replayed))
    """
    table = given_table(methods, METHODS, name="methods", verb="methods")
    keys = ("compressor", "target_ratio", "rows", *SETTING)
    every = measured_rows(one_row_per(table, keys, "methods"), "methods")
    rows = every[every["error_compensated"] > 0].sort_values("bits")
    if not len(rows):
        raise ValueError(f"methods must have an error above 0, got none in {len(every)} rows")
    ax = new_axes(ax)
    _over_bits(told_apart(rows, whole=False), "error_compensated", ax)
    ax.set(yscale="log", ylabel="relative error")
    ax.set(title=f"Error against bytes sent{_feedback(rows)}")
    legend(ax, ncols=2)
    return ax


@lettered
def equal_bits(rows: Table, ax: Axes = None) -> Axes:
    """Draw the error of each method divided by that of exact Top-k with as many bytes.

    A method below 1 is better than Top-k. Where Top-k sends every element nothing is drawn.

    Args:
        rows: the table of `gradstats.equal_bits`.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of `gradstats.equal_bits`, or nothing can be compared.

    Example:
        >>> import gradstats
        >>> step, grad = next(gradstats.load_example().gradients())
        >>> rows = gradstats.equal_bits(grad[::16].contiguous(), ["sidco-e", "qsgd", "sign"])
        >>> ax = gradstats.plot.equal_bits(rows)
    """
    table = given_table(rows, EQUAL_BITS, name="rows", verb="equal_bits")
    table = one_row_per(table, ("compressor",), "rows")
    lossy = table[(table["topk_error"] > 0) & (table["error"] > 0)].sort_values("bits")
    if not len(lossy):
        raise ValueError(f"rows must have errors above 0, got none in {len(table)} rows")
    ax = new_axes(ax)
    _over_bits(lossy, "over_topk", ax)
    ax.axhline(1, color="0.5", lw=1)
    ax.set(yscale="log", ylabel="error divided by Top-k's", title="Error at equal bits")
    legend(ax, ncols=2)
    return ax


@lettered
def overhead(timings: Table, ax: Axes = None) -> Axes:
    """Draw the time of encoding divided by that of Top-k at the same ratio; below 1 is faster.

    Rows with and without feedback are told apart: `topk, ef` is Top-k with error feedback.

    Args:
        timings: the table of `gradstats.timings`, with "topk" among its methods.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of `gradstats.timings`, or Top-k was not timed.

    Example:
        >>> import gradstats
        >>> run = gradstats.load_example()
        >>> timings = gradstats.timings(run, ["topk", "sidco-e", "sign"], ratios=0.01)
        >>> ax = gradstats.plot.overhead(timings)
    """
    table = given_table(timings, TIMINGS, name="timings", verb="timings")
    every = one_row_per(table, ("compressor", "feedback"), "timings")
    rows = every[every["encode_over_topk"].notna()]
    if not len(rows):
        methods = ", ".join(every["method"].unique())
        raise ValueError(f'timings must have times of "topk" and another, got those of {methods}')
    rows = named(told_apart(rows, ("target_ratio",)), "method")
    ax = new_axes(ax)
    seaborn().barplot(
        rows,
        x="method",
        y="encode_over_topk",
        hue=rows["target_ratio"].map("{:g}".format).replace("nan", "none"),
        ax=ax,
    )
    ax.axhline(1, color="0.5", lw=1)
    ax.set(yscale="log", xlabel="", ylabel="encode time divided by Top-k's")
    ax.set(title="Overhead against Top-k")
    legend(ax, title="ratio")
    ax.tick_params(axis="x", rotation=30)
    return ax


@lettered
def residuals(replayed: Table, ax: Axes = None) -> Axes:
    """Draw ‖e‖/‖g‖ of the residual that a memory holds back over steps, one line per method.

    Several ratios or memories are told apart. Of a long run some 300 steps are drawn, evenly
    spaced.

    Args:
        replayed: the table of `gradstats.replay` with `feedback="ef"`, or of memories.
        ax: the axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the table is not that of a replay, or nothing was held back.

    Example:
        >>> import gradstats
        >>> run = gradstats.load_example()
        >>> replayed = gradstats.replay(run, ["ef(topk)", "lowpass(topk)"], ratios=0.1)
        >>> ax = gradstats.plot.residuals(replayed)
    """
    every = _replayed(replayed)
    rows = every[every["residual_ratio"] > 0]
    if not len(rows):
        remedy = 'replay with feedback="ef"'
        raise ValueError(f"replayed must have a residual_ratio above 0, got none; {remedy}")
    steps = rows["step"].drop_duplicates().sort_values()
    every_nth = max(1, -(-len(steps) // CURVE_POINTS))
    rows = named(told_apart(rows[rows["step"].isin(steps[::every_nth])]), "method")
    ax = new_axes(ax)
    settings = {"hue": "method", "lw": 1, "estimator": None}
    seaborn().lineplot(rows, x="step", y="residual_ratio", ax=ax, **settings)
    ax.set(yscale="log", xlabel="step", ylabel="‖e‖/‖g‖", title="What error feedback holds back")
    legend(ax, ncols=2)
    return ax


def _replayed(replayed: Table) -> Table:
    table = given_table(replayed, REPLAYED, name="replayed", verb="replay")
    keys = ("compressor", "target_ratio", "rows", *SETTING, "step")
    return measured_rows(one_row_per(table, keys, "replayed"), "replayed")


def told_apart(rows: Table, beside: Sequence[str] = (), *, whole: bool = True) -> Table:
    """Name rows in `method` by all that they differ in, such as `topk, ef, per parameter`.

    Args:
        rows: with compressor, method and columns of `SETTING`.
        beside: columns that the figure shows in another way.
        whole: whether compressors of one method and setting are named by their whole spec.
    """
    differ = [name for name in SETTING if name in rows and _differs(rows[name])]
    names = rows["method"].astype(str)
    if whole:
        alike = rows.groupby(["method", *differ, *beside], dropna=False)["compressor"]
        names = names.where(alike.transform("nunique") == 1, rows["compressor"])
    for name in differ:
        names = names + rows[name].map(lambda value, name=name: _in_words(name, value))
    return rows.assign(method=names)


def _differs(setting: Table) -> bool:
    """Whether rows differ in a setting; the rule for dense parameters goes without saying."""
    values = set(setting) - ({""} if setting.name == "dense" else set())
    return len(values) > 1


def _in_words(name: str, value: object) -> str:
    """What a label says of a setting; nothing of the usual one."""
    if value in ("none", "model", "", 1):
        return ""
    if name == "granularity":
        return f", per {value}"
    return f", {value} workers" if name == "workers" else f", {value}"


def _feedback(rows: Table) -> str:
    """The end of a title: the memory that all rows have in common."""
    memories = list(rows["feedback"].unique())
    if len(memories) > 1:
        return ""
    words = {"none": "without feedback", "ef": "with error feedback"}
    return f", {words.get(memories[0], f'with {memories[0]}')}"


def _over_bits(rows: Table, y: str, ax: Axes) -> None:
    """A line with markers per method over bits per element."""
    look = {"style": "method", "markers": True, "dashes": False, "estimator": None}
    seaborn().lineplot(named(rows, "method"), x="bits", y=y, hue="method", ax=ax, **look)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="bits per element")
