"""The report's figures, drawn once and written as PNG and PDF."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gradstats import extras, plot
from gradstats.families import FAMILIES, FitError
from gradstats.reporting.tables import headline_ratio
from gradstats.summary import Summary

Table = Any
SIZE = (6.4, 4.0)  # inches


def figures(
    summary: Summary | None, fits: Table, replayed: Table, methods: Table, timings: Table
) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """(name, caption, draw) of every figure that the data allow.

    Args:
        summary: of the last full row of the whole model.
        fits: rows of `gradstats.fit` by model.
        replayed: replay rows.
        methods: lines of `methods_table`.
        timings: lines of `timing_table`.
    """
    if summary is not None and summary.nonzero:
        laws = dict(_laws(summary))
        yield (
            "density",
            "Magnitudes of the last captured gradient against the fitted laws.",
            partial(plot.density, summary, laws),
        )
        yield (
            "survival",
            "The same in the tail, where thresholds live: a law that leaves the grey line here "
            "misses its target there.",
            partial(plot.survival, summary, laws),
        )
    whole = replayed[(replayed["granularity"] == "model") & (replayed["status"] == "ok")]
    for feedback, words in (("none", "without"), ("ef", "with")):
        rows = whole[whole["feedback"] == feedback]
        if rows["target_ratio"].notna().any():
            yield (
                f"estimation-{feedback}",
                f"k̂/k {words} error feedback: median over steps, bars from the 10th to the 90th "
                "percentile. 1 is right.",
                partial(plot.estimation, rows),
            )
    lines = methods[(methods["granularity"] == "model") & (methods["feedback"] == "none")]
    if (lines["error_compensated"] > 0).any():
        yield (
            "error-bytes",
            "Error of one step against bits an element, without feedback. All magnitude "
            "sparsifiers lie on one curve: they differ in how many elements they send.",
            partial(plot.error_against_bytes, lines),
        )
    if timings["encode_over_topk"].notna().any():
        yield (
            "overhead",
            "Time to encode the whole gradient over that of torch.topk at the same ratio.",
            partial(plot.overhead, timings[timings["feedback"] == "none"]),
        )
    if len(fits) and (fits["status"] == "ok").any():
        yield (
            "evolution",
            "Shape parameters over training, and the mean magnitude over its first.",
            partial(plot.evolution, fits[fits["status"] == "ok"]),
        )
    memory = whole[
        (whole["feedback"] == "ef") & (whole["target_ratio"] == headline_ratio(methods))
    ]
    if (memory["residual_ratio"] > 0).any():
        yield (
            "residuals",
            f"The residual of error feedback at ratio {headline_ratio(methods):g}. A method is "
            "judged only after its line has become flat.",
            partial(plot.residuals, memory),
        )


def draw(name: str, drawing: Callable[..., Any], folder: Path) -> bytes:
    """Draw one figure, write it as PNG and PDF, and return the PNG."""
    figure = extras.load("matplotlib.figure").Figure(figsize=SIZE, layout="constrained")
    drawing(ax=figure.subplots())
    for suffix in ("pdf", "png"):
        figure.savefig(folder / f"{name}.{suffix}", dpi=110)
    return (folder / f"{name}.png").read_bytes()


def _laws(summary: Summary) -> Iterator[tuple[str, Any]]:
    for family in FAMILIES:
        try:
            yield family.name, family.fit(summary)
        except FitError:
            continue
