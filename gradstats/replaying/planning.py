"""Which compressors run on which rows of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from gradstats.compressors import (
    Compressor,
    ErrorFeedback,
    Memory,
    PerParameter,
    compressors,
)
from gradstats.compressors.wrappers.per_parameter import in_parts, without_parts
from gradstats.ratios import RATIOS
from gradstats.replaying.columns import Labels
from gradstats.replaying.settings import ReplaySettings
from gradstats.runs.run import Run
from gradstats.settings import at_least_one, naming, several

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
        _, rule = without_parts(self.compressor)
        labels = Labels(
            compressor=inner.spec,
            method=inner.name,
            target_ratio=inner.ratio_asked,
            feedback=self.feedback,
            granularity=self.granularity,
            dense="" if rule is None else str(rule),
            rows=self.kind,
            wants_feedback=inner.contract.wants_feedback,
        )
        return vars(labels)


def _inner(compressor: Compressor) -> Compressor:
    """The method itself, out of its memory and its parts."""
    while isinstance(compressor, Memory | PerParameter):
        compressor = compressor.compressor
    return compressor


def plan(
    run: Run,
    specs: str | Compressor | Iterable[str | Compressor],
    *,
    ratios: Sequence[float] = RATIOS,
    feedback: Sequence[str] = ("none",),
    granularity: Sequence[str] = ("model",),
) -> list[Job]:
    """The jobs that a replay comes to: specs × ratios × feedback × granularity.

    Methods without memory run on full rows, methods with memory on consecutive ones: the tracked
    elements. Methods that need matrices run on whole parameters, and so does what is written
    `per-parameter(…)`, with its own rule for what goes dense.

    Raises:
        ValueError: unknown compressor, feedback or granularity.
    """
    given = (several(specs), several(ratios), several(feedback), several(granularity))
    asked = ReplaySettings(*given)
    members = _made(asked.compressors, asked.ratios)
    jobs = [
        _job(run, compressor, each_feedback, each_granularity)
        for each_granularity in asked.granularity
        for each_feedback in asked.feedback
        for compressor in members
    ]
    return list({tuple(job.labels.items()): job for job in jobs}.values())


def planned(run: Run, settings: ReplaySettings) -> list[Job]:
    """The jobs of a replay's settings.

    Raises:
        SettingError: There is no compressor.
    """
    at_least_one(settings, "compressors")
    return plan(
        run,
        settings.compressors,
        ratios=settings.ratios,
        feedback=settings.feedback,
        granularity=settings.granularity,
    )


def _job(run: Run, compressor: Compressor, feedback: str, granularity: str) -> Job:
    compressor, rule = without_parts(compressor)
    if feedback == "ef" and not isinstance(compressor, Memory):
        compressor = ErrorFeedback(compressor)
    matrices = "matrix" in compressor.contract.needs
    if matrices or rule:
        granularity = "parameter"  # a vector has no rank
    kind, skipped = _rows_for(run, compressor, matrices)
    if isinstance(compressor, Memory):
        feedback = compressor.label
    if granularity == "parameter":
        compressor = in_parts(compressor, run.parts(kind, rule), rule)
    return Job(compressor, feedback, granularity, kind, skipped)


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


def _made(specs: Iterable[str | Compressor], ratios: Sequence[float]) -> list[Compressor]:
    with naming("compressors"):
        return [
            compressor
            for spec in specs
            for compressor in (compressors(spec, ratios) if isinstance(spec, str) else [spec])
        ]


def ours(member: object) -> bool:
    """Whether a compressor is made of classes of this package alone: its name says all of it."""
    if not type(member).__module__.startswith("gradstats."):
        return False
    inside = (getattr(member, each.name) for each in fields(cast("Any", member)))
    return all(ours(each) for each in inside if isinstance(each, Compressor))
