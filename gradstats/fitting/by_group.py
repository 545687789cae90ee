"""The tables of a fit one by one: thresholds, structure and reuse of groups of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from itertools import islice
from os import PathLike
from typing import Any

from gradstats.compressors import Compressor
from gradstats.fitting.columns import ReuseRow, StructureRow, ThresholdRow
from gradstats.fitting.rows import STAGES, structure_row, threshold_rows
from gradstats.fitting.settings import FitSettings
from gradstats.fitting.threshold_reuse import Reuse, tried_on
from gradstats.ratios import RATIOS
from gradstats.runs.compensated import compensated_groups
from gradstats.runs.groups import Group, groups
from gradstats.runs.opening import opened
from gradstats.runs.run import Run
from gradstats.runs.tables import Row, frame


def groups_to_fit(
    run: Run, settings: FitSettings, *, first: int = 0, executor: Executor | None = None
) -> Iterator[list[Group]]:
    """Summarise the rows that a fit goes through, compensated or not.

    Args:
        run: selects parameters and steps.
        settings: of the fit.
        first: index of the row to begin with.
        executor: any `concurrent.futures.Executor`; default: the calling process.
    """
    if settings.compensated is None:
        yield from groups(run, by=settings.by, kind=settings.kind, first=first, executor=executor)
        return
    every = compensated_groups(run, settings.compensated, by=settings.by, seed=settings.seed)
    yield from islice(every, first, None)


def sidco_thresholds(
    run: Run | str | PathLike[str],
    *,
    by: str = "model",
    ratios: float | Iterable[float] = RATIOS,
    compensated: str | Compressor | None = None,
    kind: str | None = None,
) -> Any:
    """Compute the thresholds of SIDCo for every captured row, and what they keep.

    Args:
        run: an open run, which selects worker, steps and parameters; or its path or URL.
        by: the groups of parameters: "model" (default), "module-type", "parameter", or a regular
            expression that is searched for in the names.
        ratios: one or several target ratios k/d (fraction of elements to keep), each in (0, 1].
        compensated: a compressor or spec; the thresholds are then of gradient + residual, see
            `Run.compensated`.
        kind: the rows: "full", "track" or "summary"; default: the first of full, summary and track
            that the run has.

    Returns:
        A pandas DataFrame with the columns of `gradstats.fitting.columns.ThresholdRow`: one row
        per step, group, variant of SIDCo, number of stages (1, 2, 3) and ratio.

    Raises:
        ValueError: an unknown grouping or kind, a ratio outside (0, 1], or no row of that kind.

    Example:
        >>> import gradstats
        >>> table = gradstats.sidco_thresholds(gradstats.load_example(), ratios=0.01)
        >>> sorted(set(table["variant"]))
        ['e', 'gp', 'p']
    """
    asked = _settings(by, ratios, compensated, kind)
    rows = (
        {**labels, **row}
        for labels, group in _labelled(opened(run), asked)
        for row in threshold_rows(group.summary, ratios=asked.ratios, stages=STAGES)
    )
    return frame(rows, ThresholdRow)


def structure(
    run: Run | str | PathLike[str],
    *,
    by: str = "model",
    ratios: float | Iterable[float] = RATIOS,
    compensated: str | Compressor | None = None,
    kind: str | None = None,
) -> Any:
    """Compute what needs no distribution: moments, tail index, decay and best-k errors.

    Args:
        run: an open run, which selects worker, steps and parameters; or its path or URL.
        by: the groups of parameters, as in `gradstats.sidco_thresholds`.
        ratios: one or several ratios k/d at which the error of keeping the k largest elements is
            computed, each in (0, 1].
        compensated: a compressor or spec, to look at gradient + residual.
        kind: the rows, as in `gradstats.sidco_thresholds`.

    Returns:
        A pandas DataFrame with the columns of `gradstats.fitting.columns.StructureRow`: one row
        per step and group, and a column best_k_error_RATIO per ratio.

    Raises:
        ValueError: an unknown grouping or kind, a ratio outside (0, 1], or no row of that kind.

    Example:
        >>> import gradstats
        >>> table = gradstats.structure(gradstats.load_example(), ratios=0.01)
        >>> bool((table["best_k_error_0.01"] < 1).all())
        True
    """
    asked = _settings(by, ratios, compensated, kind)
    rows = (
        {**labels, **structure_row(group.summary, asked.ratios)}
        for labels, group in _labelled(opened(run), asked)
    )
    return frame(rows, StructureRow)


def threshold_reuse(
    run: Run | str | PathLike[str],
    *,
    by: str = "model",
    ratios: float | Iterable[float] = RATIOS,
    compensated: str | Compressor | None = None,
    kind: str | None = None,
) -> Any:
    """Follow the exact threshold of each captured row until it no longer keeps k ± 20 %.

    Args:
        run: an open run, which selects worker, steps and parameters; or its path or URL.
        by: the groups of parameters, as in `gradstats.sidco_thresholds`.
        ratios: one or several target ratios k/d (fraction of elements to keep), each in (0, 1].
        compensated: a compressor or spec, to follow the thresholds of gradient + residual.
        kind: the rows, as in `gradstats.sidco_thresholds`. Tracked rows follow thresholds over
            every step.

    Returns:
        A pandas DataFrame with the columns of `gradstats.fitting.columns.ReuseRow`: one row per
        threshold, that is per step, group and ratio.

    Raises:
        ValueError: an unknown grouping or kind, a ratio outside (0, 1], or no row of that kind.

    Example:
        >>> import gradstats
        >>> run = gradstats.open(gradstats.load_example().store.path, steps=(504, 514, 1))
        >>> table = gradstats.threshold_reuse(run, ratios=0.01, kind="track")
        >>> int(table["threshold"].count())
        10
    """
    asked = _settings(by, ratios, compensated, kind)
    ended: list[Reuse] = []
    still: list[Reuse] = []
    for row_groups in groups_to_fit(opened(run), asked):
        tried = tried_on(still, row_groups, asked.ratios)
        ended += [each for each in tried if each.ended >= 0]
        still = [each for each in tried if each.ended < 0]
    return frame([each.row for each in (*ended, *still)], ReuseRow)


def _settings(by: str, ratios: Any, compensated: Any, kind: str | None) -> FitSettings:
    return FitSettings(by=by, ratios=ratios, compensated=compensated, kind=kind)


def _labelled(run: Run | str | PathLike[str], asked: FitSettings) -> Iterator[tuple[Row, Group]]:
    """The groups that have a gradient, with the columns that name them."""
    for row_groups in groups_to_fit(opened(run), asked):
        for group in row_groups:
            if group.status == "ok":
                yield {"step": group.step, "group": group.name}, group
