"""The page says of each way of training what rows were found to hold."""

import pytest
import torch

from tests.docs.points_table import BEGIN, END, PAGE, phrase, table

pytestmark = pytest.mark.slow


def test_the_table_of_the_page_is_what_rows_hold(tmp_path):
    committed = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert table(tmp_path).strip() == committed.strip()


def test_a_row_that_is_nothing_known_is_no_cell():
    exact = {"own": torch.ones(3), "mean": torch.full((3,), 2.0)}
    assert phrase(torch.ones(3), exact) == "own"
    for row in (torch.zeros(3), torch.tensor([1.0, 1.0, 1.001]), torch.full((3,), torch.nan)):
        with pytest.raises(AssertionError, match="it is \\[\\]"):
            phrase(row, exact)
