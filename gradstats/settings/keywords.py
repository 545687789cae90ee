"""Functions that take the fields of a settings dataclass as keywords."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from gradstats.settings.errors import nearest

Settings = TypeVar("Settings")
Keywords = ParamSpec("Keywords")
Answer = TypeVar("Answer")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
Function = TypeVar("Function", bound=Callable[..., Any])


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
            remedy = nearest(name, known) or f"; it has {', '.join(known)}"
            raise TypeError(f"{verb} has no setting {name!r}{remedy}")
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
