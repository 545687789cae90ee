"""Replay a run: which compressors run on which of its rows, and the tables that come of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gradstats import extras
from gradstats.compressors import (
    Compressor,
    ErrorFeedback,
    Memory,
    Part,
    PerParameter,
    compressors,
)
from gradstats.fitting import RATIOS
from gradstats.replaying import NOT_MEASURED, replay_rows, time_compressor
from gradstats.runs import Progress, Run

GRANULARITIES = ("model", "parameter")
FEEDBACKS = ("none", "ef")
UNDER_A_SCALE = (
    "A DDP communication hook gets gradients multiplied by the loss scale, unless it is told of "
    "the GradScaler: float16 loses less there than in a replay."
)
WHOLE = "skipped: it needs whole matrices at these steps, which tracked elements are not"


@dataclass(frozen=True)
class Job:
    """One compressor to replay, and on which rows.

    Attributes:
        compressor: ready to run.
        feedback: "none", or the memory: "ef", "ef(gamma=0.7)", "ef21" and so on.
        granularity: "model" or "parameter".
        kind: the rows it runs on, "full" or "track".
        skipped: why it cannot run; "" if it can.
    """

    compressor: Compressor
    feedback: str
    granularity: str
    kind: str
    skipped: str = ""

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that name the job."""
        inner = _inner(self.compressor)
        return {
            "compressor": inner.spec,
            "method": inner.name,
            "target_ratio": inner.ratio_asked,
            "feedback": self.feedback,
            "granularity": self.granularity,
            "rows": self.kind,
            "wants_feedback": inner.contract.wants_feedback,
        }


def _inner(compressor: Compressor) -> Compressor:
    """The method itself, out of its memory and its parts."""
    while isinstance(compressor, Memory | PerParameter):
        compressor = compressor.compressor
    return compressor


def plan(
    run: Run,
    specs: Iterable[str | Compressor],
    *,
    ratios: Sequence[float] = RATIOS,
    feedback: Sequence[str] = ("none",),
    granularity: Sequence[str] = ("model",),
) -> list[Job]:
    """The jobs that a replay comes to: specs × ratios × feedback × granularity.

    Methods without memory run on full rows, methods with memory on consecutive ones: the tracked
    elements. Methods that need matrices run on whole parameters.

    Raises:
        ValueError: unknown compressor, feedback or granularity.
    """
    for name, values, known in (
        ("feedback", feedback, FEEDBACKS),
        ("granularity", granularity, GRANULARITIES),
    ):
        unknown = ", ".join(sorted(set(values) - set(known)))
        if unknown or not values:
            raise ValueError(f"{name} must be among {', '.join(known)}, got {unknown or 'none'}")
    made = _made(specs, ratios)
    jobs = [
        _job(run, compressor, each_feedback, each_granularity)
        for each_granularity in granularity
        for each_feedback in feedback
        for compressor in made
    ]
    return list({tuple(job.labels.items()): job for job in jobs}.values())


def _job(run: Run, compressor: Compressor, feedback: str, granularity: str) -> Job:
    if feedback == "ef" and not isinstance(compressor, Memory):
        compressor = ErrorFeedback(compressor)
    matrices = "matrix" in compressor.contract.needs
    if matrices:
        granularity = "parameter"  # a vector has no rank
    kind, skipped = _rows_for(run, compressor, matrices)
    if isinstance(compressor, Memory):
        feedback = compressor.label
    if granularity == "parameter":
        compressor = _in_parts(compressor, run.parts(kind))
    return Job(compressor, feedback, granularity, kind, skipped)


def _in_parts(compressor: Compressor, parts: tuple[Part, ...]) -> Compressor:
    """The method on every part; a memory stays outermost."""
    if isinstance(compressor, Memory):
        inside: dict[str, Any] = {"compressor": PerParameter(compressor.compressor, parts)}
        return replace(compressor, **inside)  # type: ignore[type-var]
    return PerParameter(compressor, parts)


def _rows_for(run: Run, compressor: Compressor, matrices: bool) -> tuple[str, str]:
    """The rows that a method can run on, and why it cannot."""
    # without feedback a matrix method remembers where to start, which an older step also tells
    if not compressor.contract.has_memory or (matrices and not isinstance(compressor, Memory)):
        return run.kind, WHOLE if matrices and run.kind != "full" else ""
    try:
        kind = run.consecutive
    except ValueError as error:
        return "track", f"skipped: {error}"
    return kind, WHOLE if matrices and kind != "full" else ""


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
        A pandas DataFrame with the columns of `gradstats.replaying.measure` and of `Job.labels`,
        sampling_fraction and left_out, the parameters that tracked rows do not hold, by name.
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
    return _in_parts(compressor, parts) if needs_matrices else compressor


def _timed(
    specs: Iterable[str | Compressor], ratios: Sequence[float]
) -> dict[tuple[str, str], Compressor]:
    """What is timed, by method and memory."""
    found: dict[tuple[str, str], Compressor] = {}
    for made in _made(specs, ratios):
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


def _made(specs: Iterable[str | Compressor], ratios: Sequence[float]) -> list[Compressor]:
    return [
        compressor
        for spec in specs
        for compressor in (compressors(spec, ratios) if isinstance(spec, str) else [spec])
    ]
