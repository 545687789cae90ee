"""Opening a run and cutting it into summaries: selection, groups, executors, tables."""

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch

import gradstats
from gradstats.families import FAMILIES, Laplace
from gradstats.fitting import fit_rows
from gradstats.runs import fit_table, groups, threshold_table
from gradstats.store import GradientStore, parameter_table
from gradstats.summary import summarize

FULL_STEPS = [0, 100, 200]
NAMES = ("embed.weight", "fc.weight", "fc.bias", "head.weight")


@pytest.fixture(scope="module")
def run(small_run):
    return gradstats.open(small_run)


def flat(grads, names=NAMES):
    return torch.cat([grads[name].reshape(-1) for name in names])


def by_name(found, step):
    return {group.name: group.summary for group in found if group.step == step}


def test_what_was_appended_is_read(run, gradients_of):
    grads = gradients_of(100)
    assert run.names == NAMES
    assert torch.equal(run.read(100), flat(grads))
    for name, grad in grads.items():
        assert torch.equal(run.read(100, name), grad)
    tracked = run.read(7, kind="track")
    assert torch.equal(tracked, flat(gradients_of(7))[tracked_places(run)])


def tracked_places(run):
    return torch.from_numpy(run.stream("track").element_ids["float32"])


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("*", NAMES),
        ("fc.*", ("fc.weight", "fc.bias")),
        ("*weight", ("embed.weight", "fc.weight", "head.weight")),
        ("fc.bias", ("fc.bias",)),
    ],
)
def test_a_glob_selects_parameters_of_both_kinds_of_rows(small_run, gradients_of, glob, names):
    run = gradstats.open(small_run, parameters=glob)
    assert run.names == names
    for step, grad in run.gradients():
        assert torch.equal(grad, flat(gradients_of(step), names))
    inside = torch.cat([torch.full((g.numel(),), n in names) for n, g in gradients_of(0).items()])
    places = tracked_places(run)
    kept = places[inside[places]]
    for (step, grad), _ in zip(run.gradients("track"), range(3), strict=False):
        assert torch.equal(grad, flat(gradients_of(step))[kept])
    assert sum(part.numel for part in run.parts("track")) == len(kept)


def test_a_glob_without_a_match_names_what_there_is(small_run):
    with pytest.raises(ValueError, match=r"embed\.weight, fc\.weight.*got 'decoder\.\*'"):
        gradstats.open(small_run, parameters="decoder.*")


@pytest.mark.parametrize(
    ("steps", "full", "track"),
    [
        ((None, None, 1), FULL_STEPS, list(range(220))),
        ((100, None, 1), [100, 200], list(range(100, 220))),
        ((None, 100, 1), [0], list(range(100))),
        ((1, 200, 50), [100], [1, 51, 101, 151]),
        ((None, None, 2), [0, 200], list(range(0, 220, 2))),
        ((150, 200, 1), [], list(range(150, 200))),
    ],
)
def test_steps_select_rows_from_start_to_before_stop(small_run, steps, full, track):
    run = gradstats.open(small_run, steps=steps)
    for kind, wanted in (("full", full), ("track", track)):
        assert [step for step, _ in run.gradients(kind)] == wanted
        assert run.stream(kind).steps[run.rows(kind)].tolist() == wanted


def test_what_is_not_there_is_named_with_what_is(run, tmp_path):
    with pytest.raises(ValueError, match=r"nearest are 0, 100, 200, got 120"):
        run.read(120)
    with pytest.raises(ValueError, match=r"embed\.weight, .*got 'decoder'"):
        run.read(100, "decoder")
    with pytest.raises(ValueError, match=r"model, module-type, parameter, got 'layer'"):
        groups(run, by="layer")
    with pytest.raises(gradstats.StoreFormatError, match="missing"):
        gradstats.open(tmp_path / "missing")
    with pytest.raises(ValueError, match="got 'cauchy'"):
        gradstats.fit(run, families=["cauchy"])


def test_small_parameters_are_dense_also_where_only_some_elements_are_tracked(run):
    for kind in ("full", "track"):
        dense = {part.name: part.dense for part in run.parts(kind)}
        assert dense == dict.fromkeys(NAMES, False) | {"fc.bias": True}
    assert [part.numel for part in run.parts()] == [60 * 48, 64 * 50, 64, 30 * 64]


def test_the_model_is_the_sum_of_its_groups(run, gradients_of):
    found = {by: groups(run, by=by) for by in ("model", "module-type", "parameter")}
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
            assert parameters[name] == summarize(grad)


def same_counts(one, other):
    for name in ("bins", "positive", "negative"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.n, one.zeros, one.max_abs) == (other.n, other.zeros, other.max_abs)
    for name in ("total_abs", "total_sq"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-12)


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


def test_a_parameter_without_a_gradient_is_not_in_the_group(patchy):
    run, grads = patchy
    for step, named in grads.items():
        assert list(by_name(groups(run, by="parameter"), step)) == list(named)
        model = by_name(groups(run), step)["model"]
        assert model.n == sum(grad.numel() for grad in named.values())


