"""The order that saved gradients are imported in: by every number in their paths."""

import random

import numpy as np
import pytest

import gradstats
from gradstats.runs.importing import import_gradients
from gradstats.runs.importing.order import ordered
from gradstats.runs.importing.sources import find_sources


def saved(folder, names):
    """One file per name that holds the name's place in the list, and a shuffled list of them."""
    files = []
    for place, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.full(2, place, "float32"))
        files.append(file)
    random.Random(0).shuffle(files)
    return files


def imported(files, out, **settings):
    """The values of the rows in order, their steps, and what was printed."""
    lines = []
    with import_gradients(files, out, say=lines.append, **settings) as store:
        stream = store.stream()
        values = [stream.read(row)[0].item() for row in range(len(stream))]
        return values, stream.steps.tolist(), "\n".join(lines)


ORDERS = {
    "numbered folders": ([f"step_{n}/grad.npy" for n in range(1, 11)], range(1, 11)),
    "decimal times": ([f"sol-{t}.npy" for t in ("0.006", "0.983", "1.181", "10.709")], range(4)),
    "decimal folders": ([f"sol-{t}/g.npy" for t in ("0.5", "0.25e+1", "10.0", "10.5")], range(4)),
    "exponents": ([f"t{t}.npy" for t in ("1e-05", "2.5e-05", "0.001", "1e+16")], range(4)),
    "negative times": ([f"t={t}.npy" for t in ("-10.5", "-2", "0", "3")], range(4)),
    "dates": ([f"2024-01-{d:02}.npy" for d in range(1, 13)], range(1, 13)),
    "padded": ([f"g_{n:05}.npy" for n in (3, 20, 100)], (3, 20, 100)),
    "equals": ([f"epoch=1-step={n}.npy" for n in (5, 40, 300)], (5, 40, 300)),
    "named inside": ([f"step_{n}_grad.npy" for n in (5, 40, 300)], (5, 40, 300)),
    "growing steps": ([f"epoch_{n // 20}/step_{n}.npy" for n in (5, 40, 300)], (5, 40, 300)),
    "steps of each epoch": (
        [f"epoch_{e}/step_{n}.npy" for e in (2, 10) for n in (9, 10)],
        range(4),
    ),
    "one per epoch": ([f"epoch_{e}/step_100.npy" for e in (2, 9, 10)], (2, 9, 10)),
    "versions": ([f"v1.{n}.npy" for n in (2, 9, 10, 11)], range(4)),
    "three numbers": ([f"m1.2.{n}.npy" for n in (2, 9, 10, 11)], range(4)),
    "dotted": ([f"ckpt.1.{n}.npy" for n in (8, 9, 10, 11)], range(4)),
    "after a dot": ([f"grad.{n}.npy" for n in (8, 9, 10)], (8, 9, 10)),
    "other words": ([f"{w}_{n}.npy" for n, w in enumerate(("warm", "warm", "train"))], range(3)),
    "a last one": (
        ["checkpoint-9/g.npy", "checkpoint-10/g.npy", "checkpoint-final/g.npy"],
        range(3),
    ),
    "no numbers": (["a.npy", "b.npy", "c.npy"], range(3)),
    "a number of 30 digits": ([f"{n}.npy" for n in (7, 10**30)], range(2)),
    "folders with numbers": ([f"run-3/2024/step_{n}/g.npy" for n in (2, 10)], (2, 10)),
}


@pytest.mark.parametrize(("names", "steps"), ORDERS.values(), ids=ORDERS)
def test_files_are_in_the_order_of_the_numbers_in_their_paths(names, steps):
    shuffled = [f"run-17/{name.removesuffix('.npy')}" for name in names]
    random.Random(0).shuffle(shuffled)
    found = ordered(shuffled)
    assert list(found.names) == [f"run-17/{name.removesuffix('.npy')}" for name in names]
    assert found.steps == tuple(steps)


@pytest.mark.parametrize("which", ["numbered folders", "decimal times", "steps of each epoch"])
def test_the_rows_are_in_that_order_and_it_is_printed(tmp_path, which):
    names, steps = ORDERS[which]
    values, found, lines = imported(saved(tmp_path, names), tmp_path / "run.zarr")
    assert values == list(range(len(names)))
    assert found == list(steps)
    first, second, *_, last = steps
    assert f"  first: step {first}, {tmp_path}/{names[0]}\n" in lines
    assert f"  second: step {second}, {tmp_path}/{names[1]}\n" in lines
    assert lines.endswith(f"  last: step {last}, {tmp_path}/{names[-1]}")
    assert ("steps count 0, 1, 2" in lines) == (first == 0)


