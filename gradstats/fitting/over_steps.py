"""Tables whose rows look across steps: elements over steps, and effective ranks over training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor

from gradstats import extras
from gradstats.fitting.columns import RankRow, SeriesRow
from gradstats.fitting.effective_rank import effective_rank
from gradstats.fitting.series import series_columns
from gradstats.lowrank.rules import blocks_of
from gradstats.runs import Run, opened
from gradstats.runs.emptiness import check_gradients
from gradstats.runs.parts import Collect, at_once
from gradstats.runs.results import Results
from gradstats.runs.tables import Made, frame
from gradstats.runs.tasks import in_order
from gradstats.store import Parameter, StoreFormatError

Progress = Callable[[int, int], None]  # done, of how many
Row = dict[str, Any]
BLOCK_VALUES = 1 << 22  # values of a block of elements over all steps: 32 MB in float64


def series(
    run: Run | str | PathLike[str],
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
    collect: Collect = at_once,
) -> Any:
    """Every tracked element over the selected steps: the axis "steps".

    Blocks of elements are read one after another, so that memory does not grow with the run.

    Args:
        run: selects parameters and steps, or its path; its tracked rows are read.
        executor: any `concurrent.futures.Executor`; the tasks open the store themselves.
        progress: called with (blocks done, blocks).
        collect: makes the columns of each block, but for those that are kept.

    Returns:
        A pandas DataFrame with the columns of `gradstats.fitting.columns.SeriesRow`: one row per
        element, whose statistics are over the steps.

    Raises:
        ValueError: fewer than two tracked rows, or a loss scale is not known.

    Example:
        >>> import gradstats
        >>> table = gradstats.series(gradstats.load_example())
        >>> len(table), set(table["axis"])
        (1200, {'steps'})
    """
    pandas, run = extras.load("pandas"), opened(run)
    check_gradients(run.store)
    rows = run.rows("track")
    run.check("track")
    if len(rows) < 2:
        reader = run.reader("track")
        remedy = reader.emptiness if reader.untracked else "capture with track="
        raise ValueError(f"axis steps must have two tracked rows, got {len(rows)}: {remedy}")
    blocks = list(_blocks(run, len(rows)))

    def columns_of(first: int) -> Iterator[list[Row]]:
        by_block = in_order(partial(_block, run, rows), blocks[first:], executor)
        for done, columns in enumerate(by_block, first + 1):
            yield columns
            if progress:
                progress(done, len(blocks))

    tables = [pandas.DataFrame(columns) for each in collect(columns_of) for columns in each]
    return pandas.concat(tables, ignore_index=True)


def _blocks(run: Run, rows: int) -> Iterator[tuple[str, int, int]]:
    """(dtype, start, stop) of tracked elements that are read together."""
    size = max(1, BLOCK_VALUES // rows)
    for dtype, ids in (run.stream("track").element_ids or {}).items():
        for start in range(0, len(ids), size):
            yield dtype, start, min(start + size, len(ids))


def _block(run: Run, rows: list[int], block: tuple[str, int, int]) -> list[Row]:
    """The columns of each parameter's elements in a block, one dictionary per parameter."""
    dtype, start, stop = block
    stream, reader = run.stream("track"), run.reader("track")
    values = np.stack([reader.elements(row, dtype, start, stop) for row in rows])
    consecutive = bool((np.diff(stream.steps[rows]) == 1).all())
    columns_of = []
    for place, (part, whole) in enumerate(zip(stream.parameters, stream.table, strict=True)):
        low, high = max(start, part.offset), min(stop, part.offset + part.numel)
        if part.dtype != dtype or part.name not in run.selected or low >= high:
            continue
        sample = values[:, low - start : high - start].copy()
        sample[~stream.present[rows, place]] = np.nan
        ids = (stream.element_ids or {})[dtype][low:high]
        labels = {"axis": "steps", "parameter": part.name, "module_type": part.module_type}
        columns = series_columns(sample, consecutive=consecutive)
        columns_of.append({**labels, "element": ids - whole.offset, **columns})
    return columns_of


