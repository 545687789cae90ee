"""The report below its advice: sections of figures and tables, from the tables of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from gradstats import plot
from gradstats.families import FAMILIES, Family
from gradstats.fitting import ranking as laws
from gradstats.replaying.ranking import low_rank
from gradstats.reporting.compressor_sections import (
    compressor_figures,
    equal_bits_tables,
    methods_table,
)
from gradstats.reporting.drawing import Drawing
from gradstats.reporting.page import Section
from gradstats.summary import Summary

Table = Any
Tables = Mapping[str, Table]


def sections(
    last: Summary | None, tables: Tables, families: Sequence[type[Family]] = FAMILIES
) -> list[Section]:
    """Every section that the data allow; its figures are not drawn yet.

    Args:
        last: Summary of the last full row of the whole model.
        tables: by name, as the report keeps them.
        families: distributions to draw beside the last row.
    """
    every = (
        Section("Compressors", list(compressor_figures(tables)), list(equal_bits_tables(tables))),
        Section(
            "Distributions over the elements of one step",
            list(_law_figures(last, tables, families)),
            list(_law_tables(tables)),
        ),
        Section("Over training", list(_training_figures(tables)), list(_reuse(tables))),
        Section(
            "Compressibility",
            list(_compressibility_figures(last, tables)),
            list(_compressibility_tables(tables)),
        ),
        Section("Low rank", list(_low_rank_figures(tables)), list(_low_rank(tables))),
        Section("With error feedback", *_compensated(tables)),
        Section("Elements over the steps", *_over_steps(tables)),
        Section("All methods", [], [methods_table(tables)]),
    )
    return [section for section in every if section.figures or section.tables]


def _law_figures(
    last: Summary | None, tables: Tables, families: Sequence[type[Family]]
) -> Iterator[Drawing]:
    if last is not None and last.nonzero:
        fitted = dict(_fitted(last, families))
        yield (
            "density",
            "Magnitudes of the last captured gradient against the fitted distributions.",
            partial(plot.density, last, fitted),
        )
        yield (
            "survival",
            "The same in the tail, where thresholds live: a distribution that leaves the grey "
            "line here misses its target there.",
            partial(plot.survival, last, fitted),
        )
        yield (
            "qq",
            "Quantiles of the last captured gradient against those of the distributions; one that "
            "leaves the dotted line at the top right misses in the tail.",
            partial(plot.qq, last, fitted),
        )
    good = _good(tables["fits"])
    if len(good):
        yield (
            "tail-error",
            "What each family's threshold keeps over what it should, by target ratio.",
            partial(plot.tail_error, good),
        )


def _law_tables(tables: Tables) -> Iterator[tuple[str, Table]]:
    yield (
        "Medians over rows. transfer: nats per element lost to the best family on the next row, "
        "shape kept and scale refitted; tail: median |ln((k̂+½)/(k+½))| over ratios; ranked by "
        "both. shape_se: standard error as if elements were independent; shape_spread: what rows "
        "differ by.",
        laws.best_distribution(tables["fits"]),
    )
    yield (
        "The best family of each part, ranked in the same way.",
        laws.best_by_group(tables["fits_by_part"]),
    )
    yield (
        "SIDCo thresholds on whole gradients: median k̂/k by number of stages (fixed), without "
        "error feedback.",
        laws.by_ratio(tables["thresholds"], ["variant", "stages"]),
    )


def _training_figures(tables: Tables) -> Iterator[Drawing]:
    good, parts = _good(tables["fits"]), _good(tables["fits_by_part"])
    if len(good):
        yield (
            "evolution",
            "Shape parameters over training with LOWESS trends, and the mean magnitude over its "
            "first.",
            partial(plot.evolution, good),
        )
    if len(parts):
        yield (
            "winners",
            "The family that ranks first, by part and over training.",
            partial(plot.winners, parts),
        )
        if parts["shape"].notna().any():
            best = laws.best_distribution(parts[parts["shape"].notna()])["family"].iloc[0]
            yield (
                "heat-shape",
                f"Shape of {best}, the best family with one, by part and over training.",
                partial(plot.heat, parts, "shape"),
            )
        if (parts["family"] == "laplace").any():
            yield (
                "heat-laplace",
                "What Laplace's threshold, that of SIDCo-E's first stage, keeps at ratio "
                f"{parts['target_ratio'].min():g} over its target, in doublings: red keeps too "
                "many.",
                partial(plot.heat, parts, family="laplace"),
            )
    if len(tables["reuse"]):
        yield (
            "thresholds",
            "Exact thresholds of whole gradients with LOWESS trends.",
            partial(plot.thresholds, tables["reuse"]),
        )
        yield (
            "reusable",
            "For how many steps they may be reused before k̂/k leaves 1 ± 20 %; hollow: they still "
            "hold at the end.",
            partial(plot.reusable, tables["reuse"]),
        )


def _reuse(tables: Tables) -> Iterator[tuple[str, Table]]:
    yield (
        "Steps for which the exact threshold of a row keeps k̂/k within 1 ± 20 % on later rows; a "
        "lower bound where it still holds at the end.",
        laws.reuse_table(tables["reuse"]),
    )


def _compressibility_figures(last: Summary | None, tables: Tables) -> Iterator[Drawing]:
    if last is not None and last.nonzero:
        yield (
            "sorted",
            "Sorted magnitudes of the last captured gradient. A power law is a straight line.",
            partial(plot.sorted_magnitudes, last),
        )
        yield (
            "best-k",
            "The error of keeping the k largest: no sparsifier does better.",
            partial(plot.best_k, last),
        )
    ranks = tables["ranks"]
    if (ranks["status"] == "ok").any():
        yield (
            "ranks",
            "Directions that a matrix-shaped gradient has, of those it could have: what low-rank "
            "methods live on. Band from the 10th to the 90th percentile of parameters.",
            partial(plot.ranks, ranks),
        )


def _compressibility_tables(tables: Tables) -> Iterator[tuple[str, Table]]:
    yield (
        "Medians over rows. Sorted magnitudes fall as rank^-p; SIDCo assumes a power law with "
        "p > 1/2. power_law: share of rows where the line is straight. stable_index: α of "
        "McCulloch, 2 for a normal middle, 1 for Cauchy's. best_k_error: ‖g - top k‖ over ‖g‖, "
        "of the part.",
        laws.structure_table(tables["structure"]),
    )
    ranks = tables["ranks"]
    if (ranks["status"] == "ok").any():
        columns = ["stable_rank", "entropy_rank", "r90", "r99", "full"]
        yield (
            "Effective ranks of matrix-shaped parameters, medians over rows. r90: directions that "
            "hold 90 % of the squares.",
            ranks.groupby("parameter", sort=False)[columns].median().reset_index(),
        )


def _low_rank_figures(tables: Tables) -> Iterator[Drawing]:
    ranks = tables.get("weight_ranks")
    if ranks is not None and (ranks["status"] == "ok").any():
        yield (
            "weight-ranks",
            "Directions that the weights have, of those they could have. Band from the 10th to "
            "the 90th percentile of parameters.",
            partial(plot.ranks, ranks),
        )


def _low_rank(tables: Tables) -> Iterator[tuple[str, Table]]:
    rows = tables.get("factorised")
    if rows is None or not len(rows):
        return
    yield (
        "Factorised training changes the model, so its rows stand apart: nothing is encoded. "
        "bound: no method of that rank loses less of these gradients. counterfactual: what the "
        "gradients of the factors would do to their product, from the weights of this run. "
        "model-change: a run of the factorised model itself, exact on its own gradient. "
        "captured: share of the squares in directions that low rank can follow.",
        low_rank(rows),
    )


def _compensated(tables: Tables) -> tuple[list[Drawing], list[tuple[str, Table]]]:
    """Figures and table of gradient + residual, what a compressor sees under error feedback."""
    fits = tables.get("fits_compensated")
    if fits is None or not len(good := _good(fits)):
        return [], []
    figures: list[Drawing] = [
        (
            "compensated-tail-error",
            "What each family's threshold keeps of gradient + residual over what it should.",
            partial(plot.tail_error, good),
        ),
        (
            "compensated-evolution",
            "Shapes of gradient + residual while the residual grows.",
            partial(plot.evolution, good),
        ),
    ]
    note = (
        "Distributions of gradient + residual, what a compressor sees under error feedback, here "
        "of Top-k at 0.01. Sums of many steps look more normal: fewer large elements stand out."
    )
    later = good[good["step"] >= good["step"].median()]
    return figures, [(f"{note} Second half of the rows.", laws.best_distribution(later))]


def _over_steps(tables: Tables) -> tuple[list[Drawing], list[tuple[str, Table]]]:
    """Figures and table of each tracked element's series."""
    series = tables.get("series")
    if series is None or not len(series):
        return [], []
    texts = {
        "snr": "Signal-to-noise ratio |mean| / deviation of each tracked element over the steps.",
        "tail_index": "McCulloch's stable index of each tracked element over the steps: 2 is "
        "normal.",
    }
    figures: list[Drawing] = [
        (value.replace("_", "-"), text, partial(plot.over_steps, series, value))
        for value, text in texts.items()
        if series[value].notna().any()
    ]
    columns = ["zeros", "snr", "tail_index", "autocorrelation"]
    medians = series.groupby("module_type", sort=False)[columns].median()
    note = "Axis of sampling: steps. Medians over the tracked elements of each module type."
    return figures, [(note, medians.reset_index())]


def _good(fits: Table) -> Table:
    return fits[fits["status"] == "ok"]


def _fitted(summary: Summary, families: Sequence[type[Family]]) -> Iterator[tuple[str, Family]]:
    for family in families:
        with suppress(Exception):  # its rows in the table `fits` say why
            yield family.name, family.fit(summary)
