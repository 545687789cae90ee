import itertools

import pytest

from gradstats.recording.budget import Budget, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [("20GB", 20 * 10**9), ("1 kib", 1024), ("1.5MB", 1_500_000), (17, 17), ("9b", 9)],
)
def test_sizes_are_read(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "0", 0, -5, "1.2.3MB", "20 potatoes", None, 2.5, True]
)
def test_bad_sizes_are_refused(text):
    with pytest.raises(ValueError, match="max_bytes must be a positive size"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["20", "20.5", " 7 "])
def test_a_size_as_text_has_a_unit(text):
    number = text.strip()
    with pytest.raises(ValueError, match=f"must have a unit, got '{text}'; write {number}GB"):
        parse_bytes(text)


@pytest.mark.parametrize("count", [1, 999, 1000, 123_456, 2 * 10**9, 5 * 10**12])
def test_sizes_are_written_as_they_are_read(count):
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=5e-3)


def run(budget: Budget, cost: int, due: int) -> list[int]:
    kept = []
    for index in range(due):
        if budget.keeps_full_row() and budget.remaining >= cost:
            budget.take(cost)
            kept.append(index)
    return kept


def test_full_rows_thin_out_and_never_pass_the_cap():
    budget = Budget(1000)
    kept = run(budget, 10, 100_000)
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert gaps == sorted(gaps)
    assert {gap for gap in gaps if gap & (gap - 1) == 0} >= {1, 2, 4, 8}
    assert 0 <= budget.remaining < 1000
    # half the budget went at the first interval, half of the rest at the second
    assert gaps.count(1) == pytest.approx(50, abs=1)
    assert gaps.count(2) == pytest.approx(25, abs=1)


def test_rows_that_were_not_written_are_not_spent():
    budget = Budget(100)
    for _ in range(1000):
        budget.take(60)
        budget.give_back(60)
    assert budget.remaining == 100
    assert budget.keeps_full_row()
