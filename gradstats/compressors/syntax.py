"""From the text of a spec, `ef(topk(1%) | qsgd(bits=4))`, to a tree of names and numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gradstats.ratios import percentage

TOKEN = re.compile(r"\s*(3lc|[A-Za-z_][\w.:-]*|[-+]?[\d.][\w.+-]*%?|[(),=]|\S)")


@dataclass(frozen=True)
class Call:
    """`name(arguments)` as written; `arguments` is None without brackets."""

    name: str
    arguments: tuple[tuple[str | None, Argument], ...] | None


@dataclass(frozen=True)
class Piped:
    """`stage | stage | …` as written."""

    stages: tuple[Call, ...]


Argument = Call | Piped | int | float


def parse(spec: str) -> Call | Piped:
    """Read a spec.

    Raises:
        ValueError: It is not in the grammar.
    """
    if not spec.strip():
        raise ValueError(f"compressor must be named, such as topk(0.01), got {spec!r}")
    tokens = TOKEN.findall(spec)
    call, rest = _parse_pipe(tokens, spec)
    if rest[:1] == [")"]:
        raise ValueError(f"compressor must have no bracket too many, got {spec!r}")
    if rest or isinstance(call, int | float):
        raise ValueError(f"compressor must look like topk(0.01) or ef(topk(0.01)), got {spec!r}")
    return call


def _parse_pipe(tokens: list[str], spec: str) -> tuple[Argument, list[str]]:
    first, rest = _parse_argument(tokens, spec)
    stages = [first]
    while rest[:1] == ["|"]:
        stage, rest = _parse_argument(rest[1:], spec)
        stages.append(stage)
    if len(stages) == 1:
        return first, rest
    calls = tuple(stage for stage in stages if isinstance(stage, Call))
    if len(calls) < len(stages):
        raise ValueError(f"a stage must be a name, not a number, got {spec!r}")
    return Piped(calls), rest


def _parse_argument(tokens: list[str], spec: str) -> tuple[Argument, list[str]]:
    if not tokens:
        raise ValueError(f"compressor ends too early, got {spec!r}")
    head, rest = tokens[0], tokens[1:]
    if re.match(r"[-+\d.](?!lc)", head):
        return _number(head, spec), rest
    if not re.match(r"[A-Za-z_]|3lc", head):
        raise ValueError(f"compressor must not have {head!r} here, got {spec!r}")
    if not rest or rest[0] != "(":
        return Call(head, None), rest
    arguments: list[tuple[str | None, Argument]] = []
    rest = rest[1:]
    while rest and rest[0] != ")":
        key = None
        if len(rest) > 1 and rest[1] == "=":
            key, rest = rest[0], rest[2:]
        value, rest = _parse_pipe(rest, spec)
        arguments.append((key, value))
        if rest[:1] == [","]:
            rest = rest[1:]
        elif rest[:1] != [")"]:
            break
    if rest[:1] != [")"]:
        raise ValueError(f"compressor must close its bracket, got {spec!r}")
    return Call(head, tuple(arguments)), rest[1:]


def _number(word: str, spec: str) -> int | float:
    try:
        return int(word)
    except ValueError:
        number = percentage(word)
    if number is not None:
        return number
    raise ValueError(f"compressor must have a number instead of {word!r}, got {spec!r}")
