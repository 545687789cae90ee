"""Sparsity-inducing distributions, one per file; docs/adding-a-family.md shows how to add one."""

from __future__ import annotations

from gradstats.families.base import (
    Family,
    FitError,
    Floats,
    did_you_mean,
    magnitudes,
    require,
    shares,
)
from gradstats.families.dgamma import DGamma
from gradstats.families.dgenpareto import DGenPareto
from gradstats.families.dweibull import DWeibull
from gradstats.families.gennorm import GenNorm
from gradstats.families.laplace import Laplace
from gradstats.families.likelihood import highest
from gradstats.families.lognorm import LogNorm
from gradstats.families.naming import check_class, imported, spec_of
from gradstats.families.normal import Normal
from gradstats.families.symmetric import symmetric_law
from gradstats.families.t import T

__all__ = [
    "FAMILIES",
    "DGamma",
    "DGenPareto",
    "DWeibull",
    "Family",
    "FitError",
    "Floats",
    "GenNorm",
    "Laplace",
    "LogNorm",
    "Normal",
    "T",
    "family",
    "highest",
    "magnitudes",
    "require",
    "shares",
    "spec_of",
    "symmetric_law",
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


def family(name: str | type[Family]) -> type[Family]:
    """Look up a family by name.

    Args:
        name: The family's name, such as "laplace"; names are scipy's, but for "dgenpareto".
            `"my_module:MyFamily"` is a class of your own, `"scipy:hypsecant"` any continuous
            distribution of scipy.stats, as a reference. A class is returned as it is.

    Raises:
        ValueError: No family has this name; the error names the nearest one. Or what was given is
            no family's class.

    Example:
        >>> family("laplace").__name__
        'Laplace'
        >>> family("scipy:hypsecant").name
        'scipy:hypsecant'
    """
    if not isinstance(name, str):
        return check_class(name, repr(name))
    if ":" in name:
        return imported(name)
    families = {each.name: each for each in FAMILIES}
    if name not in families:
        rule = f"family must be one of {', '.join(families)}"
        raise ValueError(f"{rule}, got {name!r}{did_you_mean(name, families)}")
    return families[name]
