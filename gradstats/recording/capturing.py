"""Capture: record the gradients of a training run while it runs."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn
from torch.optim import Optimizer

from gradstats.recording.budget import Budget, format_bytes, parse_bytes
from gradstats.recording.handle import Capture, Idle, Plan, row_cost
from gradstats.recording.provenance import provenance
from gradstats.recording.ranks import rank_and_world
from gradstats.recording.reports import Reports
from gradstats.recording.schedules import Schedule, as_schedule, every
from gradstats.recording.selection import Selected, select, unwrap_model, unwrap_optimizer
from gradstats.recording.staging import KINDS, Kind, Source, sample_elements
from gradstats.recording.writing import BATCH_ROWS
from gradstats.store import GradientStore, Parameter, Stream, parameter_table

IfExists = Literal["error", "resume", "overwrite"]
Full = Callable[[int], bool] | Iterable[int] | None

DEFAULT_FULL = every(500)
DEFAULT_TRACK = 65_536

#: Rows of each kind that may wait for the writer before the training does.
_WAITING: Mapping[Kind, int] = {"full": 2, "track": 2 * BATCH_ROWS}

#: What the store's tables take at most before they hold a row: chunks of many rows, metadata.
_TABLE_BYTES = 500_000


def capture(
    model: nn.Module,
    optimizer: Optimizer,
    path: str | os.PathLike[str],
    *,
    full: Full = DEFAULT_FULL,
    track: int | None = DEFAULT_TRACK,
    parameters: str | Sequence[str] = "*",
    max_bytes: int | str = "20GB",
    if_exists: IfExists = "error",
    start_step: int = 0,
    seed: int = 0,
    quiet: bool = False,
) -> Capture | Idle:
    """Record the gradients that ``optimizer`` is about to use, from now until ``close()``.

    The gradients themselves are never touched, and nothing is raised into the training: rows that
    cannot be stored are counted and said once. In a group of processes rank 0 records and the
    others get a handle that does nothing. The many keywords are the settings of one recording.

    Args:
        model: The module whose parameter names the rows go by; wrapped ones are unwrapped.
        optimizer: A torch optimizer, or a wrapper with one in ``.optimizer``.
        path: The store to write, by custom ``NAME.zarr``.
        full: Which steps get a whole row: ``every(n)``, ``log_spaced(n)``, ``window(a, b)``, a
            list of steps, any callable step -> bool, or None.
        track: How many elements to keep at every step, the same random ones; 0 or None for none.
        parameters: Globs over parameter names.
        max_bytes: The most that may lie at ``path``, such as ``"20GB"``.
        if_exists: What to do with a store at ``path``: "error", "resume" (adds a segment) or
            "overwrite".
        start_step: Number of the first optimizer step.
        seed: Seed of the choice of tracked elements.
        quiet: Say nothing on stderr but faults.

    Returns:
        The handle: ``log(loss=...)``, ``step``, ``stats``, ``close()``; a context manager.

    Raises:
        ValueError: A setting out of range, or nothing to record.
        TypeError: Something is not a model, an optimizer or a schedule.
        FileExistsError: There is something at ``path``.
        StoreFormatError: What is at ``path`` is not a store that can be added to or replaced.
        BlockingIOError: Another process writes to ``path``.
    """
    rank, processes = rank_and_world()
    if rank != 0:
        return Idle(start_step)
    inner = unwrap_optimizer(optimizer)
    chosen = select(model, inner, parameters)
    reports = Reports(quiet=quiet)
    schedule = as_schedule(full)
    sources = _make_sources(chosen, whole=full is not None, track=track, seed=seed)
    limit = _checked_limit(max_bytes, sources.values())
    story = provenance(unwrap_model(model), inner, seed=seed, command=sys.argv)
    store = GradientStore.create(Path(path), _table(chosen), provenance=story, if_exists=if_exists)
    try:
        segment = _claim(store, sources)
        budget = Budget(max(0, limit - store.nbytes))
    except BaseException:
        store.close()
        raise
    for line in _introduction(store, sources, schedule, limit):
        reports.news(line)
    if processes > 1:
        reports.news(f"rank 0 of {processes} records; the other ranks run without recording")
    return Capture(inner, store, sources, Plan(schedule, start_step, segment, budget), reports)


def _table(chosen: Sequence[Selected]) -> tuple[Parameter, ...]:
    return parameter_table(
        [(one.name, one.tensor.shape, one.tensor.dtype) for one in chosen],
        module_types={one.name: one.module_type for one in chosen},
        aliases={one.name: one.aliases for one in chosen},
    )


def _make_sources(
    chosen: Sequence[Selected], *, whole: bool, track: int | None, seed: int
) -> dict[Kind, Source]:
    table, tensors = _table(chosen), [one.tensor for one in chosen]
    sources: dict[Kind, Source] = {}
    if whole:
        sources["full"] = Source(table, tensors, None, _WAITING["full"])
    check_rows_wanted(whole=whole, track=track)
    if track:
        ids = sample_elements(table, track, np.random.default_rng(seed))
        sources["track"] = Source(table, tensors, ids, _WAITING["track"])
    return sources


def check_rows_wanted(*, whole: bool, track: int | None) -> None:
    """Check that there is something to record.

    Raises:
        ValueError: ``track`` is not a number of elements, or neither whole rows nor elements.
    """
    if track is not None and (not isinstance(track, int) or track < 0):
        raise ValueError(f"track must be a number of elements or None, got {track!r}")
    if not whole and not track:
        raise ValueError(f"full and track must not both be off, got None and {track!r}")


def recorded_streams(store: GradientStore) -> Iterator[Stream]:
    """Open what a store holds of a recording: whole rows, tracked rows, both or neither."""
    for kind in KINDS:
        with contextlib.suppress(LookupError):
            yield store.stream(kind=kind)


def _checked_limit(max_bytes: int | str, sources: Iterable[Source]) -> int:
    limit = parse_bytes(max_bytes) - _TABLE_BYTES
    needed = max(row_cost(source) for source in sources)
    if needed > limit:
        raise ValueError(
            f"max_bytes must leave room for one row, which takes {format_bytes(needed)} beside "
            f"{format_bytes(_TABLE_BYTES)} of tables, got {max_bytes!r}; raise it, or select "
            "fewer parameters"
        )
    return limit


def _claim(store: GradientStore, sources: Mapping[Kind, Source]) -> int:
    """Become the store's writer, declare what is tracked, and return the segment to write."""
    store.claim()
    ids = sources["track"].element_ids if "track" in sources else None
    if ids is not None:
        store.set_track(ids)
    streams = [stream for stream in recorded_streams(store) if len(stream)]
    return max((int(stream.coordinates["segment"][-1]) + 1 for stream in streams), default=0)


def _introduction(
    store: GradientStore, sources: Mapping[Kind, Source], schedule: Schedule, limit: int
) -> Iterator[str]:
    elements = sum(parameter.numel for parameter in store.parameters)
    what = f"{len(store.parameters)} parameters with {elements:,} elements"
    yield f"recording to {store.path}: {what}, as optimizer.step() finds them (point 'reduced')"
    rows = []
    if "full" in sources:
        rows.append(f"full rows of {format_bytes(sources['full'].nbytes)} at {schedule!r}")
    if "track" in sources:
        source = sources["track"]
        size = format_bytes(source.nbytes)
        rows.append(f"{source.elements:,} elements of every step, {size} each")
    free = shutil.disk_usage(store.path).free
    room = f"at most {format_bytes(limit + _TABLE_BYTES)}, {format_bytes(free)} free"
    yield f"{'; '.join(rows)}; {room}"