def ranks(
    run: Run | str | PathLike[str],
    *,
    quantity: str = "grad",
    most_rows: int = 32,
    executor: Executor | None = None,
    progress: Progress | None = None,
    collect: Collect = at_once,
) -> Any:
    """Compute the effective ranks of every matrix-shaped parameter at steps of the training.

    Args:
        run: an open run, which selects worker, steps and parameters; or its path. Full rows are
            read, which hold all elements of one worker's gradient at one step.
        quantity: the matrices whose ranks are computed: "grad" (default), the gradients, or
            "weight", the weights. Weights must have been captured.
        most_rows: largest number of captured rows that are read, evenly spaced over the selected
            ones, the first and the last included.
        executor: any `concurrent.futures.Executor`, whose tasks open the store themselves;
            default: the calling process.
        progress: function that is called with (rows done, rows in all).
        collect: function that makes the table's rows of each captured row, but for those that are
            kept.

    Returns:
        A pandas DataFrame with the columns of `gradstats.fitting.columns.RankRow`: one row per
        matrix and step, for at most `most_rows` steps. An LSTM weight is four matrices, one per
        gate (`weight_hh_l0[2]`), fused attention three, and a convolution one per group if the
        run says how many groups it has. A matrix that could not be read has one row, whose
        `status` gives the reason.

    Example:
        >>> import gradstats
        >>> table = gradstats.ranks(gradstats.load_example(), most_rows=1)
        >>> bool((table["stable_rank"] <= table["full"]).all())
        True
    """
    run = opened(run)
    rows = run.rows("full")
    places = np.linspace(0, len(rows) - 1, min(most_rows, len(rows))).astype(int)
    chosen = [rows[place] for place in places] if rows else []

    def of_each(first: int) -> Iterator[list[Row]]:
        by_step = in_order(partial(_ranks, run, quantity), chosen[first:], executor)
        for done, step_rows in enumerate(by_step, first + 1):
            yield step_rows
            if progress:
                progress(done, len(chosen))

    return frame([line for step_rows in collect(of_each) for line in step_rows], RankRow)


def _of_gates(whole: Tensor, part: Parameter) -> Iterator[Row]:
    """The ranks of each matrix of a parameter: gates, projections and groups are their own."""
    own = part.name.rpartition(".")[2]
    count = part.matrices or blocks_of(part.module_type, own)
    for gate, matrix in enumerate(whole.chunk(count)):
        name = {"parameter": f"{part.name}[{gate}]"} if count > 1 else {}
        yield {**name, **asdict(effective_rank(matrix))}


def _ranks(run: Run, quantity: str, row: int) -> list[Row]:
    stream = run.stream("full")
    lines: list[RankRow] = []
    for part in run.reader("full").parameters:
        if len(part.shape) < 2 or min(part.shape[:2]) < 2:
            continue
        line: Row = {"step": int(stream.steps[row]), "parameter": part.name}
        line["module_type"] = part.module_type
        try:
            tensor = run.parameter(row, part.name, quantity)
            lines += [RankRow(**{**line, **each}) for each in _of_gates(tensor, part)]
        except (ValueError, LookupError, StoreFormatError) as error:
            lines.append(RankRow(**line, status=str(error)))
    return [vars(each) for each in lines]


# their names of before
over_steps = series
rank_table = ranks


@dataclass(frozen=True)
class RankSettings:
    """What the ranks of a run depend on, beside the run.

    Attributes:
        quantity: "grad" or "weight".
        most_rows: at most that many captured rows, evenly spaced.
    """

    quantity: str = "grad"
    most_rows: int = 32


def _make_ranks(results: Results, settings: RankSettings, key: Row, *, name: str) -> None:
    table = ranks(
        results.opened,
        quantity=settings.quantity,
        most_rows=settings.most_rows,
        executor=results.executor,
        progress=results.stage(name.replace("_", " ")),
        collect=results.collect(name, key),
    )
    results.keep(name, table, key)
    results.remove_parts(name)


def _make_series(results: Results, settings: object, key: Row) -> None:
    advance = results.stage("over steps")
    table = series(
        results.opened,
        executor=results.executor,
        progress=advance,
        collect=results.collect("series", key),
    )
    results.keep("series", table, key)
    results.remove_parts("series")


RANK_KEY = ("quantity", "most_rows")
RANKS = Made({"ranks": RankRow}, partial(_make_ranks, name="ranks"), RANK_KEY)
WEIGHT_RANKS = Made({"weight_ranks": RankRow}, partial(_make_ranks, name="weight_ranks"), RANK_KEY)
SERIES = Made({"series": SeriesRow}, _make_series)
