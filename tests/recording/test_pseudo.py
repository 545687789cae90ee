"""Pseudo-gradients: rows at the point "outer" hold what `record` was given."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import gradstats
from gradstats.cli.app import app
from gradstats.recording import Capture, capture, every
from gradstats.store import GradientStore
from gradstats.summary import summarize
from tests.processes import run_workers
from tests.recording import rounds

ROUNDS, INNER = 4, 3


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def trained(model, path, rounds=ROUNDS, clip=False, **settings):
    """DiLoCo on one worker; the pseudo-gradient of each round, copied."""
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    how = {"full": every(1), "track": 20, "at": "outer", "quiet": True, **settings}
    cap = None if path is None else capture(model, outer, path, **how)
    rng, given = torch.Generator().manual_seed(3), []
    for number in range(rounds):
        for _ in range(INNER):
            loss = model(torch.randn(8, 6, generator=rng)).square().mean()
            inner.zero_grad()
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            inner.step()
        with torch.no_grad():
            pseudo = {name: start[name] - p for name, p in model.named_parameters()}
        if cap is not None:
            cap.record(pseudo, inner_steps=INNER + number)
        given.append({name: grad.clone() for name, grad in pseudo.items()})
        for name, p in model.named_parameters():
            p.data.copy_(start[name])
            p.grad = 2 * pseudo[name]  # what the average makes of it
        outer.step()
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        if cap is not None:
            cap.log(loss=loss)
    if cap is not None:
        cap.close()
    return given, start, cap


def flat(named):
    return torch.cat([grad.reshape(-1) for grad in named.values()])


def test_a_round_is_a_row(path):
    given, _, cap = trained(net(), path)
    assert (cap.step, cap.stats.full_rows, cap.stats.tracked_rows) == (ROUNDS, ROUNDS, ROUNDS)
    assert cap.stats.dropped == 0
    stream = GradientStore.open(path).stream()
    facts = stream.coordinates
    assert facts["step"].tolist() == list(range(ROUNDS))
    assert facts["point"].tolist() == ["outer"] * ROUNDS
    assert facts["inner_steps"].tolist() == [INNER + n for n in range(ROUNDS)]
    assert facts["micro_step"].tolist() == [0] * ROUNDS
    assert facts["learning_rate"].tolist() == [0.7] * ROUNDS
    assert np.isfinite(facts["loss"]).all()
    assert stream.present.all()
    for row, grads in enumerate(given):
        assert torch.equal(stream.read(row), flat(grads))
    track = GradientStore.open(path).stream(kind="track")
    ids = track.element_ids["float32"]
    assert torch.equal(track.read(2), flat(given[2])[ids])


@pytest.mark.parametrize("at", ["outer", ["outer", "reduced"], ["outer", "reduced", "clipped"]])
@pytest.mark.parametrize("clip", [False, True])
def test_training_is_the_same_to_the_bit(path, at, clip):
    _, recorded, _ = trained(net(), path, at=at, clip=clip)
    _, alone, _ = trained(net(), None, clip=clip)
    assert all(torch.equal(recorded[name], alone[name]) for name in alone)


@pytest.mark.parametrize("clip", [False, True])
def test_with_the_averaged_gradient_beside_it(path, clip):
    """Inner steps, their backward passes and their clipping are no part of a round's rows."""
    given, _, cap = trained(net(), path, at=["reduced", "outer"], clip=clip)
    assert cap.step == ROUNDS
    stream = GradientStore.open(path).stream()
    facts = stream.coordinates
    assert facts["point"].tolist() == ["reduced", "outer"] * ROUNDS
    assert facts["step"].tolist() == sorted([*range(ROUNDS)] * 2)
    assert facts["inner_steps"].tolist() == sorted([INNER + n for n in range(ROUNDS)] * 2)
    assert facts["micro_step"].tolist() == [0] * 2 * ROUNDS
    assert np.isnan(facts["clip_norm"]).all()
    for number, grads in enumerate(given):
        assert torch.equal(stream.read(2 * number), 2 * flat(grads))
        assert torch.equal(stream.read(2 * number + 1), flat(grads))


def test_a_round_without_an_outer_step_is_kept(path):
    """A quorum that fails, and the end of a training: its pseudo-gradient was there."""
    model = net()
    outer = torch.optim.SGD(model.parameters(), lr=0.7)
    one = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    with capture(model, outer, path, full=every(1), at=["outer", "reduced"], quiet=True) as cap:
        cap.record(one, inner_steps=2)
        cap.record(one, inner_steps=3)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        outer.step()
        outer.step()  # one without a record
        cap.record(one, inner_steps=4)
    facts = GradientStore.open(path).stream().coordinates
    assert list(zip(facts["step"], facts["point"], facts["inner_steps"], strict=True)) == [
        (0, "outer", 2),
        (1, "reduced", 3),
        (1, "outer", 3),
        (2, "reduced", 0),
        (3, "outer", 4),
    ]


def test_only_the_rounds_that_are_due(path):
    given, _, cap = trained(net(), path, full=every(2), track=None)
    stream = GradientStore.open(path).stream()
    assert stream.steps.tolist() == [0, 2]
    assert torch.equal(stream.read(1), flat(given[2]))
    assert cap.step == ROUNDS


