"""Checks of a compressor's settings, which raise ValueError with the rule and the value."""

from __future__ import annotations

from collections.abc import Iterable


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ValueError unless the setting is a whole number from `least`, at most `most`.

    Example:
        >>> check_whole("bits", 2.5, 1, 8)
        Traceback (most recent call last):
        ...
        ValueError: bits must be a whole number from 1 to 8, got 2.5
    """
    if isinstance(value, int) and value >= least and (most is None or value <= most):
        return
    limit = "" if most is None else f" to {most}"
    raise ValueError(f"{name} must be a whole number from {least}{limit}, got {value!r}")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ValueError unless the setting is one of the choices.

    Example:
        >>> check_choice("norm", "l1", ("l2", "max"))
        Traceback (most recent call last):
        ...
        ValueError: norm must be one of l2, max, got 'l1'
    """
    allowed = list(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
