"""gradstats (gradient statistics): what do gradients look like, and what should carry them?

Public names are resolved when they are first used, so that importing gradstats costs next to
nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradstats.compressors import compressor
    from gradstats.fitting.by_group import sidco_thresholds, structure, threshold_reuse
    from gradstats.fitting.over_steps import ranks, series
    from gradstats.fitting.pairs import compare_distributions
    from gradstats.fitting.ranking import best_distribution
    from gradstats.fitting.run import fit
    from gradstats.recording import at_steps, capture, close_all, every, log_spaced, window
    from gradstats.replaying.equal_bits import equal_bits
    from gradstats.replaying.factorised import factorised_rows
    from gradstats.replaying.ranking import methods
    from gradstats.replaying.run import replay, timings
    from gradstats.reporting.report import report
    from gradstats.runs import open
    from gradstats.runs.examples import load_example
    from gradstats.store import GradientStore, StoreFormatError
    from gradstats.summary import (
        Summary,
        summarize,
        summarize_counts,
        summarize_histogram,
        summarize_segments,
    )
    from gradstats.thresholds import sidco_threshold

__version__ = "0.1.0"

__all__ = [
    "GradientStore",
    "StoreFormatError",
    "Summary",
    "at_steps",
    "best_distribution",
    "capture",
    "close_all",
    "compare_distributions",
    "compressor",
    "equal_bits",
    "every",
    "factorised_rows",
    "fit",
    "load_example",
    "log_spaced",
    "methods",
    "open",
    "ranks",
    "replay",
    "report",
    "series",
    "sidco_threshold",
    "sidco_thresholds",
    "structure",
    "summarize",
    "summarize_counts",
    "summarize_histogram",
    "summarize_segments",
    "threshold_reuse",
    "timings",
    "window",
]

_HOMES = {
    "compressor": "compressors",
    "compare_distributions": "fitting.pairs",
    "sidco_thresholds": "fitting.by_group",
    "structure": "fitting.by_group",
    "threshold_reuse": "fitting.by_group",
    "ranks": "fitting.over_steps",
    "series": "fitting.over_steps",
    "best_distribution": "fitting.ranking",
    "fit": "fitting.run",
    "at_steps": "recording",
    "capture": "recording",
    "close_all": "recording",
    "every": "recording",
    "log_spaced": "recording",
    "window": "recording",
    "equal_bits": "replaying.equal_bits",
    "factorised_rows": "replaying.factorised",
    "methods": "replaying.ranking",
    "replay": "replaying.run",
    "timings": "replaying.run",
    "report": "reporting.report",
    "load_example": "runs.examples",
    "open": "runs",
    "GradientStore": "store",
    "StoreFormatError": "store",
    "Summary": "summary",
    "summarize": "summary",
    "summarize_counts": "summary",
    "summarize_histogram": "summary",
    "summarize_segments": "summary",
    "sidco_threshold": "thresholds",
}
_MODULES = (
    "compressors",
    "ddp_hooks",
    "exchange",
    "families",
    "integrations",
    "kernels",
    "lowrank",
    "metrics",
    "network",
    "over_steps",
    "plot",
    "recording",
    "runs",
    "store",
    "summary",
    "testing",
    "thresholds",
)
_ROOMS = {"over_steps": "fitting.over_steps"}  # modules that lie in another one


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"gradstats.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"gradstats.{_ROOMS.get(name, name)}")
    raise AttributeError(f"module 'gradstats' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
