"""Replay of several workers: the error of the mean, against float64 loops and closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import gradstats
from gradstats.cli.app import app
from gradstats.compressors import Rng, compressor
from gradstats.exchange import simulate
from gradstats.replaying.folding import measure, replay_rows
from gradstats.runs.importing import import_gradients

N = 3000


def gradient(worker, step=0):
    rng = np.random.default_rng([worker, step])
    return torch.from_numpy((rng.laplace(size=N) * (1 + worker)).astype("f4"))


def measured(spec, grads, step=0):
    member = compressor(spec)
    rng = Rng(0, step, workers=len(grads))
    row, states = measure(member, grads, [member.init(grad) for grad in grads], rng)
    return vars(row), states


def test_errors_are_those_of_the_mean_by_hand():
    grads = [gradient(worker) for worker in range(4)]
    row, _ = measured("topk(0.05)", grads)
    mean, update = np.zeros(N), np.zeros(N)
    for grad in grads:
        g = grad.double().numpy()
        mean += g / 4
        places = np.argsort(np.abs(g))[-150:]
        update[places] += g[places] / 4
    lost = ((mean - update) ** 2).sum()
    squares = np.mean([float(grad.double().square().sum()) for grad in grads])
    assert row["nmse"] == pytest.approx(lost / (mean**2).sum(), rel=1e-5)
    assert row["nmse_workers"] == pytest.approx(lost / squares, rel=1e-5)
    assert row["error"] == pytest.approx(math.sqrt(lost / (mean**2).sum()), rel=1e-5)
    assert row["nmse_workers"] < row["nmse"], "workers differ"
    assert row["khat_over_k"] == 1
    assert row["wire"] == pytest.approx(3 * row["nbytes"], rel=0.05)


@pytest.mark.parametrize("inner", ["mxfp8", "affine(4)"])
def test_a_replay_shows_that_errors_grow_along_a_ring(inner):
    """Uncorrelated workers: of a gather e, of two shots 2e, of a ring (n+1)e/2; and the bytes."""
    grads = [torch.randn(40_000, generator=torch.Generator().manual_seed(w)) for w in range(8)]
    gathered, shots, ring = (
        measured(spec, grads)[0] for spec in (inner, f"twoshot({inner})", f"ring({inner})")
    )
    assert shots["nmse"] == pytest.approx(2 * gathered["nmse"], rel=0.1)
    assert ring["nmse"] == pytest.approx(4.5 * gathered["nmse"], rel=0.1)
    code = gathered["nbytes"]
    assert gathered["wire"] == pytest.approx(7 * code, rel=0.01)
    for row, handed in ((shots, 1 + 1 / 8), (ring, 1.0)):
        assert row["nbytes"] == pytest.approx(handed * code, rel=0.02)
        assert row["bits"] == 8 * row["nbytes"] / 40_000
        assert row["wire"] == pytest.approx(2 * 7 / 8 * code, rel=0.02)


@pytest.mark.parametrize("spec", ["ef(twoshot(sign))", "ef(ring(sign))"])
@pytest.mark.parametrize("workers", [1, 3])
def test_what_owners_hold_back_is_held_back(spec, workers):
    """By conservation e is the sum of all gradients without that of all updates."""
    member, waiting = compressor(spec), np.zeros(N)
    states = [member.init(gradient(worker)) for worker in range(workers)]
    for step in range(4):
        grads = [gradient(worker, step) for worker in range(workers)]
        mean = np.mean([grad.double().numpy() for grad in grads], axis=0)
        rng = Rng(0, step, workers=workers)
        asked = [
            member.exchange(grad, state, replace(rng, worker=worker))
            for worker, (grad, state) in enumerate(zip(grads, states, strict=True))
        ]
        update = simulate(asked)[0].update.double().numpy()
        row, states = measure(member, grads, states, rng)
        before, waiting = waiting + mean, waiting + mean - update
        held, due = np.linalg.norm(waiting), np.linalg.norm(before)
        assert row.residual_ratio == pytest.approx(held / np.linalg.norm(mean), rel=1e-4)
        assert row.error_compensated == pytest.approx(held / due, rel=1e-4)


def test_one_worker_shows_both_codings_of_everything():
    grad = [torch.randn(40_000, generator=torch.Generator().manual_seed(0))]
    once, twice = measured("qsgd", grad)[0], measured("twoshot(qsgd)", grad)[0]
    assert twice["nbytes"] == pytest.approx(2 * once["nbytes"], rel=0.01)
    assert twice["nmse"] > 1.5 * once["nmse"]
    assert (once["wire"], twice["wire"]) == (0, 0)


def test_feedback_over_workers_holds_back_what_the_mean_lacks():
    member = compressor("ef(topk(0.05))")
    states = [member.init(gradient(worker)) for worker in range(3)]
    held = np.zeros(N)
    for step in range(6):
        grads = [gradient(worker, step) for worker in range(3)]
        measured, states = measure(member, grads, states, Rng(0, step, workers=3))
        row = vars(measured)
        held = np.mean([state.residual.double().numpy() for state in states], axis=0)
        now = np.linalg.norm(np.mean([grad.double().numpy() for grad in grads], axis=0))
        assert row["residual_ratio"] == pytest.approx(np.linalg.norm(held) / now, rel=1e-5)
    for worker in range(3):
        assert states[worker].residual.abs().sum() > 0


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_unbiased_errors_average_out_and_biased_ones_do_not(workers):
    """Alike gradients: an independent error falls as 1/n, Top-k's is the same on all."""
    grads = [gradient(0)] * workers
    qsgd = np.mean([measured("qsgd", grads, step)[0]["nmse"] for step in range(10)])
    alone = np.mean([measured("qsgd", grads[:1], step)[0]["nmse"] for step in range(100, 110)])
    assert qsgd == pytest.approx(alone / workers, rel=0.15)
    topk, shared = measured("topk(0.05)", grads)[0], measured("randomk(0.05)", grads)[0]
    assert topk["nmse"] == pytest.approx(measured("topk(0.05)", grads[:1])[0]["nmse"], rel=1e-4)
    assert topk["nmse_workers"] == pytest.approx(topk["nmse"], rel=1e-5)
    assert 0.9 < shared["nmse"] < 0.99, "a mask that all share does not average out"


