"""Fields of settings dataclasses: their declaration, their checks, and their values as JSON."""

from __future__ import annotations

import sys
import zlib
from dataclasses import field, fields
from pathlib import Path
from typing import Any

from gradstats.settings.errors import SettingError, nearest
from gradstats.settings.values import whole_number


def setting(
    default: Any, text: str, *, choices: tuple[str, ...] = (), least: int | None = None
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: The value unless another is given.
        text: What it is, in one sentence: the help text of its option.
        choices: The values that are allowed; empty where there are others.
        least: The smallest whole number that is allowed; None if it is no whole number.
    """
    return field(default=default, metadata={"help": text, "choices": choices, "least": least})


def check_fields(settings: Any) -> None:
    """Check the values of a settings dataclass against what its fields declare.

    Those are the choices, the smallest whole number, and True or False where that is the default.

    Raises:
        SettingError: A value is not allowed.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Shown:
        ...     axis: str = setting("x", "Which axis.", choices=("x", "y"))
        >>> check_fields(Shown("z"))
        Traceback (most recent call last):
        gradstats.settings.errors.SettingError: axis must be one of x, y, got 'z'
    """
    for each in fields(settings):
        value, least = getattr(settings, each.name), each.metadata.get("least")
        _check_choices(each.name, value, each.metadata.get("choices", ()))
        if isinstance(each.default, bool) and not isinstance(value, bool):
            raise SettingError(each.name, f"must be True or False, got {value!r}")
        if least is not None and not (value is None and each.default is None):
            object.__setattr__(settings, each.name, whole_number(each.name, value, least))


def _check_choices(name: str, value: Any, choices: tuple[str, ...]) -> None:
    values = value if isinstance(value, tuple) else (value,)
    for one in values if choices else ():
        if not isinstance(one, str) or one not in choices:
            near = nearest(one, choices)
            rule = f"must be one of {', '.join(choices)}"
            raise SettingError(name, f"{rule}, got {one!r}{near}")


def at_least_one(settings: Any, *names: str) -> None:
    """Check that settings which hold several values hold one.

    Raises:
        SettingError: One of them is empty.
    """
    for name in names:
        if not getattr(settings, name):
            raise SettingError(name, "must name at least one, got none")


def in_words(value: Any) -> Any:
    """Settings, or the value of one, as JSON has them: names of classes, specs of compressors.

    A class of the user's, or an object of one, comes with a checksum of its source: another
    edition of it is another setting.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(name): in_words(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [in_words(each) for each in value]
    if isinstance(value, type):
        return getattr(value, "name", value.__name__) + _source(value)
    return str(value) + _source(type(value))


def _source(kind: type) -> str:
    """What the class is made of now, where it is not one of this package."""
    if kind.__module__.partition(".")[0] in (__name__.partition(".")[0], "builtins"):
        return ""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    text = Path(file).read_bytes() if file else b""
    return f" ({kind.__module__}, CRC-32 {zlib.crc32(text):08x})"
