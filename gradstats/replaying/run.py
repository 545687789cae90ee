"""Replay a run: which compressors run on which of its rows, and the tables that come of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from gradstats.compressors import (
    Compressor,
    ErrorFeedback,
    Memory,
    Part,
)
from gradstats.compressors.wrappers.per_parameter import in_parts, without_parts
from gradstats.ratios import RATIOS
from gradstats.replaying.columns import ReplayRow, TimingRow
from gradstats.replaying.folding import Given
from gradstats.replaying.planning import Job, _inner, _made, planned
from gradstats.replaying.ranking import timing_table
from gradstats.replaying.settings import ReplayKeywords, ReplaySettings
from gradstats.replaying.streams import Stream, in_step_order, rows_done, write
from gradstats.replaying.timing import time_compressor
from gradstats.runs.opening import opened
from gradstats.runs.parts import Pace
from gradstats.runs.run import Progress, Run
from gradstats.runs.selection import KINDS
from gradstats.runs.tables import frame
from gradstats.settings import from_keywords, lists_settings


def replay_jobs(
    run: Run,
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    deadline: float = math.inf,
    folder: Path | None = None,
    keep: bool = False,
) -> list[dict[str, Any]]:
    """Rows of the jobs, in one pass over each kind of rows; see `replay_rows`.

    Several workers exchange their local gradients of the steps that all of them have. Past the
    deadline (of `time.monotonic`) the pass ends early: see `rows_expected`. A pass that ends early
    leaves its rows and states in the folder, and the next one continues after them; with `keep` a
    whole one does too.

    Raises:
        ValueError: fewer workers were captured, or a loss scale is not known.
    """
    skipped = [
        vars(ReplayRow(**job.labels, workers=workers, status=job.skipped))
        for job in jobs
        if job.skipped
    ]
    streams = [Stream.of(job, workers, folder) for job in jobs if not job.skipped]
    for kind in {stream.job.kind for stream in streams}:
        for each in run.beside(workers):
            each.check(kind)
    total = rows_expected(run, jobs, workers)
    pace = Pace()
    try:
        for _ in _passes(run, streams, workers, seed):
            if progress:
                progress(len(skipped) + rows_done(streams), total)
            if pace.due:
                with pace.kept():
                    write(streams, workers)
            if time.monotonic() > deadline:
                break
    finally:
        if keep or len(skipped) + rows_done(streams) < total:
            write(streams, workers)
    return skipped + _labelled(run, streams, workers)


def _passes(run: Run, streams: Sequence[Stream], workers: int, seed: int) -> Iterator[Stream]:
    """Advance the streams row by row; yield each after each of its rows."""
    for kind in KINDS:
        ours = [stream for stream in streams if stream.job.kind == kind]
        first = min((stream.position.done for stream in ours), default=0)
        if not ours:
            continue
        grads: Iterable[tuple[int, Tensor | Sequence[Tensor]]] = (
            run.gradients(kind, first=first)
            if workers == 1
            else run.together(workers, kind, first=first)
        )
        losses = run.losses(kind)
        for index, (step, grad) in enumerate(grads, first):
            given = Given.of(step, grad, seed, losses)
            for stream in ours:
                if stream.position.done == index:
                    stream.advance(given)
                    yield stream


def _labelled(run: Run, streams: Sequence[Stream], workers: int) -> list[dict[str, Any]]:
    """The rows of all streams with the columns that name them, one kind after the other."""
    rows = []
    for kind in KINDS:
        about: dict[str, Any] = {
            "workers": workers,
            "sampling_fraction": run.stream(kind).sampling_fraction,
            "left_out": run.reader(kind).left_out,
        }
        ours = [stream for stream in streams if stream.job.kind == kind]
        rows += [vars(ReplayRow(**job.labels, **row, **about)) for job, row in in_step_order(ours)]
    return rows


def rows_expected(run: Run, jobs: Sequence[Job], workers: int = 1) -> int:
    """How many rows a whole replay of the jobs has."""
    kinds = {job.kind for job in jobs if not job.skipped}
    steps = {kind: run.steps_together(workers, kind) for kind in kinds}
    return sum(1 if job.skipped else steps[job.kind] for job in jobs)


@lists_settings(ReplaySettings, ReplayKeywords)
def replay(
    run: Run | str | PathLike[str],
    compressors: str | Compressor | Iterable[str | Compressor],
    **settings: Unpack[ReplayKeywords],
) -> Any:
    """Replay captured gradients through compressors, as if the training had compressed them.

    A memory is the state that a method keeps from step to step, such as the residual of error
    feedback. Methods without a memory run on the full gradients. A method with a memory needs
    consecutive steps: it runs on the tracked elements (the same random elements, stored at every
    step) if the run has them, else on the full gradients if their steps are consecutive.

    Args:
        run: an open run, which selects worker, steps and parameters; or its path or URL.
        compressors: one or several compressors, each an instance or a spec, that is text such as
            "topk(0.01)" (see `gradstats.compressor`). A spec without a ratio, such as "topk", runs
            at each of `ratios`.
        **settings: fields of `gradstats.replaying.settings.ReplaySettings`:

            - ratios: one or several target ratios k/d (fraction of elements to keep), in (0, 1].
            - feedback: "none" (default), "ef" (error feedback), or a list of both.
            - granularity: "model" (default; the whole gradient is compressed as one vector),
              "parameter" (each parameter is compressed by itself), or a list of both.
            - workers: number of workers that exchange their local gradients (default 1); so many
              must have been captured.
            - seed: whole number from which random methods derive their random numbers; default 0.

    Returns:
        A pandas DataFrame with the columns of `gradstats.replaying.columns.ReplayRow`: one row per
        step, compressor, ratio, feedback and granularity. A compressor that cannot run on this
        run has one row, whose `status` gives the reason.

    Raises:
        ValueError: an unknown compressor, feedback or granularity, a ratio outside (0, 1], fewer
            workers were captured, or a loss scale is not known.
        TypeError: an unknown setting.

    Example:
        >>> import gradstats
        >>> table = gradstats.replay(gradstats.load_example(), "topk", ratios=0.01, feedback="ef")
        >>> sorted(set(table["compressor"]))
        ['topk(0.01)']
    """
    named = {"compressors": compressors, **settings}
    asked = from_keywords(ReplaySettings, named, verb="replay")
    run = opened(run)
    rows = replay_jobs(run, planned(run, asked), workers=asked.workers, seed=asked.seed)
    return frame(rows, ReplayRow).drop(columns="whole")


def timings(
    run: Run | str | PathLike[str],
    compressors: str | Compressor | Iterable[str | Compressor],
    *,
    ratios: float | Iterable[float] = RATIOS,
    seed: int = 0,
) -> Any:
    """Time encoding and decoding of the last finite gradient of a run, the whole model at once.

    Times are medians of several calls on this machine, after a warm-up.

    Args:
        run: an open run, which selects worker, steps and parameters; or its path or URL.
        compressors: one or several compressors, as in `gradstats.replay`. Name "topk" among them
            for `encode_over_topk`.
        ratios: one or several target ratios k/d of the compressors that name none.
        seed: whole number from which random methods derive their random numbers.

    Returns:
        A pandas DataFrame with the columns of `gradstats.replaying.columns.TimingRow`: one row per
        method without memory, one with error feedback, and one with the memory that it was given.
        Times are NaN where a method fails; `gradstats.replay` gives the reason.

    Raises:
        ValueError: an unknown compressor, or a ratio outside (0, 1].

    Example:
        >>> import gradstats
        >>> table = gradstats.timings(gradstats.load_example(), ["topk", "bf16"], ratios=0.01)
        >>> bool((table["encode_seconds"] > 0).all())
        True
    """
    given: Any = {"compressors": compressors, "ratios": ratios, "seed": seed}
    asked = from_keywords(ReplaySettings, given, verb="timings")
    rows = timing_rows(opened(run), asked.compressors, ratios=asked.ratios, seed=seed)
    return timing_table(rows)


def timing_rows(
    run: Run,
    specs: Iterable[str | Compressor],
    *,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
    known: Collection[tuple[str, str]] = (),
    done: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Encode and decode seconds on the last finite full row, whole model at once.

    A row per method, without memory, with error feedback, and with the memory it was given; a
    method that fails is a row without times.

    Args:
        run: an open run.
        specs: in the grammar, or instances.
        ratios: of the specs without one.
        seed: of the random methods.
        known: (compressor, feedback) of rows that are there already.
        done: called with each row as soon as it is measured.
    """
    missing = {key: each for key, each in timed(specs, ratios).items() if key not in known}
    grad = last_finite(run) if missing else None
    if grad is None:
        return []
    parts = run.parts(run.kind)
    rows = []
    for (_, feedback), compressor in missing.items():
        rows.append(vars(_timing(compressor, feedback, grad, parts, seed)))
        if done:
            done(rows[-1])
    return rows


