"""Runs of Summaries, tracks, shadows or single rows alone, and runs without any row."""

import json

import pandas
import pytest
import torch
from torch import nn

import gradstats
from gradstats.replaying.into import replay_into
from gradstats.replaying.settings import ReplaySettings
from gradstats.runs.copying import copy
from gradstats.runs.emptiness import NoGradientsError
from gradstats.runs.smaller import Smaller
from gradstats.store import GradientStore, Row
from gradstats.store.rows import pack
from tests.conftest import small_gradients, write_run

FIT = ("--families", "laplace", "--ratios", "0.1")
REPORT = ("--ratios", "0.1", "--compressors", "topk,bf16", "--budget", "1s")


def trained(path, steps, **settings):
    torch.manual_seed(0)
    model = nn.Linear(40, 30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradstats.capture(model, optimizer, path, quiet=True, **settings):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 40)).square().mean().backward()
            optimizer.step()
    return path


def summaries(path):
    return trained(path, 4, full=None, track=0, summary=True)


def narrowed(path):
    full = trained(path.with_name("whole.zarr"), 4, full=gradstats.every(1), track=50)
    copy(full, path, Smaller(modes=("summary",)))
    return path


def tracked(path):
    return trained(path, 4, full=None, track=50)


def single(path):
    return trained(path, 1)


def mixed(path):
    return trained(path, 5, full=gradstats.every(3), track=0, summary=True)


def shadowed(path):
    full = trained(path.with_name("all.zarr"), 4, full=None, track=50, shadow=("topk(0.1)",))
    copy(full, path, Smaller(modes=("shadow",)))
    return path


def empty(path):
    return trained(path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("make", [summaries, narrowed, tracked, single, mixed])
def test_what_holds_gradients_or_summaries_is_fitted_and_reported(make, call, tmp_path, undrawn):
    path = make(tmp_path / "run.zarr")
    for words in (("info",), ("fit", *FIT), ("fit", *FIT, "--group-by", "parameter")):
        code, out, err = call(words[0], path, *words[1:])
        assert code == 0, err
        assert out
    fits = pandas.read_parquet(tmp_path / "run.results" / "fits.parquet")
    assert set(fits["status"]) == {"ok"}
    assert len(fits) == {"single": 1, "mixed": 2}.get(make.__name__, 4)
    code, out, err = call("report", path, *REPORT)
    assert (code, out.strip()) == (0, str(tmp_path / "run.results" / "report.html")), err


@pytest.mark.parametrize("make", [summaries, narrowed])
def test_summaries_are_not_replayed_and_a_sentence_gives_the_reason(make, call, tmp_path):
    path = make(tmp_path / "run.zarr")
    reason = (
        f"cannot replay {path}: it holds only Summaries, no gradients; fit and report work on "
        "those; capture with full= or track= to replay"
    )
    code, out, err = call("replay", path, "--compressors", "topk,bf16", "--ratios", "0.1")
    assert (code, out) == (1, "")
    assert err.endswith(f"error: {reason}")
    for name in ("replay", "timings", "methods"):
        assert not len(pandas.read_parquet(tmp_path / "run.results" / f"{name}.parquet"))
    code, out, _ = call("replay", path, "--json")
    assert (code, json.loads(out)["methods"]) == (1, [])
    replayed = replay_into(gradstats.open(path), ReplaySettings(("topk",)))
    assert (len(replayed.methods), replayed.reason) == (0, reason)
    code, _, err = call("replay", path, "--compressors", "tpk")
    assert code == 2
    assert "got 'tpk'" in err


def test_what_needs_gradients_of_each_step_is_refused_in_words(call, tmp_path):
    path = summaries(tmp_path / "run.zarr")
    code, _, err = call("fit", path, "--axis", "steps")
    assert code == 2
    assert "axis steps must have two tracked rows, got 0" in " ".join(err.replace("│", "").split())
    code, _, err = call("fit", path, "--compensated", "topk(0.1)")
    assert code == 2
    assert "needs consecutive steps" in " ".join(err.replace("│", "").split())
    assert not (tmp_path / "run.results").exists()


COMMANDS = (
    ("info",),
    ("fit", *FIT),
    ("fit", "--axis", "steps"),
    ("fit", "--compensated", "topk(0.1)"),
    ("fit", "--group-by", "parameter"),
    ("replay",),
    ("report", *REPORT),
)


def test_every_command_has_one_answer_to_a_run_without_rows(call, tmp_path):
    path = empty(tmp_path / "run.zarr")
    error = f"error: {path} has no row: the training took no step that was recorded"
    for command, *words in (*COMMANDS, ("copy", tmp_path / "copy.zarr")):
        code, _, err = call(command, path, *words)
        assert (code, err.endswith(error)) == (1, True), (command, err)
    assert {each.name for each in tmp_path.iterdir()} == {"run.zarr"}


def test_rows_that_no_step_was_due_for_are_named(tmp_path):
    path = trained(tmp_path / "run.zarr", 3, full=gradstats.every(10), track=0, start_step=1)
    reason = r"no step that was recorded; only steps of full=every\(10\) were asked for"
    with pytest.raises(NoGradientsError, match=reason):
        gradstats.fit(gradstats.open(path))


def test_every_verb_has_one_answer_to_a_run_without_rows(tmp_path):
    run = gradstats.open(empty(tmp_path / "run.zarr"))
    for look in (
        gradstats.fit,
        gradstats.report,
        lambda run: gradstats.fit(run, axis="steps"),
        lambda run: gradstats.fit(run, compensated="topk(0.1)"),
        lambda run: gradstats.replay(run, "topk"),
    ):
        with pytest.raises(NoGradientsError, match="has no row: the training took no step"):
            look(run)


def test_a_store_that_no_worker_has_written_to_has_no_row(tmp_path):
    GradientStore.create(tmp_path / "run.zarr").close()
    with pytest.raises(NoGradientsError, match="has no row: the training took no step"):
        gradstats.open(tmp_path / "run.zarr")


def test_shadow_rows_are_results_and_no_gradients(call, tmp_path):
    path = shadowed(tmp_path / "run.zarr")
    assert call("info", path)[0] == 0
    for command, *words in COMMANDS[1:]:
        code, _, err = call(command, path, *words)
        assert code == 1, command
        assert f"{path} has shadow rows only, which are results of compressors" in err
    assert len(gradstats.open(path).shadow_rows()) == 4


@pytest.mark.slow
def test_a_run_that_is_still_being_written_is_reported_as_it_was(tmp_path, undrawn):
    grads = {step: small_gradients(step) for step in range(4)}
    path = write_run(tmp_path / "run.zarr", grads, full=(0, 1, 2, 3), tracked=50)
    with GradientStore.open(path, "a") as writer:
        table, written = writer.stream().table, []

        def progress(stage, done, total):
            step = 4 + len(written)
            written.append(step)
            flat, present = pack(small_gradients(step), table)
            writer.append_rows([Row(step, flat, present, {"point": "local"})])

        run = gradstats.open(path)
        page = gradstats.report(
            run, ratios=0.1, compressors=("topk", "bf16"), budget=1.0, progress=progress
        )
    assert written
    assert page.is_file()
    fits = pandas.read_parquet(page.parent / "fits.parquet")
    assert sorted(set(fits["step"])) == [0, 1, 2, 3]
    assert gradstats.open(path).rows("full") == [0, 1, 2, 3, *written]