def test_float16_sums_lose_digits_and_may_overflow():
    grads = [gradient(worker) for worker in range(4)]
    row, _ = measured("none", grads)
    half = sum((grad.half() / 4 for grad in grads[1:]), grads[0].half() / 4).double()
    exact = sum(grad.double() for grad in grads) / 4
    assert row["fp16_error"] == pytest.approx(float((half - exact).norm() / exact.norm()))
    assert 1e-4 < row["fp16_error"] < 1e-3
    high = [torch.full((N,), 60_000.0)] * 2  # each fits, their sum does not: divided first
    assert measured("none", high)[0]["fp16_error"] == 0
    assert measured("none", [2 * each for each in high])[0]["fp16_error"] == math.inf
    assert math.isnan(measured("topk(0.1)", grads)[0]["fp16_error"]), "nothing is summed"
    assert measured("fp16", high)[0]["error"] == 0


def test_the_width_of_sums_grows_with_the_workers():
    for workers, bits in ((1, 4), (2, 5), (4, 6), (9, 7)):
        row, _ = measured("qsgd-shared", [gradient(worker) for worker in range(workers)])
        assert row["sum_bits"] == bits == (workers * 14).bit_length()


def test_a_nan_on_one_worker_is_a_row_with_a_status():
    steps = [(step, [gradient(worker, step) for worker in range(2)]) for step in range(3)]
    steps[1][1][1][7] = math.nan
    rows = list(replay_rows(steps, [compressor("ef(topk(0.1))")]))
    assert [row["status"] for row in rows] == [
        "ok",
        f"skipped: 1 of {2 * N} elements are NaN or inf",
        "ok",
    ]


