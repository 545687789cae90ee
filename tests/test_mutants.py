"""The mutants still fit the code, and their tests are there; `make mutants` makes them."""

from pathlib import Path

import pytest

import gradstats
from tests.mutants import MUTANTS

PACKAGE = Path(gradstats.__file__).parent
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_what_a_mutant_changes_is_there_once(file):
    text = (PACKAGE / file).read_text(encoding="utf-8")
    for mutant in MUTANTS:
        if mutant.file == file:
            assert text.count(mutant.old) == 1, mutant.name
            assert mutant.new != mutant.old, mutant.name


def test_every_mutant_is_another_one_and_names_its_tests():
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        assert mutant.tests, mutant.name
        for word in mutant.tests:
            path, _, name = word.partition("::")
            text = (ROOT / path).read_text(encoding="utf-8")
            assert f"def {name.partition('[')[0]}(" in text or not name, word
