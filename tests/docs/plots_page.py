"""Writes docs/plots.md and its pictures from the docstrings of `gradstats.plot`; run as a module.

Names of functions may follow: `python -m tests.docs.plots_page winners heat` draws those alone.
"""

import doctest
import inspect
import re
import sys
from pathlib import Path

from matplotlib import pyplot

from gradstats import plot

PAGE = Path(__file__).parents[2] / "docs" / "plots.md"
PICTURES = PAGE.parent / "plots"
DPI = 75
HEAD = """# Figures

This page is for those who draw what gradstats computes: every function of `gradstats.plot`, what
it takes, and how it looks. It is written from their docstrings by
`python -m tests.docs.plots_page`, on the run that comes with gradstats.

Each function takes what one public function returns, a table or a Summary, and refuses other
tables with the name of the right function. It draws into `ax` (default: the axes of a new figure)
and returns the axes: `ax.figure.savefig("figure.png")` writes the file. Rows that failed are left
out. What must not be mixed, such as several groups in one line, is refused with the selection to
make; settings of compressors are told apart in the labels. `pip install 'gradstats[analysis]'`
brings what figures need.

| function of `gradstats.plot` | takes what is returned by |
|---|---|
"""


def text_of(name):
    return inspect.getdoc(getattr(plot, name))


def example_of(name):
    """The code of the docstring's example, with a blank line after the import as ruff has it."""
    lines = [each.source for each in doctest.DocTestParser().get_examples(text_of(name))]
    return "".join([lines[0], "\n", *lines[1:]])


def verb_of(name):
    """The public function whose answer is drawn: the first that the arguments name."""
    return re.search(r"`gradstats\.(\w+)`", text_of(name).partition("Args:")[2])[1]


def section(name):
    about = text_of(name).partition("\n\nArgs:")[0]
    return (
        f"## `{name}`\n\n{about}\n\n```python\n{example_of(name)}```\n\n"
        f"![The figure of this example](plots/{name}.png)\n"
    )


def page():
    table = "".join(f"| [`{name}`](#{name}) | `gradstats.{verb_of(name)}` |\n" for name in names())
    return "\n".join([HEAD + table, *map(section, names())])


def names():
    """The functions, by the verb whose answer they take."""
    verbs = list(dict.fromkeys(map(verb_of, plot.__all__)))
    return sorted(plot.__all__, key=lambda name: (verbs.index(verb_of(name)), name))


def draw(name):
    """Run the example and write its figure."""
    run = {}
    exec(example_of(name), run)
    run["ax"].figure.savefig(PICTURES / f"{name}.png", dpi=DPI, metadata={"Software": None})
    pyplot.close("all")


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for each in sys.argv[1:] or names():
        draw(each)
    PAGE.write_text(page(), encoding="utf-8")
