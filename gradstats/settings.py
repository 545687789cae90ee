"""Settings as values: one frozen dataclass per verb, whose fields carry their sentence.

The keywords of a function, the options of its command and the provenance of its results come from
the same fields, so that nothing is spelled out twice.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any


def setting(default: Any, text: str, *, choices: tuple[str, ...] = ()) -> Any:
    """A field of a settings dataclass.

    Args:
        default: The value unless another is given.
        text: What it is, in one sentence: the help text of its option.
        choices: The values that are allowed; empty where there are others.
    """
    return field(default=default, metadata={"help": text, "choices": choices})


def check_choices(settings: Any) -> None:
    """Raise ValueError if the value of a field with choices, or one in its tuple, is none of them.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Shown:
        ...     axis: str = setting("x", "Which axis.", choices=("x", "y"))
        >>> check_choices(Shown("z"))
        Traceback (most recent call last):
        ValueError: axis must be one of x, y, got 'z'
    """
    for each in fields(settings):
        choices, value = each.metadata.get("choices", ()), getattr(settings, each.name)
        values = value if isinstance(value, tuple) else (value,)
        for one in values if choices else ():
            if one not in choices:
                raise ValueError(f"{each.name} must be one of {', '.join(choices)}, got {one!r}")
