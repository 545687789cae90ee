"""Fit rows → one row per family: which one describes the gradients best, and how well."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradstats import extras
from gradstats.families.reference import PREFIX
from gradstats.runs.given import given_table

Table = Any
STEP = ["step", "group"]
RANKED = [*STEP, "family", "target_ratio", "khat_over_k", "n", "log_likelihood", "status"]
RANKED += ["next_log_likelihood_rescaled"]
MEDIANS = ["ks", "anderson_darling", "wasserstein_1", "wasserstein_2", "shape", "shape_se"]
MEDIANS += ["scale"]


def scores(fits: Table) -> Table:
    """The two scores that rank families, a row per step, group and family.

    `transfer` is how many nats per element a family loses to the best on the next captured step,
    its shape kept and its scale refitted, so that drift of the scale favours nobody; at a step
    without a next one, on itself. `tail` is the median of |ln (k̂+½)/(k+½)| over ratios. `rank` is
    the mean of a family's two ranks; equals are ordered by transfer. One that failed has none, and
    neither has a reference (`scipy:…`), whose transfer is against the best of the others.

    Args:
        fits: rows of `gradstats.fitting.run.fit`.
    """
    good = fits[fits["status"] == "ok"]
    k = np.maximum(1, (good["target_ratio"] * good["n"]).round())
    tail = np.abs(np.log((good["khat_over_k"] * k + 0.5) / (k + 0.5)))
    nats = good["next_log_likelihood_rescaled"].fillna(good["log_likelihood"])
    keyed = good.assign(tail=tail, nats=nats)
    once = keyed.groupby([*STEP, "family"], sort=False).agg(
        {"tail": "median", "nats": "first", "shape": "first", "scale": "first"}
    )
    ours = ~_are_references(once.reset_index()["family"]).to_numpy()
    best = once.assign(nats=once["nats"].where(ours)).groupby(STEP)["nats"].transform("max")
    once = once.assign(transfer=best - once["nats"])
    ranked = [once[name].where(ours) for name in ("transfer", "tail")]
    ranks = [each.groupby(level=STEP).rank() for each in ranked]
    return once.assign(rank=(ranks[0] + ranks[1]) / 2).reset_index()


def winners(fits: Table) -> Table:
    """The winning family of every step and group, with its scores; references do not take part.

    Args:
        fits: the table of `gradstats.fit`.
    """
    fits = fits[~_are_references(fits["family"])]
    if not (fits["status"] == "ok").any():
        return extras.load("pandas").DataFrame({"step": [], "group": [], "family": []})
    ordered = scores(fits).sort_values([*STEP, "rank", "transfer"], kind="stable")
    return ordered.drop_duplicates(STEP).reset_index(drop=True)


def _are_references(families: Any) -> Any:
    """Whether each family is a distribution of scipy.stats, which is not ranked."""
    return families.astype(str).str.startswith(PREFIX)


def best_distribution(fits: Table) -> Table:
    """Rank families by how well they describe the gradients, best first.

    Columns are medians over steps and groups. `rank` is the mean of two ranks: by `transfer`, the
    nats per element that a family loses to the best one on the next captured step, and by `tail`,
    the median of |ln (k̂+½)/(k+½)| over ratios.

    Args:
        fits: the table of `gradstats.fit`; select the rows of one group to rank for it alone.

    Returns:
        A pandas DataFrame, one row per family that could be fitted: rank, wins (share of steps and
        groups at which the family is the best), transfer, tail, distances, parameters, shape_se
        (as if elements were independent), shape_spread (between steps), and one column of k̂/k per
        target ratio. References (`scipy:…`) come last, without a rank. Without any fit it has no
        row.

    Raises:
        ValueError: the table is not that of a fit.

    Example:
        >>> import gradstats
        >>> run = gradstats.load_example()
        >>> fits = gradstats.fit(run, families=["laplace", "normal"], kind="track", stride=99)
        >>> gradstats.best_distribution(fits)["family"].tolist()
        ['laplace', 'normal']
    """
    fits = given_table(fits, [*RANKED, *MEDIANS], name="fits", verb="fit")
    good = fits[fits["status"] == "ok"]
    if not len(good):
        return extras.load("pandas").DataFrame({"family": []})
    once = good.drop_duplicates([*STEP, "family"])
    scored = scores(fits)
    table = scored.groupby("family")[["rank", "transfer", "tail"]].mean(numeric_only=True)
    table[["transfer", "tail"]] = scored.groupby("family")[["transfer", "tail"]].median()
    won = winners(fits)["family"].value_counts(normalize=True)
    table.insert(1, "wins", won.reindex(table.index).fillna(0.0))
    table = table.join(once.groupby("family")[MEDIANS].median()).join(
        by_ratio(good, ["family"]).set_index("family")
    )
    spread = once.groupby(["family", "group"])["shape"].std().groupby("family").median()
    table.insert(table.columns.get_loc("scale"), "shape_spread", spread.reindex(table.index))
    return table.sort_values(["rank", "transfer"]).reset_index()


def best_by_group(fits: Table) -> Table:
    """The best family of every group, with its medians."""
    pandas = extras.load("pandas")
    best = [
        best_distribution(rows).head(1).assign(group=group)
        for group, rows in fits[~_are_references(fits["family"])].groupby("group", sort=False)
        if (rows["status"] == "ok").any()
    ]
    if not best:
        return pandas.DataFrame({"group": [], "family": []})
    table = pandas.concat(best, ignore_index=True)
    return table[["group", *table.columns.drop("group")]]


def by_ratio(rows: Table, keys: list[str]) -> Table:
    """Median k̂/k with one column per ratio, the largest first, and a line for each of `keys`."""
    if not len(rows):
        return extras.load("pandas").DataFrame(columns=keys)
    pivot = rows.pivot_table("khat_over_k", keys, "target_ratio", "median")
    return pivot[sorted(pivot.columns, reverse=True)].reset_index()


def reuse_table(reuse: Table) -> Table:
    """For how many steps an exact threshold may be reused before k̂/k leaves 1 ± 20 %.

    One line per group and ratio: the number of thresholds that were followed, the median number of
    steps (a threshold that still holds at the end counts with the steps that were seen, so that
    the median is a lower bound), and the share that still holds.
    """
    if not len(reuse):
        return reuse
    lines = reuse.assign(still_holds=reuse["ended"] < 0).groupby(
        ["group", "target_ratio"], sort=False
    )
    table = lines.agg(
        thresholds=("step", "size"),
        reusable_steps=("reusable_steps", "median"),
        still_holds=("still_holds", "mean"),
    )
    return table.reset_index()


def structure_table(structure: Table) -> Table:
    """Medians over steps of each group's tail index, decay and best-k errors."""
    if not len(structure):
        return structure
    errors = [name for name in structure if name.startswith("best_k_error")]
    columns = ["sign_asymmetry", "stable_index", "decay_exponent", *errors]
    by_group = structure.groupby("group", sort=False)
    table = by_group[columns].median()
    straight = structure.assign(power_law=structure["power_law"].astype("float"))
    table.insert(3, "power_law", straight.groupby("group", sort=False)["power_law"].mean())
    return table.reset_index()
