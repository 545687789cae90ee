"""Settings as values: one frozen dataclass per verb, whose fields carry their sentence.

The keywords of a function, the options of its command and the provenance of its results come from
the same fields, so that nothing is spelled out twice.
"""

from __future__ import annotations

import functools
import inspect
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

Settings = TypeVar("Settings")
Keywords = ParamSpec("Keywords")
Answer = TypeVar("Answer")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
Function = TypeVar("Function", bound=Callable[..., Any])


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


def several(value: Any) -> tuple[Any, ...]:
    """A tuple of what is given for a sequence; a string, a number, any single value counts as one.

    Example:
        >>> several("ef"), several(0.01), several(["none", "ef"])
        (('ef',), (0.01,), ('none', 'ef'))
    """
    single = isinstance(value, str | type) or not isinstance(value, Iterable)
    return (value,) if single else tuple(value)


def from_keywords(kind: type[Settings], given: dict[str, Any], *, verb: str) -> Settings:
    """Settings from the keywords of a public function.

    Args:
        kind: the dataclass.
        given: keywords by name.
        verb: the function's name, for the error.

    Raises:
        TypeError: `<verb> has no setting 'familes'; did you mean families?`
    """
    known = [each.name for each in fields(cast("Any", kind))]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise TypeError(f"{verb} has no setting {name!r}; {remedy}")
    return kind(**given)


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
            settings = from_keywords(cast("type[Settings]", kind), given, verb=function.__name__)
            return function(*args, **named, settings=settings)

        vars(called)["__signature__"] = own.replace(parameters=[*first, *keywords])
        return called

    return decorate


def lists_settings(kind: Callable[..., Any]) -> Callable[[Function], Function]:
    """Let `help` and `inspect.signature` show the fields of `kind` in place of `**settings`.

    Args:
        kind: The settings dataclass, of which the function makes one by `from_keywords`.
    """

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        variable = inspect.Parameter.VAR_KEYWORD
        first = [each for each in own.parameters.values() if each.kind is not variable]
        known = {each.name for each in first}
        keyword = inspect.Parameter.KEYWORD_ONLY
        keywords = [
            each.replace(kind=keyword)
            for each in inspect.signature(kind).parameters.values()
            if each.name not in known
        ]
        vars(function)["__signature__"] = own.replace(parameters=[*first, *keywords])
        return function

    return decorate
