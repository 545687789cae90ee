"""Fit a run: families and thresholds of every group at every step, as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from os import PathLike
from typing import Any, Unpack

from gradstats import extras
from gradstats.fitting.bootstrap import corrected
from gradstats.fitting.by_group import groups_to_fit
from gradstats.fitting.columns import ELEMENTS
from gradstats.fitting.over_steps import series
from gradstats.fitting.rows import (
    STAGES,
    Row,
    failed_rows,
    fit_rows,
    structure_row,
    threshold_rows,
)
from gradstats.fitting.settings import FitKeywords, FitSettings
from gradstats.fitting.threshold_reuse import Reuse, tried_on
from gradstats.runs import Run, opened
from gradstats.runs.groups import Group
from gradstats.runs.tasks import in_order
from gradstats.settings import SettingError, from_keywords, lists_settings
from gradstats.summary.summary import Summary

Progress = Callable[[int, int], None]  # done, of how many
AXES = (ELEMENTS, "steps")
TABLES = ("fits", "thresholds", "structure", "reuse")


@dataclass
class StepFits:
    """The rows of one captured row, and the thresholds that are still followed after it.

    Attributes:
        index: of the row among those selected.
        rows: by table: fits, thresholds, structure, and reuse (thresholds that
            have ended).
        followed: what `fit_steps` needs to go on after this row.
    """

    index: int
    rows: dict[str, list[Row]] = field(default_factory=dict)
    followed: list[Reuse] = field(default_factory=list)


def fit_steps(
    run: Run,
    settings: FitSettings,
    *,
    first: int = 0,
    followed: Iterable[Reuse] = (),
    executor: Executor | None = None,
) -> Iterator[StepFits]:
    """Fit the rows of a run in order; few of them are in memory at a time.

    Each row is fitted by a task that needs its Summaries alone, and scored on the next row.

    Args:
        run: selects parameters and steps.
        settings: what to fit.
        first: index of the row to begin with.
        followed: thresholds that were followed when an earlier call ended.
        executor: any `concurrent.futures.Executor`; default: here.
    """
    nothing: list[Group] = []  # after the last row
    source = chain(groups_to_fit(run, settings, first=first, executor=executor), [nothing])
    numbered = enumerate(pairwise(source), first)
    still = list(followed)
    for index, (row_groups, fitted) in _fitted(numbered, settings, executor):
        begins = settings.ratios if index % settings.stride == 0 else ()
        still = tried_on(still, row_groups, begins)
        ended = [each.row for each in still if each.ended >= 0]
        still = [each for each in still if each.ended < 0]
        yield StepFits(index, {**fitted, "reuse": ended}, still)


Numbered = tuple[int, tuple[list[Group], list[Group]]]


def _fitted(
    numbered: Iterable[Numbered], settings: FitSettings, executor: Executor | None
) -> Iterator[tuple[int, tuple[list[Group], dict[str, list[Row]]]]]:
    return in_order(partial(_fit_pair, settings), numbered, executor)


def _fit_pair(
    settings: FitSettings, item: Numbered
) -> tuple[int, tuple[list[Group], dict[str, list[Row]]]]:
    """The rows of one captured row, scored on the next one."""
    index, (row_groups, following) = item
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    if index % settings.stride:
        return index, (row_groups, tables)
    after = {group.name: group.summary for group in following}
    for group in row_groups:
        labels = {"step": group.step, "group": group.name}
        for name, rows in _group_rows(group, after.get(group.name), settings).items():
            tables[name] += [{**labels, **row} for row in rows]
    if settings.bootstrap:
        tables["fits"] = corrected(tables["fits"])
    return index, (row_groups, tables)


def _group_rows(
    group: Group, following: Summary | None, settings: FitSettings
) -> dict[str, Iterable[Row]]:
    common: dict[str, Any] = {
        "families": settings.families,
        "ratios": settings.ratios,
        "method": settings.method,
    }
    if group.status != "ok":
        return {"fits": failed_rows(group.status, **common)}
    more: dict[str, Any] = {"following": following, "bootstrap": settings.bootstrap}
    return {
        "fits": _noted(fit_rows(group.summary, **common, **more), group),
        "thresholds": threshold_rows(group.summary, ratios=settings.ratios, stages=STAGES),
        "structure": [structure_row(group.summary, settings.ratios)],
    }


def _noted(rows: Iterable[Row], group: Group) -> Iterator[Row]:
    """The rows with what their group leaves out among the notes."""
    left_out = f"without {group.left_out}: tracks hold no sparse gradients"
    for row in rows:
        notes = filter(None, (row["notes"], left_out if group.left_out else ""))
        yield {**row, "notes": "; ".join(notes)}


def fit_tables(
    run: Run,
    settings: FitSettings,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every table of a fit as a pandas DataFrame: fits, thresholds, structure and reuse.

    Args:
        run: selects parameters and steps.
        settings: what to fit.
        executor: any `concurrent.futures.Executor`.
        progress: called with (rows done, rows).
    """
    pandas = extras.load("pandas")
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    total, followed = rows_to_fit(run, settings), []
    for done, step in enumerate(fit_steps(run, settings, executor=executor), 1):
        for name, rows in step.rows.items():
            tables[name] += rows
        followed = step.followed
        if progress:
            progress(done, total)
    tables["reuse"] += [each.row for each in followed]
    return {name: pandas.DataFrame(rows) for name, rows in tables.items()}


