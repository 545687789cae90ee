"""The documentation has a page for what there is, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from gradstats import plot
from gradstats.families import FAMILIES

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "analyses").rglob("*.md"), ROOT / "README.md"]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_a_page_with_formula_estimators_picture_and_reference(family):
    page = (ROOT / "docs" / "families" / f"{family.name}.md").read_text()
    assert page.startswith("# ")
    for part in ("$$\nf(g) =", "## Parameters and estimators", "## References"):
        assert part in page
    assert f"({family.name}.png)" in page
    index = (ROOT / "docs" / "families" / "index.md").read_text()
    assert f"[`{family.name}`]({family.name}.md)" in index
    for parameter in family.__dataclass_fields__:
        assert f"| `{family.name}` {parameter} |" in index  # its coverage


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_page_on_fits_names_every_figure_of_laws():
    text = (ROOT / "docs" / "fit.md").read_text()
    replay = {"equal_bits", "error_against_bytes", "estimation", "overhead", "residuals"}
    for name in set(plot.__all__) - replay:
        assert f"`{name}`" in text
