"""The verbs for methods and timings: what they take, and that they are the report's tables."""

import math

import pandas
import pytest

import gradstats
from gradstats.network import Network
from gradstats.replaying.columns import MethodRow, TimingRow
from gradstats.replaying.ranking import methods_table
from gradstats.runs.tables import names


@pytest.fixture(scope="module")
def run(small_run):
    return gradstats.open(small_run, steps=(0, 30, 1))


@pytest.fixture(scope="module")
def replayed(run):
    return gradstats.replay(run, ["topk", "bf16"], ratios=0.1, feedback=["none", "ef"])


@pytest.fixture(scope="module")
def timings(run):
    return gradstats.timings(run, ["topk", "lowpass(topk)", "bf16"], ratios=0.1)


def test_timings_have_a_row_per_method_and_memory(timings):
    assert list(timings.columns) == names(TimingRow)
    keys = list(zip(timings["compressor"], timings["feedback"], strict=True))
    memories = ("none", "ef", "lowpass")
    assert keys == [("topk(0.1)", each) for each in memories] + [
        ("bf16", each) for each in ("none", "ef")
    ]
    assert (timings["encode_seconds"] > 0).all()
    assert timings["encode_over_topk"][0] == 1


def test_methods_are_the_reports_table(replayed, timings):
    network = Network(workers=4, bandwidth=1e6)
    table = gradstats.methods(replayed, timings, network=network)
    pandas.testing.assert_frame_equal(table, methods_table(replayed, timings, network))
    assert set(names(MethodRow)) <= set(table.columns)
    assert len(table) == 4
    assert (table["exchange_seconds"] > 0).all()


def test_without_timings_no_time_is_known_and_the_rest_is(replayed, timings):
    table = gradstats.methods(replayed)
    assert table["exchange_seconds"].isna().all()
    both = gradstats.methods(replayed, timings)
    for name in ("error", "bits", "residual_ratio", "steps"):
        assert table[name].tolist() == pytest.approx(both[name].tolist(), nan_ok=True)
    assert math.isnan(table["residual_ratio"][0])


def test_rows_of_several_workers_are_not_mixed(replayed):
    mixed = pandas.concat([replayed, replayed.assign(workers=2)])
    with pytest.raises(
        ValueError, match=r"replayed must be of one number of workers, got 2 \(1, 2\)"
    ):
        gradstats.methods(mixed)


def test_a_table_of_another_verb_is_named(replayed, timings):
    with pytest.raises(
        ValueError, match=r"as gradstats\.replay returns them, got a table without"
    ):
        gradstats.methods(timings)
    with pytest.raises(ValueError, match=r"as gradstats\.timings returns them, got a table"):
        gradstats.methods(replayed, replayed)
    with pytest.raises(ValueError, match="replayed must have a row"):
        gradstats.methods(replayed[:0])
    with pytest.raises(ValueError, match=r"fits must have the columns .* as gradstats\.fit"):
        gradstats.best_distribution(replayed)
    with pytest.raises(ValueError, match=r"must have the columns .* got Run"):
        gradstats.best_distribution(gradstats.load_example())