@pytest.fixture(scope="module")
def micro_batches(tmp_path_factory):
    """A run of three workers, imported from files of micro-batches."""
    folder = tmp_path_factory.mktemp("micro")
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((6, 40, 50)).astype("f4") + rng.standard_normal((40, 50))
    files = [folder / f"g{place}.npy" for place in range(6)]
    for file, grad in zip(files, grads, strict=True):
        np.save(file, grad.astype("f4"))
    path = folder / "run.zarr"
    import_gradients(files, path, workers=3).close()
    return path, files, grads.astype("f4")


def test_micro_batches_become_workers_of_one_step(micro_batches):
    path, _, grads = micro_batches
    run = gradstats.open(path)
    assert run.store.workers == (0, 1, 2)
    for step, found in run.together(3):
        for worker, grad in enumerate(found):
            np.testing.assert_array_equal(grad.numpy(), grads[3 * step + worker].reshape(-1))


def test_a_replay_of_workers_is_that_of_their_gradients(micro_batches):
    path, _, grads = micro_batches
    table = gradstats.replay(gradstats.open(path), ["topk", "powersgd"], ratios=[0.1], workers=3)
    assert set(table["workers"]) == {3}
    rows = table[table["method"] == "topk"].sort_values("step")
    for step, row in zip(range(2), rows.to_dict("records"), strict=True):
        workers = [torch.from_numpy(grads[3 * step + w]).reshape(-1) for w in range(3)]
        expected, _ = measured("topk(0.1)", workers)
        assert row["nmse"] == pytest.approx(expected["nmse"])
        assert row["nbytes"] == pytest.approx(expected["nbytes"])
    assert (table["status"] == "ok").all()


def test_methods_that_need_matrices_run_on_parameters_whatever_is_asked(micro_batches):
    path, *_ = micro_batches
    table = gradstats.replay(
        gradstats.open(path), ["powersgd"], granularity=["model", "parameter"], workers=2
    )
    assert set(table["granularity"]) == {"parameter"}
    assert set(table["bits"]) == {32 * 2 * (40 + 50) / 2000}


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_a_number_of_workers_is_a_whole_number_from_1(micro_batches, workers):
    with pytest.raises(ValueError, match=f"workers must be a whole number from 1, got {workers}"):
        gradstats.replay(micro_batches[0], ["topk(0.1)"], workers=workers)


@pytest.mark.parametrize("workers", [4, 100])
def test_more_workers_than_were_captured_are_refused(micro_batches, workers):
    with pytest.raises(ValueError, match=r"workers must be from 1 to 3.*import --files-per-step"):
        gradstats.replay(gradstats.open(micro_batches[0]), ["topk(0.1)"], workers=workers)


def test_reduced_gradients_are_not_those_of_workers(run_writer, tmp_path, gradients_of):
    from gradstats.store import GradientStore

    path = tmp_path / "run.zarr"
    with GradientStore.create(path) as store:
        for worker in range(2):
            store.append(0, gradients_of(0), worker, point="reduced")
    with pytest.raises(ValueError, match="must be local ones, got the point reduced"):
        gradstats.replay(gradstats.open(path), ["topk(0.1)"], workers=2)


def test_files_that_do_not_make_whole_steps_are_refused(micro_batches, tmp_path):
    _, files, _ = micro_batches
    for workers in (4, 0):
        with pytest.raises(ValueError, match="workers must divide the 6 files"):
            import_gradients(files, tmp_path / "x.zarr", workers=workers)


def test_the_command_line_imports_and_replays_workers(micro_batches, tmp_path):
    from typer.testing import CliRunner

    _, files, _ = micro_batches
    out, runner = tmp_path / "run.zarr", CliRunner()
    words = ["import", *map(str, files), "--files-per-step", "3", "--out", str(out)]
    made = runner.invoke(app, words)
    assert "2 rows for each of 3 workers" in made.output
    words = ["replay", str(out), "--compressors", "topk,qsgd-shared", "--ratios", "0.1"]
    told = runner.invoke(app, [*words, "--feedback", "none", "--workers", "3"])
    assert told.exit_code == 0, told.output
    assert "Mean over workers" in told.output
    refused = runner.invoke(app, [*words, "--workers", "9"])
    assert refused.exit_code == 2
    assert "from 1 to 3" in " ".join(refused.output.replace("│", " ").split())
