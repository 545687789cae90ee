"""Tables of results, declared once: a frozen dataclass whose fields carry sentence and unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from gradstats import extras

Table = Any
Row = dict[str, Any]


def column(text: str, *, unit: str = "", default: Any = math.nan) -> Any:
    """A field of a row's dataclass.

    Args:
        text: what the column holds, in one sentence.
        unit: of its numbers; "" for pure numbers, names and counts.
        default: the value where nothing was measured; `dataclasses.MISSING` where every row has
            one.
    """
    return field(default=default, metadata={"text": text, "unit": unit})


def names(row: type) -> list[str]:
    """The columns of a row's dataclass, in order."""
    return [each.name for each in fields(row)]


def unmeasured(row: type) -> Row:
    """The columns that have a default, with it: what a row holds that could not be measured."""
    return {each.name: each.default for each in fields(row) if each.default is not MISSING}


def frame(rows: Iterable[Row], row: type) -> Table:
    """The rows as a pandas DataFrame; without any it still has the columns of the dataclass."""
    lines = list(rows)
    pandas = extras.load("pandas")
    return pandas.DataFrame(lines) if lines else pandas.DataFrame(columns=names(row))


@dataclass(frozen=True)
class Made:
    """Tables that one function makes together.

    Attributes:
        tables: the dataclass of the rows, by the name of the table.
        make: `make(results, settings, key)` computes the rows and keeps them in the folder under
            the key; it goes on where an earlier call was interrupted.
        depends: names of the settings that the rows depend on.
        needs: names of the tables that they are made of.
        grows: whether more rows may be asked for under one key, so that `make` has to look.
    """

    tables: Mapping[str, type]
    make: Callable[[Any, Any, Row], None]
    depends: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    grows: bool = False
