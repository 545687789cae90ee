"""What a fit depends on, beside the run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from gradstats.ratios import RATIOS, ratios
from gradstats.settings import (
    SettingError,
    at_least_one,
    check_fields,
    naming,
    setting,
    several,
)

if TYPE_CHECKING:
    from gradstats.compressors import Compressor
    from gradstats.families import Family

METHODS = ("mle", "moments")
KINDS = ("full", "track")


class FitKeywords(TypedDict, total=False):
    """Keywords of `gradstats.fit` with the types that it accepts, for type checkers."""

    by: str
    families: str | type[Family] | Iterable[str | type[Family]] | None
    ratios: float | str | Iterable[float | str]
    method: str
    bootstrap: int
    compensated: str | Compressor | None
    kind: str | None
    stride: int
    seed: int


class PairKeywords(TypedDict, total=False):
    """Keywords of `gradstats.compare_distributions`, for type checkers."""

    by: str
    families: str | type[Family] | Iterable[str | type[Family]] | None
    method: str
    correction: str
    blocks: int
    kind: str | None
    most_rows: int


@dataclass(frozen=True)
class FitSettings:
    """Settings of a fit; names and specs become families and compressors, one value a tuple.

    Raises:
        ValueError: An unknown family, method or compressor, none, or a number out of its range.

    Example:
        >>> FitSettings(families="laplace", ratios=0.01).ratios
        (0.01,)
    """

    by: str = setting(
        "model",
        "Groups: model, module-type, parameter, or a regular expression found in names.",
    )
    families: tuple[type[Family], ...] = setting(
        None, "Distributions to fit: names, my_module:MyFamily, scipy:NAME; default: all."
    )
    ratios: tuple[float, ...] = setting(RATIOS, "Target ratios k/d, the fraction kept.")
    method: str = setting("mle", "How families are fitted.", choices=METHODS)
    bootstrap: int = setting(
        0, "Replicates of a parametric bootstrap of 2,000 elements (slow); 0: none.", least=0
    )
    compensated: Compressor | None = setting(
        None, "Fit gradient + residual of this compressor with error feedback."
    )
    kind: str | None = setting(None, "Rows to fit: full or track; default: full where there are.")
    stride: int = setting(
        1, "Rows from one fit to the next; thresholds are followed over all.", least=1
    )
    seed: int = setting(0, "Seed of the compressor.", least=0)

    def __post_init__(self) -> None:
        self._set(families=chosen_families(self.families), ratios=ratios(self.ratios))
        self._set(compensated=_compressor(self.compensated))
        check_fields(self)
        at_least_one(self, "families", "ratios")
        _check_rows_and_method(self)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def suffix(self) -> str:
        """Of the names of the tables: those of parts and of compensated gradients stand apart."""
        if self.compensated is not None:
            return "_compensated"
        return "" if self.by == "model" else "_by_part"


@dataclass(frozen=True)
class PairSettings:
    """Settings of a comparison of families in pairs; names become families.

    Raises:
        ValueError: Fewer than two families, or a setting out of its range.
    """

    by: str = setting(
        "model",
        "Groups: model, module-type, parameter, or a regular expression found in names.",
    )
    families: tuple[type[Family], ...] = setting(None, "Families to compare; default: all.")
    method: str = setting("mle", "How families are fitted.", choices=METHODS)
    correction: str = setting(
        "bic", "Correction for the numbers of parameters.", choices=("none", "aic", "bic")
    )
    blocks: int = setting(100, "Blocks of contiguous elements.", least=2)
    kind: str | None = setting(None, "Rows to read: full or track; default: full where there are.")
    most_rows: int = setting(
        32, "Largest number of captured rows that are read, evenly spaced.", least=1
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", chosen_families(self.families))
        if len(self.families) < 2:
            names = ", ".join(each.name for each in self.families) or "none"
            raise SettingError("families", f"must name at least two, got {names}")
        check_fields(self)
        _check_rows_and_method(self)

    @classmethod
    def of(cls, settings: FitSettings) -> PairSettings:
        """The comparison of the families of a fit, on the same groups and rows."""
        return cls(settings.by, settings.families, settings.method, kind=settings.kind)


def _check_rows_and_method(settings: FitSettings | PairSettings) -> None:
    if not isinstance(settings.by, str):
        raise SettingError("by", f"must be the name of a grouping, got {settings.by!r}")
    if settings.kind not in (None, *KINDS, "summary"):
        raise SettingError("kind", f"must be one of {', '.join(KINDS)}, got {settings.kind!r}")
    with naming("method"):
        for each in settings.families:
            each.check_method(settings.method)


def chosen_families(given: Any) -> tuple[type[Family], ...]:
    """Families of names and classes; None: all of the package.

    Raises:
        ValueError: an unknown name, a class that is no family, or two families of one name.
    """
    from gradstats.families import FAMILIES, family

    if given is None:
        return FAMILIES
    with naming("families"):
        chosen = dict.fromkeys(family(each) for each in several(given))
    by_name: dict[str, type[Family]] = {}
    for each in chosen:
        other = by_name.setdefault(each.name, each)
        if other is not each:
            pair = " and ".join(f"{one.__module__}:{one.__qualname__}" for one in (other, each))
            raise SettingError(
                "families", f"must have different names, got {each.name!r} of {pair}"
            )
    return tuple(chosen)


def _compressor(given: Any) -> Compressor | None:
    from gradstats.compressors import Compressor, compressor

    with naming("compensated"):
        chosen = compressor(given) if isinstance(given, str) else given
    if chosen is not None and not isinstance(chosen, Compressor):
        raise SettingError("compensated", f"must be a compressor or its spec, got {given!r}")
    return chosen
