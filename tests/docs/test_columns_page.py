"""The page of columns is what the dataclasses of the rows say, and the tables have them."""

from dataclasses import fields

import pandas
import pytest

import gradstats
from gradstats.runs.tables import names
from tests.docs.columns_page import MADE, PAGE, page

ROWS = {name: row for made in MADE for name, row in made.tables.items()}
RATIOS = {f"best_k_error_{ratio:g}" for ratio in (0.1, 0.01, 0.001)}


def test_the_page_is_what_the_dataclasses_say():
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("name", ROWS)
def test_every_column_has_a_sentence(name):
    assert all(each.metadata["text"].endswith(".") for each in fields(ROWS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if name != "pairs"])
def test_the_tables_of_a_report_have_the_columns(reported, name):
    """But for what comes with bootstrap= alone, and the errors at each ratio, by their names."""
    written = set(pandas.read_parquet(reported[1] / f"{name}.parquet").columns)
    declared = set(names(ROWS[name])) - {"bootstrap_p_corrected"}
    assert {each for each in written - RATIOS} == declared


def test_tables_of_the_functions_have_the_columns(small_run):
    run = gradstats.open(small_run, steps=(0, 4, 1))
    fitted = gradstats.fit(run, families="laplace", ratios=0.1)
    assert set(fitted) == set(names(ROWS["fits"])) - {"bootstrap_p_corrected"}
    pairs = gradstats.compare_distributions(run, families=("laplace", "normal"))
    assert list(pairs) == names(ROWS["pairs"])
    replayed = gradstats.replay(run, "topk", ratios=0.1)
    assert set(replayed) == set(names(ROWS["replay"])) - {"whole"}
