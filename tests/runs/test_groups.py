"""Cutting a run into summaries: groups, executors, rows that are not whole."""

import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
import torch

import gradstats
from gradstats.compressors import compressor
from gradstats.runs.compensated import compensated_groups
from gradstats.runs.groups import group_of, groups
from gradstats.runs.tasks import AHEAD, in_order, workers
from gradstats.store import layout
from gradstats.summary import summarize
from tests.processes import Nursery

CHUNK = "c.1.0"  # of the second row
FULL_STEPS = [0, 100, 200]
NAMES = ("embed.weight", "fc.weight", "fc.bias", "head.weight")


@pytest.fixture(scope="module")
def run(small_run):
    return gradstats.open(small_run)


def flat(grads, names=NAMES):
    return torch.cat([grads[name].reshape(-1) for name in names])


def every_group(run, **settings):
    return [group for row in groups(run, **settings) for group in row]


def by_name(found, step):
    return {group.name: group.summary for group in found if group.step == step}


def tracked_places(run):
    return torch.from_numpy(run.stream("track").element_ids["float32"])


def same_counts(one, other):
    for name in ("bins", "positive", "negative"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.n, one.zeros, one.max_abs) == (other.n, other.zeros, other.max_abs)
    for name in ("total_abs", "total_sq"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-12)


def test_the_model_is_the_sum_of_its_groups(run, gradients_of):
    found = {by: every_group(run, by=by) for by in ("model", "module-type", "parameter")}
    for step in FULL_STEPS:
        grads = gradients_of(step)
        model = by_name(found["model"], step)["model"]
        same_counts(model, summarize(flat(grads)))
        kinds = by_name(found["module-type"], step)
        assert set(kinds) == {"Embedding", "Linear"}
        same_counts(kinds["Embedding"] + kinds["Linear"], model)
        parameters = by_name(found["parameter"], step)
        assert list(parameters) == list(NAMES)
        for name, grad in grads.items():
            same_counts(parameters[name], summarize(grad))


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (r"^\w+", ["embed", "fc", "head"]),
        (r"\.(\w+)$", ["weight", "bias"]),
        ("fc", ["fc"]),
    ],
)
def test_a_regular_expression_groups_by_what_it_finds(run, by, names):
    assert list(by_name(every_group(run, by=by), 100)) == names


def test_what_a_regular_expression_does_not_find_is_left_out(run, gradients_of):
    found = by_name(every_group(run, by="fc"), 0)["fc"]
    same_counts(found, summarize(flat(gradients_of(0), ("fc.weight", "fc.bias"))))


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("layer", "found in a parameter's name, got 'layer'"),
        ("(", r"regular expression, got '\('"),
    ],
)
def test_a_grouping_that_groups_nothing_is_named(run, by, message):
    with pytest.raises(ValueError, match=message):
        groups(run, by=by)


def test_names_of_groups(run):
    fc = next(each for each in run.store.parameters if each.name == "fc.weight")
    keys = [group_of(by)(fc) for by in ("model", "module-type", "parameter", "f(.)", "x")]
    assert keys == ["model", "Linear", "fc.weight", "c", None]


@pytest.fixture(scope="module")
def patchy(run_writer, tmp_path_factory):
    """Two dtypes; the bias has no gradient at step 1, and the weight none at step 2."""
    rng = torch.Generator().manual_seed(2)
    grads = {
        step: {
            "weight": torch.randn(50, 40, generator=rng),
            "half": torch.randn(1_500, generator=rng).bfloat16(),
            "bias": torch.randn(10, generator=rng),
        }
        for step in range(3)
    }
    del grads[1]["bias"], grads[2]["weight"]
    path = run_writer(tmp_path_factory.mktemp("patchy") / "p.zarr", grads, tracked=500)
    return gradstats.open(path), grads


def test_a_parameter_without_a_gradient_says_so_and_is_not_in_the_model(patchy):
    run, grads = patchy
    found = every_group(run, by="parameter")
    for step, named in grads.items():
        here = [group for group in found if group.step == step]
        assert [group.name for group in here] == ["weight", "half", "bias"]
        for group in here:
            missing = group.name not in named
            assert group.status == (f"no gradient at step {step}" if missing else "ok")
            assert group.summary.n == (0 if missing else named[group.name].numel())
        model = by_name(every_group(run), step)["model"]
        assert model.n == sum(grad.numel() for grad in named.values())


