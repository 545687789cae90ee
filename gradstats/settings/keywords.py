"""Functions that take the fields of a settings dataclass as keywords."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, is_typeddict

from gradstats.settings.errors import nearest

Settings = TypeVar("Settings")
Keywords = ParamSpec("Keywords")
Answer = TypeVar("Answer")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
Function = TypeVar("Function", bound=Callable[..., Any])


def from_keywords(kind: type[Settings], given: Mapping[str, Any], *, verb: str) -> Settings:
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


def lists_settings(kind: Callable[..., Any], types: Any = None) -> Callable[[Function], Function]:
    """Let `help` and `inspect.signature` show the fields of `kind` in place of `**settings`.

    Type checkers do not see that: for them the function declares `**settings: Unpack[types]`.

    Args:
        kind: The settings dataclass, of which the function makes one by `from_keywords`; or a
            TypedDict, whose keywords are all None by default.
        types: The TypedDict with the types that the function accepts; default: the types of the
            fields, which are those of the values after they were read.
    """
    accepted = {name: _written(each) for name, each in _annotations(types or kind).items()}

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        variable = inspect.Parameter.VAR_KEYWORD
        first = [each for each in own.parameters.values() if each.kind is not variable]
        known = {each.name for each in first}
        keyword = inspect.Parameter.KEYWORD_ONLY
        keywords = [
            each.replace(kind=keyword, annotation=accepted.get(each.name, each.annotation))
            for each in _parameters(kind)
            if each.name not in known
        ]
        vars(function)["__signature__"] = own.replace(parameters=[*first, *keywords])
        return function

    return decorate


def _parameters(kind: Any) -> list[inspect.Parameter]:
    if not is_typeddict(kind):
        return list(inspect.signature(kind).parameters.values())
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, keyword, default=None) for name in _annotations(kind)]


def _annotations(kind: Any) -> dict[str, Any]:
    return dict(getattr(kind, "__annotations__", {})) if isinstance(kind, type) else {}


def _written(annotation: Any) -> Any:
    """An annotation as it stands in the source."""
    return getattr(annotation, "__forward_arg__", annotation)
