"""Tables and figures → one self-contained HTML page."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from typing import Any

from gradstats import extras

Table = Any


@dataclass(frozen=True)
class Section:
    """Figures and tables under one heading.

    Attributes:
        title: heading.
        figures: (name, caption, PNG, or what draws it).
        tables: (note, DataFrame) below them.
    """

    title: str
    figures: list[tuple[str, str, Any]]
    tables: list[tuple[str, Table]]


@dataclass(frozen=True)
class Page:
    """What the page shows, from top to bottom.

    Attributes:
        title: of the run.
        facts: (name, value) of the run.
        advice: one plain sentence.
        law: one sentence on distributions and thresholds.
        ranking: lines of `tables.ranking`.
        ranking_note: how to read the ranking.
        caveats: sentences.
        sections: below the ranking, their figures drawn.
        skipped: what was left out, and why.
        settings: what reproduces the numbers.
    """

    title: str
    facts: list[tuple[str, str]]
    advice: str
    law: str
    ranking: Table
    ranking_note: str
    caveats: list[str]
    sections: list[Section]
    skipped: list[str]
    settings: dict[str, Any]


def render(page: Page) -> str:
    """The page as HTML, with its pictures inside; it loads nothing from anywhere."""
    jinja2 = extras.load("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradstats", "reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "milliseconds": milliseconds}
    return str(
        environment.get_template("report.html.j2").render(
            page=page,
            ranking=page.ranking.to_dict("records"),
            sections=[_encoded(section) for section in page.sections],
            settings=json.dumps(page.settings, indent=1, default=str),
        )
    )


def _encoded(section: Section) -> tuple[str, list[Any], list[Any]]:
    """Title, figures and tables as the template takes them."""
    figures = [(name, text, base64.b64encode(png).decode()) for name, text, png in section.figures]
    return section.title, figures, [(note, _cells(table)) for note, table in section.tables]


def _cells(table: Table) -> tuple[list[str], list[list[str]]]:
    rows = [[number(value) for value in row] for row in table.itertuples(index=False)]
    return [heading(column) for column in table.columns], rows


def heading(column: Any) -> str:
    """The name of a column; a ratio stands for k̂/k at it.

    Example:
        >>> heading("family"), heading(0.01)
        ('family', 'k̂/k at 0.01')
    """
    return f"k̂/k at {column:g}" if isinstance(column, float) else str(column)


def number(value: Any) -> str:
    """Three digits; a dash for what is not known.

    Example:
        >>> [number(value) for value in (0.123456, 1234567, None, float("nan"), "text", True)]
        ['0.123', '1,234,567', '–', '–', 'text', 'yes']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three digits."""
    return number(1e3 * seconds)
