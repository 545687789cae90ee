"""What a report depends on, beside the run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, TypedDict

from gradstats.fitting.settings import chosen_families
from gradstats.network import Network, check_network
from gradstats.ratios import RATIOS, ratios
from gradstats.replaying.settings import chosen
from gradstats.settings import SettingError, at_least_one, check_fields, seconds, setting

if TYPE_CHECKING:
    from gradstats.compressors import Compressor
    from gradstats.families import Family
    from gradstats.runs import Run


class ReportKeywords(TypedDict, total=False):
    """Keywords of `gradstats.report` with the types that it accepts, for type checkers."""

    budget: float | str
    by: str
    families: str | type[Family] | Iterable[str | type[Family]] | None
    ratios: float | str | Iterable[float | str]
    compressors: str | Compressor | Iterable[str | Compressor] | None
    network: Network | None
    factorised: Run | str | PathLike[str] | None
    seed: int


@dataclass(frozen=True)
class ReportSettings:
    """Settings of a report; one value given for several is a tuple of one.

    Raises:
        ValueError: A negative budget, or an unknown family.
    """

    budget: float = setting(
        300.0, "Seconds after which no further replay begins; the report names what was skipped."
    )
    by: str = setting(
        "module-type",
        "Groups of the second table: model, module-type, parameter, or a regular expression.",
    )
    families: tuple[type[Family], ...] = setting(
        None, "Distributions to fit: names, my_module:MyFamily, scipy:NAME; default: all."
    )
    ratios: tuple[float, ...] = setting(RATIOS, "Target ratios k/d, the fraction kept.")
    compressors: tuple[str | Compressor, ...] = setting(
        None,
        "Compressors, such as topk, sidco-e(0.01); default: those that are supported, with "
        "twoshot(mxfp8) and twoshot(nvfp4).",
    )
    network: Network = setting(None, "Network that exchanges are projected on.")
    factorised: Run | None = setting(None, "A captured run of the same model in factors.")
    seed: int = setting(0, "Seed of the random methods.", least=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", seconds("budget", self.budget))
        object.__setattr__(self, "ratios", ratios(self.ratios))
        object.__setattr__(self, "families", chosen_families(self.families))
        object.__setattr__(self, "compressors", chosen(self.compressors))
        object.__setattr__(self, "network", check_network(self.network))
        object.__setattr__(self, "factorised", _opened(self.factorised))
        check_fields(self)
        at_least_one(self, "compressors", "families", "ratios")
        if not isinstance(self.by, str):
            raise SettingError("by", f"must be the name of a grouping, got {self.by!r}")


def _opened(factorised: Run | str | PathLike[str] | None) -> Run | None:
    from gradstats.runs import opened

    return None if factorised is None else opened(factorised, "factorised")
