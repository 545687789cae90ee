"""How values of settings are read: whole numbers, times with units, lists written as one text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from gradstats.settings.errors import SettingError

_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}


def whole_number(name: str, value: Any, least: int) -> int:
    """Return a setting as an int.

    Args:
        name: Name of the setting, for the error.
        value: What was given: an int, or a whole number of numpy.
        least: The smallest number that is allowed.

    Raises:
        SettingError: It is no whole number from `least`; True and False are none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise SettingError(name, f"must be a whole number from {least}, got {value!r}")
    return int(value)


def seconds(name: str, value: Any) -> float:
    """Return a time in seconds.

    Args:
        name: Name of the setting, for the error.
        value: A number of seconds, or text with a unit: s, min or h. The text "0" needs none.

    Raises:
        SettingError: It is negative or no time, or text without a unit.

    Example:
        >>> seconds("budget", "1.5min"), seconds("budget", 20)
        (90.0, 20.0)
    """
    if not isinstance(value, bool) and isinstance(value, Real) and 0 <= float(value) < math.inf:
        return float(value)
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", str(value).strip().lower())
    if isinstance(value, str) and match:
        number, unit = float(match[1]), match[2]
        if unit in _SECONDS:
            return number * _SECONDS[unit]
        if not unit and number == 0:
            return 0.0
        if not unit:
            remedy = f"write {match[1]}s, {match[1]}min or {match[1]}h"
            raise SettingError(name, f"must have a unit, got {value!r}; {remedy}")
    rule = "must be a time such as 90s, 5min or 1h"
    raise SettingError(name, f"{rule}, or a number of seconds in Python, got {value!r}")


def split(text: str) -> tuple[str, ...]:
    """Split a text at its commas outside brackets, without blanks around the parts.

    Example:
        >>> split("bf16, ef(sidco-e(0.1, stages=2))")
        ('bf16', 'ef(sidco-e(0.1, stages=2))')
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.strip() for part in parts if part.strip())


def several(value: Any) -> tuple[Any, ...]:
    """A tuple of what is given for a sequence.

    A text is split at its commas outside brackets. A number, a class, any single value counts as
    one.

    Example:
        >>> several("none,ef"), several(0.01), several(["none", "ef"])
        (('none', 'ef'), (0.01,), ('none', 'ef'))
    """
    if isinstance(value, str):
        return split(value)
    single = isinstance(value, type | Mapping) or not isinstance(value, Iterable)
    return (value,) if single else tuple(value)
