"""What a fit depends on, beside the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradstats.ratios import RATIOS, check_ratio
from gradstats.settings import check_choices, setting, several

if TYPE_CHECKING:
    from gradstats.compressors import Compressor
    from gradstats.families import Family

METHODS = ("mle", "moments")
KINDS = ("full", "track")


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
        0, "Replicates of a parametric bootstrap of 2,000 elements (slow); 0: none."
    )
    compensated: Compressor | None = setting(
        None, "Fit gradient + residual of this compressor with error feedback."
    )
    kind: str | None = setting(None, "Rows to fit: full or track; default: full where there are.")
    stride: int = setting(1, "Rows from one fit to the next; thresholds are followed over all.")
    seed: int = setting(0, "Seed of the compressor.")

    def __post_init__(self) -> None:
        from gradstats.compressors import compressor

        self._set(families=chosen_families(self.families), ratios=several(self.ratios))
        spec: Any = self.compensated
        self._set(compensated=compressor(spec) if isinstance(spec, str) else spec)
        for ratio in self.ratios:
            check_ratio("ratio", ratio)
        for name in ("families", "ratios"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one, got none")
        for name, least in (("bootstrap", 0), ("stride", 1), ("seed", 0)):
            number = getattr(self, name)
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be a whole number from {least}, got {number!r}")
        if self.kind not in (None, *KINDS, "summary"):
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for each in self.families:
            each.check_method(self.method)
        check_choices(self)

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
    blocks: int = setting(100, "Blocks of contiguous elements.")
    kind: str | None = setting(None, "Rows to read: full or track; default: full where there are.")
    most_rows: int = setting(32, "Largest number of captured rows that are read, evenly spaced.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", chosen_families(self.families))
        if len(self.families) < 2:
            names = ", ".join(each.name for each in self.families) or "none"
            raise ValueError(f"families must name at least two, got {names}")
        for name, least in (("blocks", 2), ("most_rows", 1)):
            number = getattr(self, name)
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be a whole number from {least}, got {number!r}")
        if self.kind not in (None, *KINDS, "summary"):
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        check_choices(self)
        for each in self.families:
            each.check_method(self.method)


def chosen_families(given: Any) -> tuple[type[Family], ...]:
    """Families of names and classes; None: all of the package.

    Raises:
        ValueError: an unknown name, a class that is no family, or two families of one name.
    """
    from gradstats.families import FAMILIES, family

    if given is None:
        return FAMILIES
    chosen = dict.fromkeys(family(each) for each in several(given))
    by_name: dict[str, type[Family]] = {}
    for each in chosen:
        other = by_name.setdefault(each.name, each)
        if other is not each:
            pair = " and ".join(f"{one.__module__}:{one.__qualname__}" for one in (other, each))
            raise ValueError(f"families must have different names, got {each.name!r} of {pair}")
    return tuple(chosen)