def test_a_folder_and_a_pattern_are_the_files_they_name(tmp_path, monkeypatch):
    saved(tmp_path / "grads", [f"step_{n}/grad.npy" for n in (1, 2, 10)])
    (tmp_path / "grads/.hidden.npy").write_bytes(b"")
    (tmp_path / "grads/notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert imported(["grads"], "a.zarr")[:2] == ([0, 1, 2], [1, 2, 10])
    assert imported(["grads/step_*/*.npy"], "b.zarr")[:2] == ([0, 1, 2], [1, 2, 10])
    with pytest.raises(FileNotFoundError, match=r"steps_\*.*nothing matches"):
        imported(["grads/steps_*"], "c.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no file in it ends in \.npy"):
        imported(["empty"], "c.zarr")
    with pytest.raises(ValueError, match=r"a\.zarr: it is a Zarr store already; gradstats copy"):
        imported(["a.zarr"], "c.zarr")


def test_the_order_given_and_the_number_asked_for(tmp_path):
    files = saved(tmp_path, ["seed3_loss0.5_t9.npy", "seed2_loss0.7_t10.npy"])
    given = imported(files, tmp_path / "a.zarr", order="given")
    assert given[:2] == ([int("seed2" in file.name) for file in files], [0, 1])
    assert imported(files, tmp_path / "b.zarr", step_from=r"t(\d+)")[:2] == ([0, 1], [9, 10])
    assert imported(files, tmp_path / "c.zarr", step_from=r"seed(\d+)")[:2] == ([1, 0], [2, 3])
    by_loss = imported(files, tmp_path / "d.zarr", step_from=r"loss([\d.]+)")
    assert by_loss[:2] == ([0, 1], [0, 1])
    assert "not all whole numbers" in by_loss[2]
    for expression, fact in {
        "x(\\d+)": "must match every path, got none of .* in '.*seed",
        "(seed)": "must capture a number, got 'seed' in",
        "se(e)d(.)": "must have at most one group, got 2",
        "(npy": "must be a regular expression",
        "lo(ss)?_|s(.)": "must have at most one group",
    }.items():
        with pytest.raises(ValueError, match=f"step_from {fact}"):
            imported(files, tmp_path / "e.zarr", step_from=expression)
    twins = saved(tmp_path, ["a1_b1.npy", "a1_b2.npy"])
    with pytest.raises(ValueError, match=r"got 1 for '.*a1_b\d' and '.*a1_b\d'"):
        imported(twins, tmp_path / "e.zarr", step_from=r"a(\d+)")
    with pytest.raises(ValueError, match="order must be one of natural, given, got 'shell'"):
        imported(files, tmp_path / "e.zarr", order="shell")


@pytest.mark.parametrize(
    "names",
    [["a1.npy", "b1.npy"], ["w_1.npy", "b_1.npy", "w_2.npy", "b_2.npy"], ["g1.npy", "g01.npy"]],
)
def test_names_whose_numbers_are_the_same_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match=r"different numbers.*--step-from REGEX.*--order given"):
        imported(saved(tmp_path, names), tmp_path / "run.zarr")
    assert len(imported(saved(tmp_path, names), tmp_path / "a.zarr", order="given")[0]) == len(
        names
    )


@pytest.mark.parametrize(
    "names",
    [
        ["step_1.npy", "step_2.npy", "final.npy"],
        ["model.npy", "model_1.npy", "model_2.npy"],
        ["e_1/last.npy", "e_1/step_2.npy", "e_2/step_1.npy", "e_2/last.npy"],
    ],
)
def test_a_name_without_a_number_is_last_or_refused(tmp_path, names):
    files = saved(tmp_path, names)
    with pytest.raises(ValueError, match=r"as many numbers .* fewer in .*leave it out.*--order g"):
        imported(files, tmp_path / "run.zarr")
    assert len(imported(files, tmp_path / "a.zarr", order="given")[0]) == len(names)
    last = saved(tmp_path, ["z_1.npy", "z_2.npy", "z_final.npy"])
    values, steps, lines = imported(last, tmp_path / "b.zarr")
    assert (values, steps) == ([0, 1, 2], [0, 1, 2])
    assert "z_final' has no number and is taken as the last" in lines


