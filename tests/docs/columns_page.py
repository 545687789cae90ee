"""Writes docs/columns.md from the dataclasses of the rows; run it as a module."""

import inspect
import math
from dataclasses import MISSING, fields
from pathlib import Path

from gradstats.fitting.over_steps import RANKS, SERIES
from gradstats.fitting.pairs import PAIRS
from gradstats.fitting.resumable import fits
from gradstats.replaying.resumable import EQUAL_BITS, FACTORISED, METHODS, REPLAY, TIMINGS

PAGE = Path(__file__).parents[2] / "docs" / "columns.md"
MADE = (fits(), PAIRS, RANKS, SERIES, REPLAY, METHODS, TIMINGS, EQUAL_BITS, FACTORISED)
HEAD = """# Columns

This page is for those who read the tables in `RUN.results`, as Parquet files or as DataFrames of
`gradstats.fit` and `gradstats.replay`. It names every column. It is written from the dataclasses
of the rows by `python -m tests.docs.columns_page`.

`gradstats fit`, `gradstats replay` and `gradstats report` write into the same folder and use each
other's tables. A table is computed again only if the run, the selection or a setting that it
depends on has changed. `fits`, `thresholds`, `structure` and `reuse` are of the whole model. The
same tables of groups (`--group-by`) end in `_by_part`, those of `--compensated` in `_compensated`.
`replay` and `timings` gather the rows of all compressors that have been replayed; `methods` has
those of the last command.
"""
BY_MEMORY = """### The columns of the residual, by memory

`error_compensated` = ‖v − ĝ‖/‖v‖ is the error of one step of the method inside the memory: v is
the update that a lossless method would give (`Memory.compensated`), ĝ that of the replayed one.
`residual_ratio` = ‖e‖/‖g‖ is what the memory keeps after the step. With several workers v, g and e
are means over them. The table gives v and e, with g the gradient, e₋ the residual of the step
before, and C(v) what is sent.

| memory | v | e |
|---|---|---|
| none | g: `error_compensated` is `error` | none: `residual_ratio` is NaN |
| `ef` | g + γ e₋ | v − C(v) |
| `lowpass` | g + e₋ | (1 − β) e₋ + β (v − C(v)): less than the step loses |
| `velocity` | e₋ + u, with u the momentum of g (Nesterov: e₋ + u + g) | v − C(v) |
| `ef21` | g: the update is the receivers' estimate of g | none: `residual_ratio` is NaN |
"""


def page():
    sections = [section(name, row) for made in MADE for name, row in made.tables.items()]
    after_replay = 1 + [name for made in MADE for name in made.tables].index("replay")
    return "\n".join([HEAD, *sections[:after_replay], BY_MEMORY, *sections[after_replay:]])


def section(name, row):
    text = inspect.getdoc(row).partition(": ")[2]
    lines = [f"| `{each.name}` | {each.metadata['text']} | {unit(each)} | {default(each)} |"
             for each in fields(row)]  # fmt: skip
    intro = text[:1].upper() + text[1:]
    head = "| column | what it holds | unit | if not measured |\n|---|---|---|---|"
    return (
        f"## `{name}`\n\n{intro}\n\n{head}\n" + "\n".join(lines).replace("|ln(", "\\|ln(") + "\n"
    )


def unit(each):
    return each.metadata["unit"] or "–"


def default(each):
    if each.default is MISSING:
        return "–"
    if each.default is None or each.default == "":
        return "empty"
    return "NaN" if isinstance(each.default, float) and math.isnan(each.default) else each.default


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
