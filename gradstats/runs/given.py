"""Tables that callers give to public functions: which columns they have, and of what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradstats import extras
from gradstats.runs.tables import Table

NOUNS = {"workers": "number of workers", "target_ratio": "target ratio"}
SHOWN = 4  # values that an error names


def given_table(table: Any, columns: Sequence[str], *, name: str, verb: str) -> Table:
    """Return a table that a public function was given as a DataFrame, once it is the right one.

    Args:
        table: a pandas DataFrame, or a list of rows as dictionaries.
        columns: what it must have, such as tell it from the tables of other verbs.
        name: the parameter of the function.
        verb: the public function that returns such tables, without "gradstats.".

    Raises:
        ValueError: it is no table, has no row, or lacks a column.

    Example:
        >>> given_table([{"step": 3}], ["step", "group"], name="fits", verb="fit")
        Traceback (most recent call last):
        ValueError: fits must have the columns step, group, as gradstats.fit returns them, got a \
table without group
    """
    pandas = extras.load("pandas")
    rule = f"{name} must have the columns {', '.join(columns)}, as gradstats.{verb} returns them"
    rows = isinstance(table, list | tuple) and all(isinstance(row, Mapping) for row in table)
    if not rows and not isinstance(table, pandas.DataFrame):
        raise ValueError(f"{rule}, got {type(table).__name__}")
    framed = pandas.DataFrame(list(table)) if rows else table
    missing = [column for column in columns if column not in framed]
    if missing and (len(framed) or len(framed.columns)):
        raise ValueError(f"{rule}, got a table without {', '.join(missing)}")
    if not len(framed):
        raise ValueError(f"{name} must have a row, as gradstats.{verb} returns them, got none")
    return framed.reset_index(drop=True)


def measured_rows(table: Table, name: str) -> Table:
    """Return the rows whose status is "ok".

    Raises:
        ValueError: there is none; the first status is named.
    """
    good = table[table["status"] == "ok"]
    if not len(good):
        status = table["status"].iloc[0]
        raise ValueError(f"{name} must have a row with status ok, got {status!r} in the first row")
    return good


def of_one(table: Table, column: str, name: str) -> Table:
    """Return the table if all its rows have the same value in a column, or it has no such column.

    Raises:
        ValueError: there are several values; the remedy selects one.
    """
    values = list(table[column].dropna().unique()) if column in table else []
    if len(values) > 1:
        shown = ", ".join(str(value) for value in values[:SHOWN])
        more = ", …" if len(values) > SHOWN else ""
        remedy = f'select one: {name}[{name}["{column}"] == {_written(values[0])}]'
        rule = f"{name} must be of one {NOUNS.get(column, column)}"
        raise ValueError(f"{rule}, got {len(values)} ({shown}{more}); {remedy}")
    return table


def one_row_per(table: Table, keys: Sequence[str], name: str) -> Table:
    """Return the rows once each, of a table in which no two others agree in all keys.

    Raises:
        ValueError: two do, as where tables of several workers or runs were joined.
    """
    known = [key for key in keys if key in table]
    table = table.drop_duplicates()  # what was asked for twice has the same rows twice
    again = table[table.duplicated(known)]
    if len(again):
        first = ", ".join(f"{key} {_written(again[key].iloc[0])}" for key in known)
        rule = f"{name} must have one row per {', '.join(known)}"
        remedy = "leave out what comes of another worker, run or setting"
        raise ValueError(f"{rule}, got {len(again):,} more, first for {first}; {remedy}")
    return table


def _written(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
