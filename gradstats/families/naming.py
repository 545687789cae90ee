"""Families by name: those of the package, `my_module:MyFamily`, and `scipy:hypsecant`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from reprlib import repr as shortened
from typing import Any

from gradstats.families.base import Family, did_you_mean
from gradstats.families.reference import PREFIX, Reference, reference


def check_class(value: Any, name: str) -> type[Family]:
    """Return a family's class, once it is one that can be fitted.

    Args:
        value: what was given for a family.
        name: how it was written, for the error.

    Raises:
        ValueError: it is no class, no Family, has an unwritten method, no name, or is no
            dataclass.
    """
    if isinstance(value, Family):
        own = f"{type(value).__module__}:{type(value).__qualname__}"
        raise ValueError(f"family {name} must be a class, such as {own}, got {value!r}")
    if not (isinstance(value, type) and issubclass(value, Family)):
        rule = "must be a subclass of gradstats.families.Family"
        raise ValueError(f"family {name} {rule}, got {shortened(value)}")
    if inspect.isabstract(value):
        missing = ", ".join(sorted(value.__abstractmethods__))
        raise ValueError(f"family {name} must define {missing}")
    if not hasattr(value, "__dataclass_fields__"):
        raise ValueError(f"family {name} must be a frozen dataclass of its parameters")
    label = getattr(value, "name", None)
    of_reference = str(label).startswith(PREFIX) and not issubclass(value, Reference)
    if not isinstance(label, str) or of_reference:
        rule = f"must have a name that does not begin with {PREFIX}, for tables and legends"
        raise ValueError(f"family {name} {rule}, got {label!r}")
    return value


def imported(spec: str) -> type[Family]:
    """Import a family: `my_module:MyFamily`, or `scipy:hypsecant` for a reference.

    Args:
        spec: where it is.

    Raises:
        ValueError: it cannot be imported, or is no family; the error names the nearest one.
    """
    if spec.startswith(PREFIX):
        return reference(spec.removeprefix(PREFIX))
    where, _, attribute = spec.partition(":")
    try:
        module = importlib.import_module(where)
    except Exception as error:  # whatever anyone's module may raise
        fact = f"{type(error).__name__}: {error}"
        raise ValueError(f"cannot import family {spec!r}: {fact}") from error
    if not hasattr(module, attribute):
        known = [n for n, each in vars(module).items() if isinstance(each, type)]
        near = did_you_mean(attribute, known)
        raise ValueError(f"cannot import family {spec!r}: {where} has no {attribute!r}{near}")
    return check_class(getattr(module, attribute), repr(spec))


def spec_of(family: type[Family], known: Iterable[type[Family]]) -> str:
    """How a family is written: its name, or `my_module:MyFamily` for one of one's own."""
    if family in tuple(known) or issubclass(family, Reference):
        return family.name
    return f"{family.__module__}:{family.__qualname__}"