def test_weights_summaries_and_shadows_beside_them(path):
    model, told = net(), {}
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    given, _, cap = trained(
        model,
        path,
        rounds=2,
        at=["outer", "reduced"],
        weights=True,
        shadow=["ef(topk(0.1))"],
        on_summary=lambda step, found: told.setdefault(step, found),
    )
    assert cap.stats.dropped == 0
    run = gradstats.open(path)
    row = run.rows()[0]  # the parameters as they were when record was called
    ended = flat(start) - flat(given[0])
    assert torch.allclose(run.stream().read(row, None, "weight"), ended, atol=1e-7)
    assert [line["step"] for line in run.shadow_rows()] == [0, 1]
    run = gradstats.open(path, point="outer")
    for number, row in enumerate(run.rows("summary")):
        exact = {name: summarize(grad) for name, grad in given[number].items()}
        assert run.summaries(row) == exact
    assert set(told) == {0, 1}


def test_names_of_wrapped_models_and_selections(path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = net()

    model = Wrapped()
    outer = torch.optim.SGD(model.parameters(), lr=0.7)
    settings = {"full": every(1), "at": "outer", "parameters": "*.weight", "quiet": True}
    with capture(model, outer, path, **settings) as cap:
        cap.record({name: torch.ones_like(p) for name, p in model.named_parameters()})
        cap.record({"0.weight": 2 * torch.ones(5, 6)})
    stream = GradientStore.open(path).stream()
    assert [p.name for p in stream.table] == ["0.weight", "2.weight"]
    assert stream.present.tolist() == [[True, True], [True, False]]
    assert stream.coordinates["inner_steps"].tolist() == [0, 0]
    assert stream.read(1).tolist() == [2.0] * 30 + [0.0] * 10
    assert cap.stats.dropped == 0


@pytest.mark.parametrize(
    ("gradients", "fact"),
    [
        ({"nowhere": torch.ones(5)}, "got 'nowhere'"),
        ({"0.bias": torch.ones(4)}, r"shape \[5\], got \[4\]"),
        ({"0.bias": torch.ones(5, dtype=torch.float64)}, r"got torch.float64; round it with .to"),
        ({"0.bias": torch.ones(5, dtype=torch.int32)}, "got torch.int32"),
        ({"0.bias": [1.0] * 5}, "must be a tensor, got list"),
        ({}, r"must name a recorded parameter, got \[\]"),
        (None, "must map names to tensors, got NoneType"),
    ],
)
def test_what_cannot_be_stored_is_counted_and_printed_once(path, capsys, gradients, fact):
    model = net()
    outer = torch.optim.SGD(model.parameters(), lr=0.7)
    good = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    with capture(model, outer, path, full=every(1), at="outer", quiet=True) as cap:
        cap.record(gradients)
        cap.record(good if gradients is None else {**good, **gradients} or good)
        cap.record(good)
    err = capsys.readouterr().err
    assert err.count("cannot record the pseudo-gradients of round") == 1
    assert gradstats_matches(fact, err)
    stream = GradientStore.open(path).stream()
    assert stream.steps[-1] == 2
    assert cap.stats.dropped == 3 - len(stream)


def gradstats_matches(fact, text):
    import re

    return re.search(fact, text)


@pytest.mark.parametrize("steps", [-1, 1.5, "3", None])
def test_inner_steps_are_a_number(path, capsys, steps):
    model = net()
    with capture(
        model, torch.optim.SGD(model.parameters()), path, full=every(1), at="outer", quiet=True
    ) as cap:
        cap.record({"0.bias": torch.ones(5)}, inner_steps=steps)
    assert f"inner_steps must be a number of steps, 0 or more, got {steps!r}" in (
        capsys.readouterr().err
    )
    assert cap.stats.dropped == 1


def test_dtypes_that_the_parameters_hold_exactly_are_converted(path):
    model = net()
    with capture(
        model, torch.optim.SGD(model.parameters()), path, full=every(1), at="outer", quiet=True
    ) as cap:
        cap.record({"0.bias": torch.full((5,), 0.1, dtype=torch.bfloat16)})
    got = GradientStore.open(path).stream().read(0, "0.bias")
    assert torch.equal(got, torch.full((5,), 0.1, dtype=torch.bfloat16).float())
    assert cap.stats.dropped == 0


def test_sparse_parameters(path):
    model = nn.Embedding(6, 3, sparse=True)
    grad = torch.zeros(6, 3)
    grad[[1, 4]] = torch.randn(2, 3)
    with capture(
        model,
        torch.optim.SGD(model.parameters()),
        path,
        full=every(1),
        at="outer",
        track=None,
        quiet=True,
    ) as cap:
        cap.record({"weight": grad})
    assert cap.stats.dropped == 0
    assert torch.equal(GradientStore.open(path).stream().read(0, "weight").to_dense(), grad)


def test_record_where_nothing_is_recorded_at_outer(path, capsys):
    model = net()
    with capture(model, torch.optim.SGD(model.parameters()), path, at="reduced") as cap:
        cap.record({"0.bias": torch.ones(5)})
        cap.record({"0.bias": torch.ones(5)})
    assert capsys.readouterr().err.count("pass at='outer'") == 1
    cap.record({"0.bias": torch.ones(5)})  # closed


def test_a_list_of_outer_optimizers(path):
    model = net()
    halves = [torch.optim.SGD(model[i].parameters(), lr=0.7) for i in (0, 2)]
    one = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    settings = {"full": every(1), "at": ["outer", "reduced"], "quiet": True}
    with capture(model, halves, path, **settings) as cap:
        for _ in range(3):
            cap.record(one, inner_steps=5)
            for p in model.parameters():
                p.grad = 2 * torch.ones_like(p)
            for optimizer in halves:
                optimizer.step()
    assert cap.stats.dropped == 0
    stream = GradientStore.open(path).stream()
    assert stream.steps.tolist() == [0, 0, 1, 1, 2, 2]
    assert [float(stream.read(row).mean()) for row in range(6)] == [2, 1] * 3
    assert stream.coordinates["inner_steps"].tolist() == [5] * 6


def test_a_run_that_goes_on(path):
    first, _, _ = trained(net(), path)
    second, _, _ = trained(net(), path, if_exists="resume", start_step=2, rounds=1)
    run = gradstats.open(path)
    stream = run.stream()
    assert stream.steps[run.rows()].tolist() == [0, 1, 2]
    assert torch.equal(run.read(2), flat(second[0]))
    assert torch.equal(run.read(1), flat(first[1]))


def test_readers_take_them_as_what_a_compressor_gets(path):
    given, _, _ = trained(net(), path, at=["outer", "reduced"])
    run = gradstats.open(path)
    assert run.points == ("outer", "reduced")
    assert torch.equal(run.read(1), flat(given[1]))
    lines = gradstats.replay(run, ["topk(0.1)"])
    assert lines["status"].tolist() == ["ok"] * ROUNDS
    ended = CliRunner().invoke(app, ["replay", str(path), "--compressors", "topk"])
    assert ended.exit_code == 0, ended.output
    assert "these are pseudo-gradients of 3 inner steps" in " ".join(ended.output.split())
    ended = CliRunner().invoke(app, ["info", str(path)])
    assert "outer, reduced, 3 to 6 inner steps" in " ".join(ended.output.split())


def test_the_command_has_nobody_to_call_record(path):
    ended = CliRunner().invoke(app, ["capture", "--at", "outer", "--out", str(path), "--", "true"])
    assert ended.exit_code == 2
    assert "--at: must not be 'outer' around a command" in " ".join(ended.output.split())
    assert not path.exists()


def test_auto_beside_outer(path):
    _, _, cap = trained(net(), path, at=["auto", "outer"])
    assert isinstance(cap, Capture)
    assert gradstats.open(path).points == ("outer", "reduced")


def test_stores_from_before_open_and_grow(path):
    """Their streams lack the column, and keep lacking it."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, full=every(1), track=20, quiet=True):
        model(torch.ones(1, 6)).sum().backward()
        optimizer.step()
    import json

    for file in path.rglob("zarr.json"):
        text = json.loads(file.read_text())
        members = text.get("consolidated_metadata", {}).get("metadata", {})
        for key in [key for key in members if key.endswith("inner_steps")]:
            del members[key]
        if "features" in text["attributes"]:
            text["attributes"]["features"].remove("outer")
        file.write_text(json.dumps(text))
    assert GradientStore.open(path).stream().coordinates["inner_steps"].tolist() == [0]
    trained(copy.deepcopy(model), path, if_exists="resume", start_step=1)
    facts = GradientStore.open(path).stream().coordinates
    assert facts["point"].tolist() == ["reduced", *["outer"] * ROUNDS]
    assert facts["inner_steps"].tolist() == [0] * (ROUNDS + 1)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["outer", "outer,reduced"])
def test_every_worker_records_its_own(path, at):
    """Two workers, against the same training of both in one process."""
    ended = run_workers(rounds.work, 2, path.parent, str(path), at)
    assert [code for code, _, _ in ended] == [0, 0], ended
    own, _, averaged = rounds.expected(2)
    for worker in range(2):
        stream = GradientStore.open(path).stream(worker)
        facts = stream.coordinates
        here = np.flatnonzero(facts["point"] == "outer")
        assert facts["step"][here].tolist() == list(range(rounds.ROUNDS))
        assert set(facts["inner_steps"][here]) == {rounds.INNER}
        assert set(facts["world_size"]) == {2}
        for row, exact in zip(here, own[worker], strict=True):
            assert torch.allclose(stream.read(int(row)), exact, rtol=1e-4, atol=1e-6)
        reduced = np.flatnonzero(facts["point"] == "reduced")
        assert len(reduced) == (rounds.ROUNDS if "reduced" in at and worker == 0 else 0)
        for row, exact in zip(reduced, averaged, strict=False):
            assert torch.allclose(stream.read(int(row)), exact, rtol=1e-4, atol=1e-6)
    run = gradstats.open(path)
    assert len(list(run.together(2))) == rounds.ROUNDS
