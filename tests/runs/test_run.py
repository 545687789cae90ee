"""Opening a run and cutting it into summaries: selection, groups, executors, tables."""

import pytest
import torch
from typer.testing import CliRunner

import gradstats
from gradstats import runs
from gradstats.cli.app import app
from gradstats.store import GradientStore, parameter_table

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
    with pytest.raises(gradstats.StoreFormatError, match="missing"):
        gradstats.open(tmp_path / "missing")
    with pytest.raises(ValueError, match="got 'cauchy'"):
        gradstats.fit(run, families=["cauchy"])


def test_small_parameters_are_dense_also_where_only_some_elements_are_tracked(run):
    for kind in ("full", "track"):
        dense = {part.name: part.dense for part in run.parts(kind)}
        assert dense == dict.fromkeys(NAMES, False) | {"fc.bias": True}
    assert [part.numel for part in run.parts()] == [60 * 48, 64 * 50, 64, 30 * 64]


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
    for look in (gradstats.fit, gradstats.report):
        with pytest.raises(ValueError, match=r"killed.zarr has no row: the training took no step"):
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


def two_points(path):
    with GradientStore.create(path) as store:
        for step in range(6):
            for value, point in enumerate(("local", "reduced")):
                grads = {"w": torch.full((4,), float(10 * step + value))}
                store.append(step, grads, point=point, skipped=int(step == 3))


def test_rows_are_of_one_point_and_of_steps_that_were_taken(tmp_path):
    two_points(tmp_path / "r.zarr")
    run = runs.open(tmp_path / "r.zarr")
    assert run.points == ("local", "reduced")
    assert [step for step, _ in run.gradients()] == [0, 1, 2, 4, 5]
    assert [grad[0].item() for _, grad in run.gradients()] == [0, 10, 20, 40, 50]
    reduced = runs.open(tmp_path / "r.zarr", point="reduced")
    assert [grad[0].item() for _, grad in reduced.gradients()] == [1, 11, 21, 41, 51]
    with pytest.raises(ValueError, match="point must be one of local, reduced, got 'clipped'"):
        runs.open(tmp_path / "r.zarr", point="clipped")


def test_replaying_what_no_hook_receives_is_said(tmp_path):
    two_points(tmp_path / "r.zarr")
    command = ["replay", str(tmp_path / "r.zarr"), "--compressors", "bf16", "--feedback", "none"]
    assert "does not receive them" not in CliRunner().invoke(app, command).output
    ended = CliRunner().invoke(app, [*command, "--point", "reduced"])
    assert ended.exit_code == 0, ended.output
    assert "a DDP communication hook does not receive them" in " ".join(ended.output.split())


def test_rows_that_a_restart_did_again_are_counted_by_name(tmp_path, call):
    """Steps 0 to 4, then from 2 again: 8 rows are stored, 5 are read."""
    path = tmp_path / "run.zarr"
    with GradientStore.create(path) as store:
        for segment, steps in enumerate((range(5), range(2, 5))):
            for step in steps:
                store.append(step, {"weight": torch.ones(3)}, segment=segment)
    run = gradstats.open(path)
    assert (len(run.stream()), run.undone(), len(run.rows())) == (8, 3, 5)
    assert "8 full rows + 0 track rows (3 of them undone)" in repr(run)
    code, shown, _ = call("info", path)
    assert code == 0
    assert "worker 0: 8 full rows, steps 0–4, unknown" in shown
    assert "3 of them undone by a later segment, which readers leave out: 5 rows are read" in shown


def test_a_run_without_a_restart_names_no_undone_rows(small_run, call):
    assert gradstats.open(small_run).undone("track") == 0
    assert "undone" not in call("info", small_run)[1]