def test_dtypes_are_summarised_on_their_own_grids_and_added_on_one(patchy):
    run, grads = patchy
    found = by_name(every_group(run, by="parameter"), 0)
    assert {name: summary.dtype for name, summary in found.items()} == {
        "weight": "float32",
        "half": "bfloat16",
        "bias": "float32",
    }
    whole = torch.cat([grad.float().reshape(-1) for grad in grads[0].values()])
    same_counts(by_name(every_group(run), 0)["model"], summarize(whole))
    assert torch.equal(run.read(0), whole)


def test_a_row_that_cannot_be_read_is_a_status(run_writer, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_ROWS", 1)
    path = run_writer(tmp_path / "d.zarr", {step: {"w": torch.randn(300)} for step in range(3)})
    (path / "worker_0" / "grad_float32" / CHUNK).unlink()
    found = every_group(gradstats.open(path))
    assert [group.status == "ok" for group in found] == [True, False, True]
    assert f"chunk {CHUNK} is missing" in found[1].status


def test_a_run_of_tracked_rows_alone_is_summarised_as_the_sample_it_is(
    run_writer, tmp_path, gradients_of
):
    grads = {step: gradients_of(step) for step in range(3)}
    run = gradstats.open(run_writer(tmp_path / "t.zarr", grads, full=(), tracked=500))
    found = every_group(run)
    assert [group.step for group in found] == [0, 1, 2]
    for group in found:
        assert group.summary.n == 500
        assert group.summary.fraction == pytest.approx(500 / 8_064)
        assert group.summary.total_abs == pytest.approx(
            float(flat(grads[group.step])[tracked_places(run)].abs().double().sum())
        )


@pytest.mark.slow
def test_executors_give_what_one_thread_gives(run):
    serial = every_group(run, by="parameter")
    for executor in (ThreadPoolExecutor(3), ProcessPoolExecutor(2, Nursery().context)):
        with executor:
            assert every_group(run, by="parameter", executor=executor) == serial


def test_rows_may_be_left_out_at_the_beginning(run):
    assert every_group(run, first=2) == every_group(run)[2:]


def test_results_come_in_order_from_few_tasks_at_a_time():
    begun, lock = [], threading.Lock()

    def task(item):
        with lock:
            begun.append(item)
        return item * item

    with ThreadPoolExecutor(4) as executor:
        results = in_order(task, range(10_000), executor)
        assert list(islice(results, 3)) == [0, 1, 4]
        assert len(begun) <= AHEAD + 3
        assert list(results) == [item * item for item in range(3, 10_000)]


@pytest.mark.slow
def test_one_job_is_this_process():
    with workers(1) as executor:
        assert executor is None
    with workers(2) as executor:
        assert executor.submit(torch.get_num_threads).result() == 1


def test_compensated_groups_are_those_of_gradient_plus_residual(run, gradients_of):
    """Against the residual kept by hand: what Top-k leaves is added to the next gradient."""
    found = list(islice(compensated_groups(run, compressor("topk(0.1)"), by="parameter"), 4))
    places = tracked_places(run)
    names = [name for name, grad in gradients_of(0).items() for _ in range(grad.numel())]
    tracked_names = np.array(names)[places.numpy()]
    residual = torch.zeros(2_000)
    for step, row in enumerate(found):
        whole = residual + flat(gradients_of(step))[places]
        for group in row:
            assert group.step == step
            same_counts(group.summary, summarize(whole[torch.tensor(tracked_names == group.name)]))
        residual = whole.clone()
        residual[whole.abs().topk(200).indices] = 0


def test_compensated_groups_need_consecutive_steps(run_writer, tmp_path):
    grads = {step: {"w": torch.randn(2_000)} for step in (0, 10, 20)}
    run = gradstats.open(run_writer(tmp_path / "gaps.zarr", grads))
    with pytest.raises(ValueError, match="consecutive steps; tracked rows are not there"):
        next(compensated_groups(run, compressor("topk(0.1)")))
