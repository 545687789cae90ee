"""Replay a run: which compressors run on which of its rows, and the tables that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradstats import extras
from gradstats.compressors import Compressor, ErrorFeedback, PerParameter, compressors
from gradstats.fitting import RATIOS
from gradstats.replaying import NOT_MEASURED, replay_rows, time_compressor
from gradstats.runs import Progress, Run

GRANULARITIES = ("model", "parameter")
FEEDBACKS = ("none", "ef")


@dataclass(frozen=True)
class Job:
    """One compressor to replay, and on which rows.

    Attributes:
        compressor: ready to run.
        feedback: "none" or "ef".
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
        }


def _inner(compressor: Compressor) -> Compressor:
    """The method itself, out of its feedback and its parts."""
    while isinstance(compressor, ErrorFeedback | PerParameter):
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
    elements.

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
    made = [
        compressor
        for spec in specs
        for compressor in (compressors(spec, ratios) if isinstance(spec, str) else [spec])
    ]
    jobs = [
        _job(run, compressor, each_feedback, each_granularity)
        for each_granularity in granularity
        for each_feedback in feedback
        for compressor in made
    ]
    return list({tuple(job.labels.items()): job for job in jobs}.values())


def _job(run: Run, compressor: Compressor, feedback: str, granularity: str) -> Job:
    if isinstance(compressor, ErrorFeedback):
        compressor, feedback = compressor.compressor, "ef"
    memory = compressor.contract.has_memory or feedback == "ef"
    kind, skipped = _rows_for(run, memory)
    if granularity == "parameter":
        compressor = PerParameter(compressor, run.parts(kind))
    if feedback == "ef":
        compressor = ErrorFeedback(compressor)
    return Job(compressor, feedback, granularity, kind, skipped)


def _rows_for(run: Run, memory: bool) -> tuple[str, str]:
    if not memory:
        return run.kind, ""
    for kind in ("track", "full"):
        steps = run.stream(kind).steps[run.rows(kind)]
        if len(steps) > 1 and (np.diff(steps) == 1).mean() > 0.99:
            return kind, ""
    return "track", "skipped: a method with memory needs consecutive steps; capture with track="


def replay_jobs(
    run: Run, jobs: Sequence[Job], *, seed: int = 0, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Rows of the jobs, in one pass over each kind of rows; see `replaying.replay_rows`."""
    rows = [
        {**job.labels, "step": -1, **NOT_MEASURED, "n": 0, "status": job.skipped}
        for job in jobs
        if job.skipped
    ]
    todo = [job for job in jobs if not job.skipped]
    total = sum(len(run.rows(job.kind)) for job in todo)
    for kind in ("full", "track"):
        here = [job for job in todo if job.kind == kind]
        if not here:
            continue
        fraction = run.stream(kind).sampling_fraction
        grads = run.gradients(kind)
        for row in replay_rows(grads, [job.compressor for job in here], seed=seed):
            labels = here[row.pop("index")].labels
            rows.append({**labels, **row, "sampling_fraction": fraction})
            if progress:
                progress(len(rows), total)
    return rows


def replay(
    run: Run,
    compressors: Iterable[str | Compressor],
    *,
    ratios: Sequence[float] = RATIOS,
    feedback: Sequence[str] = ("none",),
    granularity: Sequence[str] = ("model",),
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
        seed: of the random methods.

    Returns:
        A pandas DataFrame with the columns of `gradstats.replaying.measure` and of `Job.labels`.
    """
    jobs = plan(run, compressors, ratios=ratios, feedback=feedback, granularity=granularity)
    return extras.load("pandas").DataFrame(replay_jobs(run, jobs, seed=seed))


def timing_rows(
    run: Run, specs: Iterable[str], *, ratios: Sequence[float] = RATIOS, seed: int = 0
) -> list[dict[str, Any]]:
    """Encode and decode seconds on the last finite full row, whole model at once, a row a method.

    Feedback is left out: it adds one pass over the gradient to every method alike.
    """
    kind, _ = _rows_for(run, memory=False)
    finite = [grad for _, grad in run.gradients(kind) if grad.isfinite().all()][-1:]
    made = [_inner(compressor) for spec in specs for compressor in compressors(spec, ratios)]
    return [
        {
            "compressor": compressor.spec,
            "method": compressor.name,
            "target_ratio": compressor.ratio_asked,
            "collective": compressor.contract.collective,
            "n": grad.numel(),
            **time_compressor(compressor, grad, seed=seed),
        }
        for grad in finite
        for compressor in {each.spec: each for each in made}.values()
    ]
