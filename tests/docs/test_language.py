"""The language rules that a program can check, in docs and code.

CONTRIBUTING.md names the rules.
"""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIDTH = 100
VAGUE = {"found", "made", "told", "here", "there"}

_NOUN = "bits?|bytes?|nats|seconds?|ms|MB|kB|rows?|chunks?|columns?|lines?|numbers?|values?|flags?"
_UNIT = (
    "batch|bin|bucket|byte|chunk|column|commit|element|family|file|gate|group|index|layer|line|"
    "matrix|message|method|model|octave|parameter|ratio|round|row|step|tensor|thread|worker"
)
RATES = re.compile(rf"\b(?:an? (?:{_NOUN})|{_NOUN}) an? (?:{_UNIT})\b")

# Written by scripts from recorded results, or examples that are quoted as they were printed.
MARKED = re.compile(r"<!-- [^>]*written by .*?<!-- (?:/\w+|end[\w ]*) -->", re.DOTALL)


def held(files):
    """The files, with a short name for each test."""
    return [pytest.param(file, id=str(file.relative_to(ROOT))) for file in sorted(files)]


DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
PAGES = held([*DOCS, ROOT / "data" / "README.md", *(ROOT / "analyses").rglob("*.md")])
SOURCES = held((ROOT / "gradstats").rglob("*.py"))


def prose(text):
    """The lines of a page outside code, tables, headings and what scripts write; numbered."""
    blank = MARKED.sub(lambda match: "\n" * match.group().count("\n"), text)
    fenced = False
    for number, line in enumerate(blank.split("\n"), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and line.strip() and not line.startswith(("|", "#", "<!--", "$$")):
            yield number, line


def vague_names(tree):
    """Variables and arguments whose name does not say what they hold."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE:
            yield node.lineno, node.id
        if isinstance(node, ast.arg) and node.arg in VAGUE:
            yield node.lineno, node.arg


def docstrings(tree):
    """Every docstring of a module, with the line of what it documents."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


@pytest.mark.parametrize("page", PAGES)
def test_prose_fits_the_width(page):
    wide = [
        (number, line)
        for number, line in prose(page.read_text(encoding="utf-8"))
        if len(line) > WIDTH and " " in line.strip().lstrip("-*0123456789. ")
    ]
    assert not wide


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_with_prose_below_its_title(page):
    title, opening = page.read_text(encoding="utf-8").split("\n\n")[:2]
    assert title.startswith("# ")
    assert len(opening.split()) > 7
    assert not opening.startswith(("#", "|", "```", "-", "1."))


@pytest.mark.parametrize("page", PAGES)
def test_a_wide_table_follows_a_sentence(page):
    """More than three columns: a sentence before the table names them."""
    blocks = MARKED.sub("", page.read_text(encoding="utf-8")).split("\n\n")
    for before, table in pairwise(blocks):
        if table.startswith("|") and table.split("\n")[0].count(" |") > 3:
            assert not before.startswith(("#", "|", "```")), table.split("\n")[0]


@pytest.mark.parametrize("page", PAGES)
def test_rates_in_docs_are_written_with_per(page):
    text = MARKED.sub("", page.read_text(encoding="utf-8"))
    assert RATES.findall(text) == []


@pytest.mark.parametrize("source", SOURCES)
def test_rates_in_code_are_written_with_per(source):
    assert RATES.findall(source.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("source", SOURCES)
def test_docstrings_have_single_backticks(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    assert [line for line, text in docstrings(tree) if "``" in text] == []


@pytest.mark.parametrize("source", SOURCES)
def test_variables_say_what_they_hold(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    assert list(vague_names(tree)) == []


@pytest.mark.parametrize(
    "text", ["one row a step", "a line a step", "0.4 bits an element", "a number a worker"]
)
def test_a_rate_without_per_is_noticed(text):
    assert RATES.search(text)


@pytest.mark.parametrize(
    "text", ["one row per step", "a row at a step", "it drops a row a second"]
)
def test_other_articles_are_not_rates(text):
    assert not RATES.search(text)


def test_vague_names_are_noticed_however_they_are_bound():
    code = "found = 1\nfor here in []: pass\ndef f(told): pass\n(there := 2)\nmade, HERE = 1, 2"
    assert {name for _, name in vague_names(ast.parse(code))} == VAGUE
