"""Summaries of a run, by groups of parameters: tasks that open the store themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial, reduce
from operator import add

import torch
from torch import Tensor

from gradstats.runs.run import Run
from gradstats.runs.selection import without_elements
from gradstats.runs.tasks import in_order
from gradstats.settings import SettingError
from gradstats.store import Parameter, StoreFormatError
from gradstats.summary import Summary, summarize, summarize_segments

GROUPINGS = ("model", "module-type", "parameter")
NOTHING = summarize(torch.zeros(0))


@dataclass(frozen=True)
class Group:
    """The summary of one group of parameters at one step.

    Attributes:
        step: optimizer step.
        name: "model", a module type, a parameter, or what the regular expression captured.
        summary: the Summary of its elements; of no elements if there is no gradient.
        status: "ok", or why there is no gradient.
        left_out: names of its parameters that rows of this kind cannot hold (sparse ones in
            tracks).
    """

    step: int
    name: str
    summary: Summary
    status: str = "ok"
    left_out: str = ""


def group_of(by: str, names: Iterable[str] = ()) -> Callable[[Parameter], str | None]:
    """Return the function that names the group of a parameter; None for no group.

    Args:
        by: "model", "module-type", "parameter", or a regular expression that is searched for in
            parameter names: its first group, or the whole match, names the group.
        names: names of the parameters; brackets that occur in a name, such as `layers[0]`, match
            themselves and are no class of letters.

    Raises:
        ValueError: not a regular expression.
    """
    known: dict[str, Callable[[Parameter], str | None]] = {
        "model": lambda parameter: "model",
        "module-type": lambda parameter: parameter.module_type or "unknown",
        "parameter": lambda parameter: parameter.name,
    }
    if by in known:
        return known[by]
    try:
        literal = "[" in by and any(by in name for name in names)
        pattern = re.compile(re.escape(by) if literal else by)
    except re.error as error:
        rule = f"one of {', '.join(GROUPINGS)} or a regular expression"
        raise SettingError("by", f"must be {rule}, got {by!r}: {error}") from error

    def captured(parameter: Parameter) -> str | None:
        match = pattern.search(parameter.name)
        return match and (match[1] if pattern.groups else match[0])

    return captured


def check_by(run: Run, by: str) -> None:
    """Raise ValueError unless some selected parameter belongs to a group."""
    key = group_of(by, run.names)
    chosen = [each for each in run.table if each.name in run.selected and key(each)]
    if not chosen:
        rule = f"one of {', '.join(GROUPINGS)} or a regular expression found in a parameter's name"
        raise SettingError("by", f"must be {rule}, got {by!r}")
    if not any(each.numel for each in chosen):
        raise ValueError(f"groups by {by!r} must {without_elements(run, chosen)}")


def groups(
    run: Run,
    *,
    by: str = "model",
    kind: str | None = None,
    first: int = 0,
    executor: Executor | None = None,
) -> Iterator[list[Group]]:
    """Summarise the selected rows, one list per row, in order, with few rows in memory at a time.

    Args:
        run: selects parameters and steps.
        by: see `group_of`.
        kind: "full", "summary" or "track"; default: the first of them that has rows.
        first: number of rows to leave out at the beginning.
        executor: runs the tasks, one per row; default: this process.

    Raises:
        ValueError: unknown grouping, no row or element to summarise, or a loss scale is not known.
    """
    check_by(run, by)
    kind = kind or run.fitted_kind
    run.check(kind)
    rows = run.rows(kind)
    if not rows:
        raise ValueError(f"run must have {kind} rows, got none in {run}")
    return in_order(partial(summarize_row, run, kind, by), rows[first:], executor)


def summarize_row(run: Run, kind: str, by: str, row: int) -> list[Group]:
    """Summarise one row by groups, in one pass over it.

    The status of a group names the reason if it has no gradient, or if the row cannot be read.
    """
    step, left_out = int(run.stream(kind).steps[row]), left_out_of(run, kind, by)
    try:
        summaries, missing = _row_groups(run, kind, by, row), f"no gradient at step {step}"
    except StoreFormatError as error:
        summaries, missing = {}, str(error)
    return [
        Group(
            step,
            name,
            summaries.get(name, NOTHING),
            status_of(name in summaries, held, missing),
            without,
        )
        for name, (held, without) in left_out.items()
    ]


def status_of(summarized: bool, held: bool, missing: str) -> str:
    """Return "ok" if a group has elements, else the reason."""
    if not held:
        return "tracks hold no sparse gradients; capture with full="
    return "ok" if summarized else missing


def left_out_of(run: Run, kind: str, by: str) -> dict[str, tuple[bool, str]]:
    """By group: whether rows of a kind hold elements of it, and the names of what they cannot."""
    key, reader = group_of(by, run.names), run.reader(kind)
    groups: dict[str, tuple[bool, list[str]]] = {}
    for part in reader.parameters:
        name, sparse = key(part), kind == "track" and part.layout != "dense"
        if name and (part.numel or sparse):
            held, without = groups.get(name, (False, []))
            groups[name] = held or part.numel > 0, [*without, part.name] if sparse else without
    return {name: (held, ", ".join(without)) for name, (held, without) in groups.items()}


def _row_groups(run: Run, kind: str, by: str, row: int) -> dict[str, Summary]:
    stream, reader, key = run.stream(kind), run.reader(kind), group_of(by, run.names)
    present = {
        part.name for part, has in zip(stream.table, stream.present[row], strict=True) if has
    }
    selected = [part for part in reader.parameters if part.name in present]
    if kind == "summary":
        by_name = run.summaries(row)
        return joined_summaries(key, [(part, by_name[part.name]) for part in selected])
    dtypes = dict.fromkeys(part.dtype for part in selected)
    # the summaries of one grid add
    joint = None if by == "parameter" else _widest(dtypes)
    summaries: list[tuple[Parameter, Summary]] = []
    dense = [part for part in selected if part.layout == "dense"]
    for dtype in dict.fromkeys(part.dtype for part in dense):
        flat = reader.flat(row, dtype)
        flat = flat.to(run.device, joint and torch.promote_types(joint, flat.dtype))
        parts = [part for part in dense if part.dtype == dtype]
        summaries += _summaries(flat, parts, stream.sampling_fraction)
    for part in selected if kind == "full" else ():
        if part.layout != "dense":
            grad = reader.parameter(row, part.name)
            grad = grad.to(run.device, joint and torch.promote_types(joint, grad.dtype))
            summaries.append((part, summarize(grad)))
    return joined_summaries(key, summaries)


def _widest(dtypes: Iterable[str]) -> torch.dtype | None:
    """The narrowest dtype that holds the values of all."""
    every = [getattr(torch, dtype) for dtype in dtypes]
    return reduce(torch.promote_types, every) if every else None


def _summaries(
    flat: Tensor, parts: list[Parameter], fraction: float
) -> Iterator[tuple[Parameter, Summary]]:
    """Of the parts of a flat gradient; the stretches between them are left out."""
    bounds = sorted({0, flat.numel(), *(p.offset for p in parts)} | {_end(p) for p in parts})
    segments = dict(zip(bounds, summarize_segments(flat, bounds, fraction=fraction), strict=False))
    return ((part, segments[part.offset]) for part in parts if part.numel)


def _end(part: Parameter) -> int:
    return part.offset + part.numel


def joined_summaries(
    key: Callable[[Parameter], str | None], summaries: Iterable[tuple[Parameter, Summary]]
) -> dict[str, Summary]:
    """The sum of the summaries of each group."""
    parts_of: dict[str, list[Summary]] = {}
    for parameter, summary in summaries:
        name = key(parameter)
        if name:
            parts_of.setdefault(name, []).append(summary)
    return {name: reduce(add, parts) for name, parts in parts_of.items()}
