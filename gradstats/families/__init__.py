"""Sparsity-inducing distributions, one per file; docs/adding-a-family.md shows how to add one."""

from __future__ import annotations

from gradstats.families.base import Family, FitError
from gradstats.families.dgamma import DGamma
from gradstats.families.dgenpareto import DGenPareto
from gradstats.families.dweibull import DWeibull
from gradstats.families.gennorm import GenNorm
from gradstats.families.laplace import Laplace
from gradstats.families.lognorm import LogNorm
from gradstats.families.normal import Normal
from gradstats.families.t import T

__all__ = [
    "FAMILIES",
    "DGamma",
    "DGenPareto",
    "DWeibull",
    "Family",
    "FitError",
    "GenNorm",
    "Laplace",
    "LogNorm",
    "Normal",
    "T",
    "family",
]

FAMILIES: tuple[type[Family], ...] = (
    Laplace,
    DGamma,
    DGenPareto,
    Normal,
    GenNorm,
    DWeibull,
    T,
    LogNorm,
)


def family(name: str) -> type[Family]:
    """Return the family of that name.

    Raises:
        ValueError: no such family.
    """
    families = {law.name: law for law in FAMILIES}
    if name not in families:
        raise ValueError(f"family must be one of {', '.join(families)}, got {name!r}")
    return families[name]
