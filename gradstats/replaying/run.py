"""Replay a run: which compressors run on which of its rows, and the tables that come of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from gradstats import extras
from gradstats.compressors import (
    Compressor,
    ErrorFeedback,
    Memory,
    Part,
)
from gradstats.compressors.wrappers.per_parameter import in_parts, without_parts
from gradstats.ratios import RATIOS
from gradstats.replaying.folding import NOT_MEASURED, replay_rows
from gradstats.replaying.planning import Job, _inner, _made, plan
from gradstats.replaying.timing import time_compressor
from gradstats.runs.run import Progress, Run


def replay_jobs(
    run: Run,
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    deadline: float = math.inf,
) -> list[dict[str, Any]]:
    """Rows of the jobs, in one pass over each kind of rows; see `replaying.replay_rows`.

    Several workers exchange their local gradients of the steps that all of them have. Past the
    deadline (of `time.monotonic`) the pass ends early: see `rows_expected`.

    Raises:
        ValueError: fewer workers were captured, or a loss scale is not known.
    """
    rows = [
        {**job.labels, "workers": workers, "step": -1, **NOT_MEASURED, "n": 0}
        | {"status": job.skipped}
        for job in jobs
        if job.skipped
    ]
    todo = [job for job in jobs if not job.skipped]
    for kind in {job.kind for job in todo}:
        for each in run.beside(workers):
            each.check(kind)
    total = rows_expected(run, jobs)
    for kind in ("full", "track"):
        here = [job for job in todo if job.kind == kind]
        if not here or (rows and time.monotonic() > deadline):
            continue
        fraction, left_out = run.stream(kind).sampling_fraction, run.reader(kind).left_out
        grads = run.gradients(kind) if workers == 1 else run.together(workers, kind)
        losses = _losses(run, kind)
        made = [job.compressor for job in here]
        for row in replay_rows(grads, made, seed=seed, losses=losses):
            labels = {**here[row.pop("index")].labels, "workers": workers}
            rows.append({**labels, **row, "sampling_fraction": fraction, "left_out": left_out})
            if progress:
                progress(len(rows), total)
            if time.monotonic() > deadline:
                break
    return rows


def _losses(run: Run, kind: str) -> dict[int, float]:
    """The losses that were told at capture, by step."""
    stream = run.stream(kind)
    told = stream.coordinates["loss"]
    return {int(stream.steps[row]): float(told[row]) for row in run.rows(kind)}


def rows_expected(run: Run, jobs: Sequence[Job]) -> int:
    """How many rows a whole replay of the jobs has."""
    return sum(1 if job.skipped else len(run.rows(job.kind)) for job in jobs)


def replay(
    run: Run,
    compressors: Iterable[str | Compressor],
    *,
    ratios: Sequence[float] = RATIOS,
    feedback: Sequence[str] = ("none",),
    granularity: Sequence[str] = ("model",),
    workers: int = 1,
    seed: int = 0,
) -> Any:
    """Replay captured gradients through compressors: one line a step and compressor.

    Args:
        run: an open run.
        compressors: specs in the grammar or instances; a spec without a ratio runs at each of
            `ratios`.
        ratios: target ratios, each in (0, 1].
        feedback: "none", "ef" (error feedback) or both.
        granularity: "model" (one threshold for all), "parameter" (one for each) or both.
        workers: how many exchange; their local gradients must have been captured.
        seed: of the random methods.

    Returns:
        A pandas DataFrame with the columns of `gradstats.replaying.folding.measure` and of
        `Job.labels`, sampling_fraction and left_out, the parameters that tracked rows do not
        hold, by name.
    """
    jobs = plan(run, compressors, ratios=ratios, feedback=feedback, granularity=granularity)
    return extras.load("pandas").DataFrame(replay_jobs(run, jobs, workers=workers, seed=seed))


def timing_rows(
    run: Run,
    specs: Iterable[str | Compressor],
    *,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Encode and decode seconds on the last finite full row, whole model at once.

    A row a method, without memory, with error feedback, and with the memory it was given; a method
    that fails is a row without times.
    """
    grad = last_finite(run)
    if grad is None:
        return []
    parts = run.parts(run.kind)
    return [
        {
            "compressor": inner.spec,
            "method": inner.name,
            "target_ratio": inner.ratio_asked,
            "feedback": feedback,
            "collective": inner.contract.collective,
            "rounds": inner.contract.rounds,
            "n": grad.numel(),
            **time_compressor(_timeable(compressor, parts), grad, seed=seed),
        }
        for (_, feedback), compressor in _timed(specs, ratios).items()
        for inner in [_inner(compressor)]
    ]


def _timeable(compressor: Compressor, parts: tuple[Part, ...]) -> Compressor:
    needs_matrices = "matrix" in compressor.contract.needs
    return in_parts(compressor, parts) if needs_matrices else compressor


def _timed(
    specs: Iterable[str | Compressor], ratios: Sequence[float]
) -> dict[tuple[str, str], Compressor]:
    """What is timed, by method and memory."""
    found: dict[tuple[str, str], Compressor] = {}
    for made, _ in map(without_parts, _made(specs, ratios)):
        inner = _inner(made)
        found |= {(inner.spec, "none"): inner, (inner.spec, "ef"): ErrorFeedback(inner)}
        if isinstance(made, Memory):
            found[inner.spec, made.label] = made
    return found


def last_finite(run: Run) -> Tensor | None:
    """The last gradient without NaN or inf; None if there is none."""
    for row in reversed(run.rows(run.kind)):
        _, grad = run.gradient(row, run.kind)
        if grad.isfinite().all():
            return grad
    return None
