"""The demo's closing lines: what the tables say, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradstats.fitting.ranking import best_distribution
from gradstats.network import Network
from gradstats.replaying.ranking import ranking
from gradstats.reporting.advice import advice, law_sentence

Table = Any


def closing_lines(methods: Table, fits: Table, thresholds: Table) -> Iterator[str]:
    """About ten lines: the distribution, SIDCo's variants, the ranking and the advice."""
    yield law_sentence(
        best_distribution(fits), thresholds, float(thresholds["target_ratio"].min())
    )
    yield from sidco_lines(methods)
    ranked = ranking(methods)
    for line in ranked[ranked["rank"].notna()].head(4).to_dict("records"):
        name = f"ef({line['compressor']})" if line["feedback"] == "ef" else line["compressor"]
        yield (
            f"{line['rank']:.0f}. {name}: {line['sent_bits']:.3g} bits sent per element, "
            f"{1e3 * line['exchange_seconds']:.3g} ms per exchange"
        )
    unsettled = int((methods["feedback"].eq("ef") & methods["settled"].ne(True)).sum())
    if unsettled:
        with_feedback = int(methods["feedback"].eq("ef").sum())
        yield f"{unsettled} of {with_feedback} methods with error feedback have not settled"
    yield advice(ranked, Network())


def sidco_lines(methods: Table) -> Iterator[str]:
    """Median |ln((k̂+½)/(k+½))| of the SIDCo variants over ratios, without and with feedback."""
    sidco = methods[
        methods["method"].str.startswith("sidco") & (methods["granularity"] == "model")
    ]
    for feedback, words in (("none", "without feedback"), ("ef", "with feedback")):
        rows = sidco[(sidco["feedback"] == feedback) & (sidco["status"] == "ok")]
        if not len(rows):
            continue
        misses = rows.groupby("method")["miss"].median().sort_values()
        values = ", ".join(f"{method} {miss:.3f}" for method, miss in misses.items())
        note = "" if feedback == "none" or (rows["settled"] == True).all() else " (not settled)"  # noqa: E712
        yield f"SIDCo {words}, median |ln((k̂+½)/(k+½))|: {values}{note}"
