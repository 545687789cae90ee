"""The page of figures is the docstrings of `gradstats.plot`, with a picture of each."""

import re

import pytest
from matplotlib import pyplot

from gradstats import plot
from tests.docs import plots_page

MOST_BYTES = 60_000
PNG = b"\x89PNG\r\n\x1a\n"


def test_the_page_is_written_from_the_docstrings():
    assert plots_page.PAGE.read_text(encoding="utf-8") == plots_page.page(), (
        "run python -m tests.docs.plots_page"
    )


@pytest.mark.parametrize("name", plot.__all__)
def test_every_figure_has_its_picture_and_its_snippet(name):
    text = plots_page.PAGE.read_text(encoding="utf-8")
    assert f"(plots/{name}.png)" in text
    (snippet,) = re.findall(rf"## `{name}`\n[^#]*?```python\n(.*?)```", text, re.DOTALL)
    assert f"gradstats.plot.{name}(" in snippet
    compile(snippet, name, "exec")  # the doctest of the function runs it
    picture = (plots_page.PICTURES / f"{name}.png").read_bytes()
    assert picture.startswith(PNG)
    assert len(picture) < MOST_BYTES


def test_there_is_no_picture_of_what_is_gone():
    files = {path.stem for path in plots_page.PICTURES.iterdir()}
    assert files == set(plot.__all__)


def test_a_snippet_of_the_page_draws_its_picture(tmp_path, monkeypatch):
    """Their sizes agree; letters and colours depend on the fonts of the machine."""
    monkeypatch.setattr(plots_page, "PICTURES", tmp_path)
    plots_page.draw("over_steps")
    size = pyplot.imread(tmp_path / "over_steps.png").shape
    there = plots_page.PAGE.parent / "plots" / "over_steps.png"
    assert size == pyplot.imread(there).shape