def test_dtypes_are_summarised_on_their_own_grids_and_added_on_one(patchy):
    run, grads = patchy
    found = by_name(groups(run, by="parameter"), 0)
    assert {name: summary.dtype for name, summary in found.items()} == {
        "weight": "float32",
        "half": "bfloat16",
        "bias": "float32",
    }
    whole = torch.cat([grad.float().reshape(-1) for grad in grads[0].values()])
    same_counts(by_name(groups(run), 0)["model"], summarize(whole))
    assert torch.equal(run.read(0), whole)
    assert gradstats.fit(run, by="parameter")["status"].eq("ok").all()


def test_a_run_of_tracked_rows_alone_is_summarised_as_the_sample_it_is(
    run_writer, tmp_path, gradients_of
):
    grads = {step: gradients_of(step) for step in range(3)}
    run = gradstats.open(run_writer(tmp_path / "t.zarr", grads, full=(), tracked=500))
    found = groups(run)
    assert [group.step for group in found] == [0, 1, 2]
    for group in found:
        assert group.summary.n == 500
        assert group.summary.fraction == pytest.approx(500 / 8_064)
        assert group.summary.total_abs == pytest.approx(
            float(flat(grads[group.step])[tracked_places(run)].abs().double().sum())
        )


def test_executors_give_what_one_thread_gives(run):
    serial = groups(run, by="parameter")
    context = multiprocessing.get_context("spawn")
    executors = (ThreadPoolExecutor(3), ProcessPoolExecutor(2, mp_context=context))
    for executor in executors:
        with executor:
            assert groups(run, by="parameter", executor=executor) == serial
            table = gradstats.fit(run, families=[Laplace], executor=executor)
        assert table.equals(gradstats.fit(run, families=[Laplace]))


def test_progress_counts_rows(run):
    seen = []
    groups(run, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_fit_is_the_rows_of_every_group_with_where_they_come_from(run):
    ratios = [0.1, 0.01]
    table = gradstats.fit(run, by="module-type", ratios=ratios, families=["laplace", "dgamma"])
    assert len(table) == 3 * 2 * 2 * 2
    for group in groups(run, by="module-type"):
        part = table[(table["step"] == group.step) & (table["group"] == group.name)]
        expected = fit_rows(group.summary, families=FAMILIES[:2], ratios=ratios)
        for row, wanted in zip(part.to_dict("records"), expected, strict=True):
            for name, value in wanted.items():
                unknown = isinstance(value, float) and math.isnan(value)
                assert row[name] == value or (unknown and math.isnan(row[name]))


def test_tables_of_a_gradient_that_cannot_be_fitted_are_complete(run_writer, tmp_path):
    run = gradstats.open(run_writer(tmp_path / "z.zarr", {0: {"w": torch.zeros(2_000)}}))
    table = fit_table(groups(run))
    assert len(table) == 3 * len(FAMILIES)
    assert not table["status"].eq("ok").any()
    thresholds = threshold_table(groups(run))
    assert thresholds["guards"].str.len().gt(0).all()
    assert thresholds["khat_over_k"].eq(0).all()


def test_a_run_without_tracked_rows_is_a_run(run_writer, tmp_path):
    path = run_writer(tmp_path / "full.zarr", {5: {"w": torch.ones(3)}})
    run = gradstats.open(path)
    assert "1 full rows + 0 track rows" in repr(run)
    assert run.rows("track") == list(run.gradients("track")) == []
    assert [part.name for part in run.parts("track")] == ["w"]
    with pytest.raises(ValueError, match="nearest are none, got 5"):
        run.read(5, kind="track")


def test_selecting_no_row_at_all_is_an_error_that_says_which_there_are(small_run):
    with pytest.raises(ValueError, match=r"steps must .*from 0 to 219, got 500:510:1"):
        gradstats.open(small_run, steps=(500, 510, 1))
    with pytest.raises(ValueError, match=r"worker must be one of 0, got 3"):
        gradstats.open(small_run, worker=3)


def test_a_run_that_was_killed_before_its_first_row_opens_and_says_it_has_none(tmp_path):
    table = parameter_table([("w", (3,), "float32")])
    with GradientStore.create(tmp_path / "killed.zarr", table) as store:
        store.claim()
    run = gradstats.open(tmp_path / "killed.zarr")
    assert "0 full rows + 0 track rows" in repr(run)
    for look in (groups, gradstats.fit, gradstats.report):
        with pytest.raises(ValueError, match=r"run must have a row.*got none"):
            look(run)
    assert not (tmp_path / "killed.results").exists()


def test_rows_that_a_restart_undid_are_left_out(tmp_path):
    """Steps 0-4, then a restart from step 2 with gradients ten times as large."""
    with GradientStore.create(tmp_path / "r.zarr") as store:
        for segment, steps in ((0, range(5)), (1, range(2, 6))):
            for step in steps:
                grad = {"w": torch.full((4,), 10.0**segment)}
                store.append(step, grad, segment=segment)
    run = gradstats.open(tmp_path / "r.zarr")
    told = [(step, float(grad[0])) for step, grad in run.gradients()]
    assert told == [(0, 1.0), (1, 1.0), (2, 10.0), (3, 10.0), (4, 10.0), (5, 10.0)]
    assert float(run.read(3)[0]) == 10.0
