"""Names that a pattern selects: a name itself, or a glob; brackets of names are no classes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable


def matching(names: Iterable[str], pattern: str) -> frozenset[str]:
    """The names that a pattern selects.

    A pattern that is a name selects that name alone. Else `*` and `?` stand for other letters,
    and `[` for itself where that selects anything, as in `layers[0].*`; else `[0-3]` is a class.

    Args:
        names: such as those of parameters.
        pattern: a name or a glob; case counts.

    Example:
        >>> sorted(matching(["w[0].a", "w[0].b", "w0.a"], "w[0].*"))
        ['w[0].a', 'w[0].b']
        >>> sorted(matching(["w0.a", "w1.a", "w2.a"], "w[01].*"))
        ['w0.a', 'w1.a']
    """
    names = frozenset(names)
    if pattern in names:
        return frozenset({pattern})
    literal = _selected(names, pattern.replace("[", "[[]")) if "[" in pattern else frozenset()
    return literal or _selected(names, pattern)


def _selected(names: frozenset[str], glob: str) -> frozenset[str]:
    return frozenset(name for name in names if fnmatch.fnmatchcase(name, glob))
