"""Why a command that ran recorded nothing, in one line."""

from pathlib import Path

from gradstats.recording.notes import notes
from gradstats.recording.settings import CaptureSettings


def why_nothing(folder: Path, settings: CaptureSettings) -> str:
    """Explain why no row was recorded, and what to do.

    Args:
        folder: Of the command, in which its processes noted how far they came.
        settings: Of the recording.
    """
    failures = [str(each["fact"]) for each in notes(folder, "failed")]
    if failures:
        return failures[0]
    if not _any(folder, "torch"):
        return (
            "no process of the command imported torch.optim; is it a Python training, and does "
            "its Python read PYTHONPATH (python -I, -E and -S do not)?"
        )
    if not _any(folder, "optimizer"):
        return "torch was imported, but no torch.optim.Optimizer was made"
    if not _any(folder, "step"):
        return "an optimizer was made, but it took no step"
    if not _any(folder, "recording"):
        return "the optimizer took steps in a process that is not recorded"
    if settings.track or settings.summaries:
        return "the recording began, but no row was written; lines above say what was in the way"
    return _nothing_due(settings)


def _nothing_due(settings: CaptureSettings) -> str:
    fact = f"no step was due by full={settings.full!r}"
    return (
        f"{fact}, counted from step {settings.start_step}, and no element is tracked; use a "
        "smaller --full-every, or --track"
    )


def _any(folder: Path, kind: str) -> bool:
    return any(True for _ in notes(folder, kind))
