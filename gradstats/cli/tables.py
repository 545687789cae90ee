"""Tables at the width of the terminal; whole, however wide, where the output is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

GAP = 2  # blanks between two columns
PROSE = 24  # narrowest column of sentences, which are wrapped


def print_table(console: Console, title: str, table: Any) -> None:
    """Print a DataFrame, three digits per number.

    Columns that the terminal has no room for are left out, and named in a line below.
    """
    from gradstats.reporting.page import heading, number

    cells = [[number(value) for value in row] for row in table.itertuples(index=False)]
    print_cells(console, title, [heading(column) for column in table.columns], cells)


def print_cells(
    console: Console, title: str, headings: Sequence[str], cells: Sequence[Sequence[str]]
) -> None:
    """Print a table of texts, as `print_table`; the first column is flush left."""
    columns = list(zip(headings, *cells, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    prose = [any(" " in cell for cell in column[1:]) for column in columns]
    whole = sum(widths) + GAP * len(widths)
    room = console.width if console.is_terminal else max(whole, cell_len(title))
    shown = fitting([min(w, PROSE) if p else w for w, p in zip(widths, prose, strict=True)], room)
    rich_table = RichTable(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(headings[:shown]):
        justify: Any = "left" if prose[index] or not index else "right"
        fixed = not prose[index] and widths[index] <= room
        rich_table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=fixed)
    for row in cells:
        rich_table.add_row(*(Text(cell) for cell in row[:shown]))
    Console(file=console.file, width=room).print(rich_table)
    if shown < len(headings):
        left_out = ", ".join(headings[shown:])
        where = "in a wider terminal, in a pipe or with --json"
        text = f"… {len(headings) - shown} more columns {where}: {left_out}"
        console.print(text, highlight=False, markup=False)


def fitting(widths: Sequence[int], room: int) -> int:
    """How many of the columns fit; the first always does, folded if it must.

    Example:
        >>> fitting([10, 8, 8], room=20), fitting([100, 8], room=80)
        (2, 1)
    """
    used, count = widths[0] if widths else 0, 1
    for width in widths[1:]:
        used += GAP + width
        if used > room:
            break
        count += 1
    return min(count, len(widths))