def rows_to_fit(run: Run, settings: FitSettings) -> int:
    """How many captured rows a fit goes through."""
    kind = run.consecutive if settings.compensated else settings.kind or run.fitted_kind
    return len(run.rows(kind))


@lists_settings(FitSettings, FitKeywords)
def fit(
    run: Run | str | PathLike[str],
    *,
    axis: str = ELEMENTS,
    executor: Executor | None = None,
    progress: Progress | None = None,
    **settings: Unpack[FitKeywords],
) -> Any:
    """Fit families of distributions to the captured gradients of a run.

    A captured row is the gradient of one worker at one step. A family is a set of distributions
    with free parameters, such as "laplace".

    Args:
        run: an open run, which selects worker, steps and parameters; or its path or URL.
        axis: the sample that a distribution describes. "elements" (default): all elements of one
            captured row, per group of parameters. "steps": one tracked element at all selected
            steps. Tracked elements are the same random elements, stored at every step. No family
            is fitted for "steps", so that it takes no settings.
        executor: any `concurrent.futures.Executor`, whose tasks open the store themselves;
            default: the calling process.
        progress: a function that is called with (items done, items in all): captured rows for
            "elements", blocks of tracked elements for "steps".
        **settings: fields of `gradstats.fitting.settings.FitSettings`: by (the groups), families
            (one or several names or classes; default: all), ratios (one or several fractions k/d
            of elements to keep), method, bootstrap, compensated, kind, stride and seed.

    Returns:
        A pandas DataFrame. For "elements": one row per step, group, family and ratio, with the
        columns of `gradstats.fitting.columns.FitRow` and shape_spread and scale_spread, the
        standard deviations of shape and scale between steps. For "steps": one row per tracked
        element, with the columns of `gradstats.fitting.columns.SeriesRow`.

    Raises:
        ValueError: unknown axis, grouping, family or method, a ratio outside (0, 1], settings
            with axis "steps", or fewer than two tracked rows with axis "steps".
        TypeError: an unknown setting.
    """
    chosen, run = from_keywords(FitSettings, settings, verb="fit"), opened(run)
    check_axis(axis)
    if axis != ELEMENTS:
        if settings:
            given = ", ".join(settings)
            raise ValueError(
                f"axis {axis!r} must come without {given}: no family is fitted over it"
            )
        return series(run, executor=executor, progress=progress)
    tables = fit_tables(run, chosen, executor=executor, progress=progress)
    return with_spread(tables["fits"], spread(tables["fits"]))


def check_axis(axis: str) -> None:
    """Raise ValueError unless it is an axis of sampling."""
    if axis not in AXES:
        raise SettingError("axis", f"must be one of {', '.join(AXES)}, got {axis!r}")


def spread(fits: Any) -> Any:
    """Standard deviations between steps, shape_spread and scale_spread, by group and family."""
    key = ["group", "family"]
    once = fits.drop_duplicates(["step", *key])
    between = once.groupby(key, sort=False)[["shape", "scale"]].std().add_suffix("_spread")
    return between.reset_index()


def with_spread(fits: Any, between: Any) -> Any:
    """The rows with what `spread` gives for their group and family."""
    present = fits.columns.intersection(["shape_spread", "scale_spread"])
    return fits.drop(columns=present).merge(between, on=["group", "family"], how="left")