def test_files_that_differ_in_their_suffix_alone_are_refused(tmp_path):
    (file,) = saved(tmp_path, ["step_10.npy"])
    other = file.with_suffix(".npz")
    np.savez(other, gradient=np.ones(2))
    with pytest.raises(ValueError, match=r"differ in more than their suffix, .*; leave one out"):
        imported([file, other], tmp_path / "run.zarr")


def test_a_file_that_is_named_twice_is_refused(tmp_path):
    (file,) = saved(tmp_path, ["step_10.npy"])
    (tmp_path / "latest.npy").symlink_to(file)
    for other in (file, tmp_path / "." / ".." / tmp_path.name / "step_10.npy", "latest.npy"):
        with pytest.raises(ValueError, match=r"files must all be different, got .* are one"):
            imported([file, tmp_path / other], tmp_path / "run.zarr")


WORKERS = {
    "file": [f"step{s}_rank{w}.npy" for s in (9, 10) for w in range(3)],
    "worker": [f"step{s}-worker_{w:02}.npy" for s in (9, 10) for w in range(3)],
    "folder": [f"rank{w}/step_{s}.npy" for s in (9, 10) for w in range(3)],
    "last folder": [f"step_{s}/dp_rank_{w}.npy" for s in (9, 10) for w in range(3)],
    "from 1": [f"step_{s}/gpu{w}.npy" for s in (9, 10) for w in (1, 2, 3)],
    "nodes": [f"s_{s}/node{w // 2}_local_rank{w % 2}.npy" for s in (9, 10) for w in range(4)],
}


@pytest.mark.parametrize("names", WORKERS.values(), ids=WORKERS)
def test_workers_that_are_named_are_workers(tmp_path, names):
    files = saved(tmp_path, names)
    how = {"order": "natural", "step_from": ""}
    found, count = find_sources(files, workers=1, **how), len(names) // 2
    assert found.workers == count
    rows = [(source.step, source.worker, source.files) for source in found.sources]
    expected = [(9 + i // count, i % count, (tmp_path / name,)) for i, name in enumerate(names)]
    assert rows == expected
    with pytest.raises(
        ValueError, match=f"workers must be the {count} that the file names give, got 7"
    ):
        find_sources(files, workers=7, **how)
    files.remove(tmp_path / names[1])
    with pytest.raises(ValueError, match="has no file of its step"):
        find_sources(files, workers=1, **how)


def test_the_rows_of_named_workers_are_theirs(tmp_path):
    files = saved(tmp_path, WORKERS["folder"])
    assert imported(files, tmp_path / "run.zarr")[:2] == ([0, 3], [9, 10])
    steps = list(gradstats.open(tmp_path / "run.zarr").together(3))
    assert [[grad[0].item() for grad in each] for _, each in steps] == [[0, 1, 2], [3, 4, 5]]


def test_one_rank_alone_is_worker_0_and_parts_of_a_model_are_refused(tmp_path):
    files = saved(tmp_path, ["step9_rank3.npy", "step10_rank3.npy"])
    assert imported(files, tmp_path / "a.zarr")[:2] == ([0, 1], [9, 10])
    files = saved(
        tmp_path, [f"s{s}/mp_rank_0{r}_model_states.npy" for s in (1, 2) for r in (0, 1)]
    )
    with pytest.raises(ValueError, match=r"hold parts of one model \(mp_rank\); join them"):
        imported(files, tmp_path / "b.zarr")
    files = [file for file in files if "mp_rank_00" in file.name]
    assert imported(files, tmp_path / "b.zarr")[:2] == ([0, 2], [1, 2])


def test_the_command_line_prints_the_order_and_takes_it(call, tmp_path):
    files = saved(tmp_path, [f"step_{n}/grad.npy" for n in (1, 2, 10)])
    code, shown, _ = call("import", *files, "--out", tmp_path / "run.zarr")
    assert code == 0
    assert "first: step 1, " in shown
    assert "second: step 2, " in shown
    assert f"last: step 10, {tmp_path}/step_10/grad.npy" in shown
    assert "3 rows" in shown
    again = ("import", *files, "--out", tmp_path / "run.zarr", "--if-exists", "overwrite")
    assert call(*again, "--step-from", r"step_(\d+)")[0] == 0
    assert gradstats.open(tmp_path / "run.zarr").stream().steps.tolist() == [1, 2, 10]
    assert call(*again, "--order", "given")[0] == 0
    assert gradstats.open(tmp_path / "run.zarr").stream().steps.tolist() == [0, 1, 2]
    code, _, err = call(*again, "--order", "shell")
    assert code == 2
    assert "'shell' is not one of 'natural', 'given'" in err
