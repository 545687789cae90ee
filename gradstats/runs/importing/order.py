"""The order of files by the numbers in their paths, and the steps that the numbers give."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise, takewhile
from pathlib import PurePath

from gradstats.settings import SettingError, naming

Number = tuple[Decimal, ...]
"""One number of a path; of a version, such as v1.2.3, its pieces."""
Key = list[list[str | Number]]

ORDERS = ("natural", "given")
MOST_STEP = 2**63
REMEDY = "give one file per step, as a pattern does, choose the number with --step-from REGEX, "
REMEDY += "or keep the order given with --order given"

# a minus belongs to the number after a separator only: sol-0.5 is 0.5, and t=-0.5 is -0.5
_AFTER = r"(?:^|(?<=[=_\-(,: ]))"
_EXPONENT = r"(?:[eE][+-]\d+(?![^\W_]))?"
_NUMBER = re.compile(rf"((?:{_AFTER}-)?(?:\d+(?:\.\d+)*|{_AFTER}\.\d+){_EXPONENT})")
_STEP = re.compile(r"(?:steps?|iter(?:ation)?s?|it|updates?|batch)[_=\- .]*$", re.IGNORECASE)


@dataclass(frozen=True)
class Ordered:
    """Names in order.

    Attributes:
        names: in the order of their steps.
        steps: one per name, strictly increasing.
        remark: how the steps were found, for people.
    """

    names: tuple[str, ...]
    steps: tuple[int, ...]
    remark: str


def ordered(names: Sequence[str], *, order: str = "natural", step_from: str = "") -> Ordered:
    """Put names in the order of their steps.

    Args:
        names: paths without the suffix, all different.
        order: "natural", by every number in every part of the path; or "given".
        step_from: regular expression, searched for in each path: its group, or all of it without
            one, is the number to sort by.

    Raises:
        ValueError: two names have the same numbers, or the expression finds none.

    Example:
        >>> ordered(["a/step_10/grad", "a/step_9/grad"]).steps
        (9, 10)
    """
    if order not in ORDERS:
        raise SettingError("order", f"must be one of {', '.join(ORDERS)}, got {order!r}")
    if step_from:
        with naming("step_from"):
            return _by_expression(names, step_from)
    if order == "given":
        return _counted(names, "in the order given; steps count 0, 1, 2, …")
    return _natural(names)


def _counted(names: Sequence[str], remark: str) -> Ordered:
    return Ordered(tuple(names), tuple(range(len(names))), remark)


def _by_expression(names: Sequence[str], expression: str) -> Ordered:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        rule = "step_from must be a regular expression"
        raise ValueError(f"{rule}, got {expression!r}: {error}") from error
    if pattern.groups > 1:
        raise ValueError(
            f"step_from must have at most one group, got {pattern.groups} in {expression!r}"
        )
    values: dict[Decimal, str] = {}
    for name in names:
        value = _captured(pattern, name)
        if value in values:
            pair = f"{values[value]!r} and {name!r}"
            raise ValueError(f"step_from must differ between files, got {value} for {pair}")
        values[value] = name
    in_order = sorted(values)
    steps = _as_steps(in_order)
    remark = f"in order of the numbers that {expression!r} finds"
    if steps is None:
        remark += "; steps count 0, 1, 2, …, since these are not all whole numbers from 0"
    sorted_names = tuple(values[value] for value in in_order)
    return Ordered(sorted_names, steps or tuple(range(len(names))), remark)


def _captured(pattern: re.Pattern[str], name: str) -> Decimal:
    match = pattern.search(name)
    if match is None or match[pattern.groups] is None:
        raise ValueError(
            f"step_from must match every path, got none of {pattern.pattern!r} in {name!r}"
        )
    text = match[pattern.groups]
    if not re.fullmatch(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", text):
        raise ValueError(f"step_from must capture a number, got {text!r} in {name!r}")
    return Decimal(text)


def _as_steps(values: Sequence[Decimal]) -> tuple[int, ...] | None:
    """The values as steps, if each is a whole number from 0 and above the one before."""
    whole = all(0 <= value < MOST_STEP and value == value.to_integral_value() for value in values)
    grows = all(one < other for one, other in pairwise(values))
    return tuple(map(int, values)) if whole and grows else None


def _natural(names: Sequence[str]) -> Ordered:
    parts = dict(zip(names, _without_common(names), strict=True))
    pieces = any(map(_is_dotted, _numbers_by_place(parts.values())))
    keys = {name: [_part_key(part, pieces) for part in path] for name, path in parts.items()}
    numbers = {name: _numbers(key) for name, key in keys.items()}
    _check_apart(numbers)
    numbers = _varying(numbers)
    alike = len({len(each) for each in numbers.values()}) == 1 and all(numbers.values())
    # by the numbers alone where each has the same count of them: warmup_1, train_2
    in_order = sorted(names, key=lambda name: (numbers[name] if alike else [], keys[name]))
    _check_last(in_order, numbers)
    values = _step_values([parts[name] for name in in_order], pieces)
    steps = _as_steps(values) if values else None
    if steps is not None:
        return Ordered(tuple(in_order), steps, "in order of the numbers in the paths")
    why = "no number of the paths grows along them" if any(numbers.values()) else "no numbers"
    if any(numbers.values()) and not numbers[in_order[-1]]:
        why = f"{in_order[-1]!r} has no number and is taken as the last"
    if values and any(value != value.to_integral_value() for value in values):
        why = "the numbers are not whole"
    return _counted(in_order, f"in natural order of the paths; steps count 0, 1, 2, …: {why}")


def _without_common(names: Sequence[str]) -> list[list[str]]:
    """The parts of each path below the folder that all have in common."""
    parts = [list(PurePath(name).parts) for name in names]
    folders = zip(*(each[:-1] for each in parts), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, folders))
    return [each[common:] for each in parts]


def _numbers_by_place(parts: Iterable[Sequence[str]]) -> list[list[str]]:
    """The numbers as they are written, those of the same place in the paths together."""
    places: dict[tuple[int, int], list[str]] = {}
    for path in parts:
        for depth, part in enumerate(path):
            for place, text in enumerate(_NUMBER.findall(part)):
                places.setdefault((depth, place), []).append(text)
    return list(places.values())


def _is_dotted(texts: Sequence[str]) -> bool:
    """Are numbers with one dot two whole numbers each, such as 1.9, 1.10, and no decimals?

    Decimals are written with equally many digits, or without zeros at their ends.
    """
    ends = [text.partition(".")[2] for text in set(texts) if text.count(".") == 1]
    zeros = any(len(end) > 1 and end.endswith("0") for end in ends)
    return zeros and len({len(end) for end in ends}) > 1


def _part_key(part: str, pieces: bool) -> list[str | Number]:
    """The text and the numbers of one part of a path, alternating."""
    key: list[str | Number] = []
    for place, piece in enumerate(_NUMBER.split(part)):
        before = key[-1] if key else ""
        is_version = pieces or (isinstance(before, str) and before[-1:] in ("v", "V"))
        key.append(_number(piece, is_version) if place % 2 else piece.casefold())
    return key


def _number(text: str, pieces: bool) -> Number:
    if text.count(".") > 1 or (pieces and "." in text.strip(".")):
        return tuple(Decimal(piece) for piece in re.findall(r"\d+", text))
    return (Decimal(text),)


def _numbers(key: Key) -> list[Number]:
    return [piece for part in key for piece in part[1::2] if not isinstance(piece, str)]


def _varying(numbers: Mapping[str, list[Number]]) -> dict[str, list[Number]]:
    """Leave out the numbers that are the same in all paths, where all have equally many."""
    if len({len(each) for each in numbers.values()}) > 1:
        return dict(numbers)
    columns = list(zip(*numbers.values(), strict=True))
    kept = [place for place, column in enumerate(columns) if len(set(column)) > 1]
    return {name: [each[place] for place in kept] for name, each in numbers.items()}


def _check_apart(numbers: Mapping[str, list[Number]]) -> None:
    """Refuse two names with the same numbers: one step, or two that nothing puts in order?"""
    first: dict[tuple[Number, ...], str] = {}
    for name, each in numbers.items():
        other = first.setdefault(tuple(each), name)
        if each and other != name:
            fact = f"the same in {other!r} and {name!r}"
            raise ValueError(
                f"files must have different numbers in their paths, got {fact}; {REMEDY}"
            )


def _check_last(in_order: Sequence[str], numbers: Mapping[str, list[Number]]) -> None:
    """Refuse names with fewer numbers than others, such as "final", unless they come last."""
    most = max(len(each) for each in numbers.values())
    few = [name for name in in_order if len(numbers[name]) < most]
    if few and list(in_order[-len(few) :]) != few:
        other = next(name for name in in_order if len(numbers[name]) == most)
        fact = f"fewer in {few[0]!r} than in {other!r}; leave it out"
        raise ValueError(
            f"files must have as many numbers in their paths, got {fact}, or {REMEDY}"
        )


def _step_values(parts: Sequence[Sequence[str]], pieces: bool) -> list[Decimal]:
    """One number per path that may be its step: after a word such as "step", or a part's last."""
    rows = [_candidates(path, pieces) for path in parts]
    for kind in ("step", "end"):
        columns = [[value for value, which in row if which == kind] for row in rows]
        for place in range(1, min(map(len, columns)) + 1):
            values = [column[-place] for column in columns]
            if len(set(values)) == len(values):
                return values
    return []


def _candidates(path: Sequence[str], pieces: bool) -> list[tuple[Decimal, str]]:
    candidates = []
    for part in path:
        texts = _NUMBER.split(part)
        for place in range(1, len(texts), 2):
            number = _number(texts[place], pieces)
            named = _STEP.search(texts[place - 1]) is not None
            ends = place == len(texts) - 2 and not texts[-1].strip("_-. ")
            if len(number) == 1 and (named or ends):
                candidates.append((number[0], "step" if named else "end"))
    return candidates