def _timing(
    compressor: Compressor, feedback: str, grad: Tensor, parts: tuple[Part, ...], seed: int
) -> TimingRow:
    inner = _inner(compressor)
    return TimingRow(
        compressor=inner.spec,
        method=inner.name,
        target_ratio=inner.ratio_asked,
        feedback=feedback,
        collective=inner.contract.collective,
        rounds=inner.contract.rounds,
        n=grad.numel(),
        **time_compressor(_timeable(compressor, parts), grad, seed=seed),
    )


def _timeable(compressor: Compressor, parts: tuple[Part, ...]) -> Compressor:
    needs_matrices = "matrix" in compressor.contract.needs
    return in_parts(compressor, parts) if needs_matrices else compressor


def timed(
    specs: Iterable[str | Compressor], ratios: Sequence[float]
) -> dict[tuple[str, str], Compressor]:
    """What is timed, by compressor and feedback."""
    members: dict[tuple[str, str], Compressor] = {}
    for member, _ in map(without_parts, _made(specs, ratios)):
        inner = _inner(member)
        members |= {(inner.spec, "none"): inner, (inner.spec, "ef"): ErrorFeedback(inner)}
        if isinstance(member, Memory):
            members[inner.spec, member.label] = member
    return members


def last_finite(run: Run) -> Tensor | None:
    """The last gradient without NaN or inf; None if there is none."""
    for row in reversed(run.rows(run.kind)):
        _, grad = run.gradient(row, run.kind)
        if grad.isfinite().all():
            return grad
    return None
