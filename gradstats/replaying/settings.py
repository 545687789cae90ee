"""What a replay depends on, beside the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradstats.ratios import RATIOS
from gradstats.settings import check_choices, setting, several

if TYPE_CHECKING:
    from gradstats.compressors import Compressor

GRANULARITIES = ("model", "parameter")
FEEDBACKS = ("none", "ef")


@dataclass(frozen=True)
class ReplaySettings:
    """Settings of a replay; one value given for several is a tuple of one.

    Raises:
        ValueError: An unknown feedback or granularity, or none.

    Example:
        >>> ReplaySettings("topk", ratios=0.01, feedback="ef").feedback
        ('ef',)
    """

    compressors: tuple[str | Compressor, ...] = setting(
        None, "Compressors, such as topk, sidco-e(0.01); default: those that are supported."
    )
    ratios: tuple[float, ...] = setting(
        RATIOS, "Target ratios k/d, the fraction kept, of compressors that name none."
    )
    feedback: tuple[str, ...] = setting(
        ("none",), "Without and with error feedback.", choices=FEEDBACKS
    )
    granularity: tuple[str, ...] = setting(
        ("model",), "Threshold per model, per parameter, or both.", choices=GRANULARITIES
    )
    workers: int = setting(1, "Number of workers that exchange their local gradients.")
    seed: int = setting(0, "Seed of the random methods.")

    def __post_init__(self) -> None:
        for name in ("ratios", "feedback", "granularity"):
            object.__setattr__(self, name, several(getattr(self, name)))
        object.__setattr__(self, "compressors", chosen(self.compressors))
        for name in ("feedback", "granularity"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one, got none")
        check_choices(self)


def chosen(compressors: object) -> tuple[str | Compressor, ...]:
    """The compressors that are given, those supported where it is None."""
    from gradstats.compressors import SUPPORTED

    return tuple(SUPPORTED) if compressors is None else several(compressors)
