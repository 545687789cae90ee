"""One grammar for commands, legends and tables: `topk(0.01)`, `ef(sidco-e(0.001, stages=2))`."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gradstats.compressors.base import Compressor

TOKEN = re.compile(r"\s*([A-Za-z_][\w.:-]*|[-+]?[\d.][\w.+-]*|[(),=]|\S)")


@dataclass(frozen=True)
class Call:
    """`name(arguments)` as written; `arguments` is None where there are no brackets."""

    name: str
    arguments: tuple[tuple[str | None, Argument], ...] | None


Argument = Call | int | float


def build(
    spec: str, known: dict[str, Callable[..., Compressor]], ratios: Iterable[float] = ()
) -> list[Compressor]:
    """The compressors that a spec stands for: one, or one a ratio where it leaves that open.

    Args:
        spec: in the grammar; `pkg.module:Class` names a class of one's own.
        known: the compressors by name.
        ratios: for a method that takes a ratio and was given none.

    Raises:
        ValueError: not in the grammar, unknown name, or arguments that the compressor refuses.
    """
    call = _parse(spec)
    open_ratio = _leaf_wants_ratio(call, known, spec)
    if not open_ratio:
        return [_make(call, known, spec, None)]
    chosen = list(ratios)
    if not chosen:
        raise ValueError(f"compressor {spec!r} must be given a ratio, e.g. {call.name}(0.01)")
    return [_make(call, known, spec, ratio) for ratio in chosen]


def _parse(spec: str) -> Call:
    tokens = TOKEN.findall(spec)
    call, rest = _parse_argument(tokens, spec)
    if rest or not isinstance(call, Call):
        raise ValueError(f"compressor must look like topk(0.01) or ef(topk(0.01)), got {spec!r}")
    return call


def _parse_argument(tokens: list[str], spec: str) -> tuple[Argument, list[str]]:
    if not tokens:
        raise ValueError(f"compressor ends too early, got {spec!r}")
    head, rest = tokens[0], tokens[1:]
    if re.match(r"[-+\d.]", head):
        return _number(head, spec), rest
    if not re.match(r"[A-Za-z_]", head):
        raise ValueError(f"compressor must not have {head!r} here, got {spec!r}")
    if not rest or rest[0] != "(":
        return Call(head, None), rest
    arguments: list[tuple[str | None, Argument]] = []
    rest = rest[1:]
    while rest and rest[0] != ")":
        key = None
        if len(rest) > 1 and rest[1] == "=":
            key, rest = rest[0], rest[2:]
        value, rest = _parse_argument(rest, spec)
        arguments.append((key, value))
        if rest[:1] == [","]:
            rest = rest[1:]
        elif rest[:1] != [")"]:
            break
    if rest[:1] != [")"]:
        raise ValueError(f"compressor must close its bracket, got {spec!r}")
    return Call(head, tuple(arguments)), rest[1:]


def _number(word: str, spec: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    raise ValueError(f"compressor must have a number instead of {word!r}, got {spec!r}")


def _leaf_wants_ratio(call: Call, known: dict[str, Callable[..., Compressor]], spec: str) -> bool:
    inner = [value for _, value in call.arguments or () if isinstance(value, Call)]
    nested = [
        value for value in inner if value.arguments is not None or _is_known(value.name, known)
    ]
    if nested:
        return any(_leaf_wants_ratio(value, known, spec) for value in nested)
    signature = inspect.signature(_factory(call.name, known, spec)).parameters
    given = call.arguments or ()
    named = any(key == "ratio" for key, _ in given)
    first = next(iter(signature), None) == "ratio" and any(key is None for key, _ in given)
    wanted = "ratio" in signature and signature["ratio"].default is inspect.Parameter.empty
    return wanted and not named and not first


def _is_known(name: str, known: dict[str, Callable[..., Compressor]]) -> bool:
    return name in known or ":" in name


def _factory(
    name: str, known: dict[str, Callable[..., Compressor]], spec: str
) -> Callable[..., Compressor]:
    if name in known:
        return known[name]
    if ":" not in name:
        raise ValueError(f"compressor must be one of {', '.join(known)}, got {name!r} in {spec!r}")
    module, _, attribute = name.partition(":")
    try:
        factory: Callable[..., Compressor] = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever anyone's module may raise
        fact = f"{type(error).__name__}: {error}"
        raise ValueError(f"cannot import compressor {name!r}: {fact}") from error
    if not callable(factory):
        raise ValueError(f"compressor {name!r} must be a class, got {factory!r}")
    return factory


def _make(
    call: Call, known: dict[str, Callable[..., Compressor]], spec: str, ratio: float | None
) -> Compressor:
    factory = _factory(call.name, known, spec)
    positional: list[object] = []
    named: dict[str, object] = {}
    for key, argument in call.arguments or ():
        value: object = argument
        if isinstance(argument, Call):
            plain = argument.arguments is None and not _is_known(argument.name, known)
            value = argument.name if plain else _make(argument, known, spec, ratio)
        if key is None:
            positional.append(value)
        elif key in named:
            raise ValueError(f"compressor must be given {key} once, got {spec!r}")
        else:
            named[key] = value
    if (
        ratio is not None
        and _leaf_wants_ratio(call, known, spec)
        and not any(isinstance(value, Compressor) for value in (*positional, *named.values()))
    ):
        named["ratio"] = ratio
    try:
        made = factory(*positional, **named)
    except TypeError as error:
        raise ValueError(f"cannot make compressor {spec!r}: {error}") from error
    if not isinstance(made, Compressor):
        raise ValueError(f"compressor {call.name!r} must make a Compressor, got {made!r}")
    return made
