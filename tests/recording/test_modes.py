"""Full rows, tracked elements and Summaries, in any mixture; and what each cannot give."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import gradstats
from gradstats.cli.app import app
from gradstats.recording import capture, every
from gradstats.replaying.folding import replay_rows
from gradstats.replaying.shadow import Shadow
from gradstats.store import GradientStore, Row
from gradstats.summary import summarize


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


@pytest.mark.parametrize("at", ["local", "reduced"])
def test_modes_mix(path, training, read, at):
    told = {}
    settings = {"full": every(3), "track": 20, "at": at}
    with capture(
        training.model, training.optimizer, path, on_summary=told.__setitem__, **settings
    ) as cap:
        for step in range(7):
            training.model[0].bias.requires_grad_(step != 4)
            training.model[0].bias.grad = None
            cap.log(loss=training.step())
    assert (cap.stats.full_rows, cap.stats.tracked_rows, cap.stats.summary_rows) == (3, 7, 7)
    run = gradstats.open(path)
    assert (
        repr(run)
        == f"Run({str(path)!r}, 3 full rows + 7 track rows + 7 summary rows, 4 parameters)"
    )
    for step in range(7):
        exact = {
            name: summarize(grad) for name, grad in training.seen[step].items() if grad is not None
        }
        assert run.summaries(step) == told[step] == exact
    coordinates = read(path, "summary").coordinates
    assert coordinates["loss"].tolist() == training.losses
    norms = [torch.linalg.vector_norm(training.flat(s)).item() for s in range(7)]
    assert coordinates["grad_norm"] == pytest.approx(norms, rel=1e-6)
    assert read(path, "summary").present[4].tolist() == [True, False, True, True]


def test_laws_are_fitted_to_summaries_and_a_replay_says_that_it_cannot(path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    grads = []
    with capture(model, optimizer, path, full=None, track=None, summary=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 40)).square().mean().backward()
            grads.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
            optimizer.step()
    run = gradstats.open(path)
    table = gradstats.fit(run, families=["laplace"], ratios=[0.01])
    scales = table["laplace_scale"] if "laplace_scale" in table else table["scale"]
    exact = [grad[grad != 0].abs().double().mean().item() for grad in grads]
    assert sorted(set(scales)) == pytest.approx(sorted(exact), rel=1e-6)
    by_parameter = gradstats.fit(run, families=["laplace"], ratios=[0.01], by="parameter")
    assert set(by_parameter["group"]) == {p.name for p in run.store.parameters}
    with pytest.raises(LookupError, match="rows of kind 'summary' hold no gradients"):
        run.stream("summary").read(0)
    ended = CliRunner().invoke(app, ["replay", str(path), "--compressors", "bf16"])
    assert ended.exit_code != 0
    said = f"{ended.output} {ended.exception}"
    assert "only Summaries" in " ".join(said.split())
    ended = CliRunner().invoke(app, ["info", str(path)])
    assert "3 summary rows" in ended.output


def test_sparse_gradients_have_summaries_too(path):
    model = nn.Embedding(1000, 4, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, full=None, track=None, summary=True):
        model(torch.tensor([3, 3, 9])).square().sum().backward()
        exact = summarize(model.weight.grad)
        optimizer.step()
    (summary,) = gradstats.open(path).summaries(0).values()
    assert summary == exact
    assert summary.n == 4000
    assert summary.zeros == 3992


def test_a_callback_that_fails_is_said_once(path, training, capsys):
    def on_summary(step, summaries):
        raise RuntimeError("no network")

    with capture(
        training.model, training.optimizer, path, on_summary=on_summary, quiet=True
    ) as cap:
        for _ in range(4):
            training.step()
    assert capsys.readouterr().err.count("on_summary failed at step 0: RuntimeError") == 1
    assert cap.stats.summary_rows == 4


def test_rows_with_nan_are_counted(path, training):
    with capture(
        training.model, training.optimizer, path, full=None, track=None, summary=True
    ) as c:
        for value in (1.0, torch.nan):
            training.optimizer.zero_grad()
            training.backward()
            training.model[0].bias.grad[3] = value
            training.optimizer.step()
    assert c.stats.nonfinite == 1
    assert gradstats.open(path).summaries(1)["0.bias"].nan == 1
    assert np.isnan(GradientStore.open(path).stream(kind="summary").coordinates["grad_norm"][1])


def test_compressors_run_beside_the_training(path, training):
    specs = ["ef(topk(0.1))", "randomk(0.1)", "topk(0.1)"]
    with capture(training.model, training.optimizer, path, full=None, track=60, shadow=specs):
        for step in range(50):
            training.optimizer.zero_grad()
            training.backward()
            if step == 7:
                training.model[0].weight.grad.fill_(torch.nan)
            training.optimizer.step()
            with torch.no_grad():
                training.model[0].weight.nan_to_num_()
    run = gradstats.open(path)
    rows = run.shadow_rows()
    compressors = [gradstats.compressor(spec) for spec in specs]
    exact = list(replay_rows(run.gradients("track"), compressors))
    assert len(rows) == len(exact) == 150
    for row, other in zip(rows, exact, strict=True):
        assert row.pop("compressor") == str(compressors[row["index"]])
        assert {k: str(v) for k, v in row.items()} == {k: str(v) for k, v in other.items()}
    assert sum(row["status"].startswith("skipped") for row in rows) == 3


def test_shadows_need_a_track_and_a_name(path, training):
    with pytest.raises(ValueError, match="track must be on"):
        capture(training.model, training.optimizer, path, track=0, shadow=["bf16"])
    with pytest.raises(ValueError, match="nonsense"):
        capture(training.model, training.optimizer, path, shadow=["nonsense"])
    assert not path.exists()


@pytest.mark.parametrize("name", ["to_wandb", "to_tensorboard", "to_trackio"])
def test_the_recipes_of_the_docs_log_what_they_say(path, training, name):
    page = (Path(__file__).parents[2] / "docs" / "capture.md").read_text()
    (code,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "def to_wandb" in b)
    logged = {}
    sink = SimpleNamespace(
        log=lambda values, step: logged.setdefault(step, {}).update(values),
        add_scalar=lambda key, value, step: logged.setdefault(step, {}).update({key: value}),
    )
    recipes = {"wandb": sink, "trackio": sink, "writer": sink}
    exec(code.partition("\ncap = ")[0], recipes)
    settings = {"full": None, "track": None, "on_summary": recipes[name]}
    with capture(training.model, training.optimizer, path, **settings):
        training.step()
        training.step()
    grad = training.seen[1]["0.weight"].double()
    expected = {
        "to_wandb": ("grad/0.weight", grad.norm()),
        "to_tensorboard": ("mean_abs/0.weight", grad.abs().mean()),
        "to_trackio": ("zeros/0.weight", torch.tensor(0.0)),
    }
    key, value = expected[name]
    assert set(logged) == {0, 1}
    assert len(logged[1]) == 4
    assert logged[1][key] == pytest.approx(value.item(), rel=1e-12)


@pytest.mark.parametrize("at", ["local", "reduced", "clipped"])
def test_weights_are_those_that_the_gradients_were_taken_at(path, training, at):
    before = []
    with capture(
        training.model, training.optimizer, path, full=every(2), track=20, weights=True, at=at
    ) as cap:
        for _ in range(5):
            before.append([p.detach().clone() for p in training.model.parameters()])
            cap.log(loss=training.step())
    stream = GradientStore.open(path).stream(0)
    names = [name for name, _ in training.model.named_parameters()]
    assert stream.steps.tolist() == [0, 2, 4]
    for row, step in enumerate((0, 2, 4)):
        for name, weight in zip(names, before[step], strict=True):
            assert torch.equal(stream.read(row, name, "weight"), weight)
            assert not torch.equal(stream.read(row, name), weight)


@pytest.mark.parametrize(("dtype", "value"), [("float64", 1e100), ("float16", 6e4)])
def test_a_shadow_divides_by_the_loss_scale_in_a_dtype_that_holds_the_gradient(dtype, value):
    facts = {"loss_scale": 8.0, "unscaled": 0}
    grad = torch.tensor([value, -value, 1.0], dtype=getattr(torch, dtype))
    row = Shadow(["none"], 0).row(Row(0, {dtype: grad}, np.ones(1, bool), facts))
    (made,) = json.loads(row.ragged["shadow"].tobytes())
    assert made["error"] == 0


@pytest.mark.parametrize("at", ["local", "reduced"])
def test_weights_are_those_just_before_the_step(path, at):
    """A script that changes weights between the backward pass and the step: docs/capture.md."""
    model = torch.nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = []
    with capture(model, optimizer, path, full=every(1), track=0, weights=True, at=at):
        for _ in range(2):
            model(torch.ones(2, 3)).square().sum().backward()
            with torch.no_grad():
                model.weight.mul_(0.5)
            before.append(model.weight.detach().clone())
            optimizer.step()
            optimizer.zero_grad()
    stream = GradientStore.open(path).stream(0)
    for row, weight in enumerate(before):
        assert torch.equal(stream.read(row, "weight", "weight"), weight)


def test_without_being_asked_for_there_are_no_weights(path, training):
    with capture(training.model, training.optimizer, path, full=every(1), track=None) as cap:
        cap.log(loss=training.step())
    with pytest.raises(LookupError, match="carry none"):
        GradientStore.open(path).stream(0).read(0, None, "weight")


def test_weights_count_as_bytes_of_a_row(path, training):
    rows = 3
    sizes = []
    for weights in (False, True):
        with capture(
            training.model,
            training.optimizer,
            path,
            full=every(1),
            track=None,
            weights=weights,
            if_exists="overwrite",
        ) as cap:
            for _ in range(rows):
                cap.log(loss=training.step())
        sizes.append(cap.stats.nbytes)
    assert sizes[1] == 2 * sizes[0] > 0
