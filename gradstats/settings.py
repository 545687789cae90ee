"""Settings as values: one frozen dataclass per verb, whose fields carry their sentence.

The keywords of a function, the options of its command and the provenance of its results come from
the same fields, so that nothing is spelled out twice.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from typing import Any, Concatenate, ParamSpec, TypeVar

Keywords = ParamSpec("Keywords")
Settings = TypeVar("Settings")
Answer = TypeVar("Answer")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


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


def settings_of(kind: Callable[..., Settings], verb: str, given: Mapping[str, Any]) -> Settings:
    """Make a settings value from keywords.

    Args:
        kind: The dataclass.
        verb: Name of the function that was called, for the message.
        given: The keywords.

    Raises:
        TypeError: A keyword is none of the fields.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class CaptureSettings:
        ...     track: int = setting(65_536, "Number of elements kept at every step.")
        >>> settings_of(CaptureSettings, "capture", {"trak": 5})
        Traceback (most recent call last):
        TypeError: capture has no setting 'trak'; did you mean track?
    """
    names = list(inspect.signature(kind).parameters)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
            raise TypeError(f"{verb} has no setting {name!r}; {remedy}")
    return kind(**given)


def takes_settings(
    kind: Callable[Keywords, Settings],
) -> Callable[
    [Callable[[A, B, C, Settings], Answer]], Callable[Concatenate[A, B, C, Keywords], Answer]
]:
    """Let a function of three arguments and `settings` take the fields of those as keywords.

    Its signature, for type checkers and for `inspect.signature`, has the fields of `kind` with
    their types and defaults in place of `settings`.

    Args:
        kind: The settings dataclass; its fields are keyword-only.
    """

    def decorate(function: Callable[..., Answer]) -> Callable[..., Answer]:
        own = inspect.signature(function)
        first = [each for each in own.parameters.values() if each.name != "settings"]
        keywords = inspect.signature(kind).parameters.values()

        @functools.wraps(function)
        def called(*args: Any, **given: Any) -> Answer:
            named = {each.name: given.pop(each.name) for each in first if each.name in given}
            settings = settings_of(kind, function.__name__, given)
            return function(*args, **named, settings=settings)

        vars(called)["__signature__"] = own.replace(parameters=[*first, *keywords])
        return called

    return decorate
