"""Figures and tables of compressors, from the tables of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from gradstats import plot
from gradstats.replaying.ranking import headline_ratio
from gradstats.reporting.drawing import Drawing

Table = Any
Tables = Mapping[str, Table]
METHOD_COLUMNS = ["compressor", "feedback", "granularity", "dense", "rows", "steps"]
METHOD_COLUMNS += ["khat_over_k", "miss"]
METHOD_COLUMNS += ["error", "error_compensated", "cosine", "bits", "sent_bits"]
METHOD_COLUMNS += ["residual_ratio", "settled", "status"]


def compressor_figures(tables: Tables) -> Iterator[Drawing]:
    """Estimation, error, overhead and residuals."""
    replayed, methods, timings = (tables[name] for name in ("replay", "methods", "timings"))
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
            "Error of one step against bits per element of a message, without feedback; of "
            "two-shot exchanges both messages count. All magnitude "
            "sparsifiers lie on one curve: they differ in how many elements they send.",
            partial(plot.error_against_bytes, lines),
        )
    equal = tables.get("equal_bits")
    if equal is not None and equal["topk_error"].gt(0).any():
        yield (
            "equal-bits",
            "Error of one step of the last captured gradient, without feedback, over that of "
            "exact Top-k with as many bytes. A method below the line is better than Top-k.",
            partial(plot.equal_bits, equal),
        )
    alone = timings[timings["feedback"] == "none"]
    if alone["encode_over_topk"].notna().any():
        yield (
            "overhead",
            "Time to encode the whole gradient over that of torch.topk at the same ratio.",
            partial(plot.overhead, alone),
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


def equal_bits_tables(tables: Tables) -> Iterator[tuple[str, Table]]:
    """Every method against Top-k of as many bytes."""
    equal = tables.get("equal_bits")
    if equal is not None:
        ratios = equal["target_ratio"]
        at_headline = ratios.isna() | (ratios == headline_ratio(equal))
        yield (
            "Methods at equal bits, the best first: over_topk is the error over that of exact "
            "Top-k with as many bytes (empty where Top-k sends everything), averaged_error that "
            "of the mean over 8 workers with the same gradient and their own random numbers. "
            "Two-shot exchanges and rings are not in it: they encode a second time, the sum.",
            equal[at_headline].drop(columns=["method", "target_ratio"]),
        )


def methods_table(tables: Tables) -> tuple[str, Table]:
    """Every method and setting that was replayed."""
    return (
        "Medians over rows; see methods.parquet. One threshold per parameter on tracked elements: "
        "most parts then keep one element, and headers weigh.",
        tables["methods"][METHOD_COLUMNS],
    )
