"""What a replay depends on, beside the run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from gradstats.ratios import RATIOS, ratios
from gradstats.settings import SettingError, at_least_one, check_fields, setting, several

if TYPE_CHECKING:
    from gradstats.compressors import Compressor

GRANULARITIES = ("model", "parameter")
FEEDBACKS = ("none", "ef")


class ReplayKeywords(TypedDict, total=False):
    """Keywords of `gradstats.replay` with the types that it accepts, for type checkers."""

    ratios: float | str | Iterable[float | str]
    feedback: str | Iterable[str]
    granularity: str | Iterable[str]
    workers: int
    seed: int


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
        None,
        "Compressors, such as topk, sidco-e(0.01); default: those that are supported, with "
        "twoshot(mxfp8) and twoshot(nvfp4).",
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
    workers: int = setting(1, "Number of workers that exchange their local gradients.", least=1)
    seed: int = setting(0, "Seed of the random methods.", least=0)

    def __post_init__(self) -> None:
        for name in ("feedback", "granularity"):
            object.__setattr__(self, name, several(getattr(self, name)))
        object.__setattr__(self, "ratios", ratios(self.ratios))
        object.__setattr__(self, "compressors", chosen(self.compressors))
        check_fields(self)
        at_least_one(self, "compressors", "feedback", "granularity")


def chosen(compressors: object) -> tuple[str | Compressor, ...]:
    """The compressors that are given; where it is None those supported, and two-shot exchanges.

    Raises:
        SettingError: One is neither a spec nor an instance.
    """
    from gradstats.compressors import DEPLOYED, SUPPORTED, Compressor

    given = (*SUPPORTED, *DEPLOYED) if compressors is None else several(compressors)
    for each in given:
        if not isinstance(each, str | Compressor):
            rule = "must be specs such as topk(0.01), or instances"
            raise SettingError("compressors", f"{rule}, got {each!r}")
    return given
