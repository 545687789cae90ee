"""Clipping in parts, closures that fail or run again, lists of optimizers, long absences."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from gradstats.recording import capture, every
from gradstats.store import GradientStore

POINTS = ["local", "reduced", "clipped"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


def flat(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]).clone()


def rows_of(path, point):
    stream = GradientStore.open(path).stream()
    here = np.flatnonzero(stream.coordinates["point"] == point)
    facts = {name: values[here] for name, values in stream.coordinates.items()}
    return [stream.read(int(row)) for row in here], facts


def halves(model):
    return [list(model[0].parameters()), list(model[2].parameters())]


@pytest.mark.parametrize("parts", ["halves", "one half", "the same twice"])
def test_clipping_in_parts_has_no_norm_and_reduced_is_before_any(path, training, parts, capsys):
    model, seen = training.model, {"reduced": [], "clipped": []}
    first, second = halves(model)
    whole = list(model.parameters())
    calls = {"halves": [first, second], "one half": [second], "the same twice": [whole, whole]}
    with capture(model, training.optimizer, path, full=every(1), at=POINTS, quiet=True):
        for _ in range(3):
            training.optimizer.zero_grad()
            training.backward()
            seen["reduced"].append(flat(model))
            for number, part in enumerate(calls[parts]):
                nn.utils.clip_grad_norm_(part, 1e-3 / (number + 1))
            seen["clipped"].append(flat(model))
            training.optimizer.step()
    for point, as_well in (("local", "reduced"), ("reduced",) * 2, ("clipped",) * 2):
        rows, facts = rows_of(path, point)
        assert all(torch.equal(a, b) for a, b in zip(rows, seen[as_well], strict=True))
        assert np.isnan(facts["clip_norm"]).all()
        assert np.isnan(facts["clip_coefficient"]).all()
    assert capsys.readouterr().err.count("clip_norm and clip_coefficient are NaN") == 1


def test_one_call_that_leaves_out_what_has_no_gradient_is_whole(path, training):
    first, second = halves(training.model)
    with capture(training.model, training.optimizer, path, full=every(1)):
        training.optimizer.zero_grad()
        training.backward()
        for parameter in first:
            parameter.grad = None
        norm = nn.utils.clip_grad_norm_(second, 1e-3).item()
        training.optimizer.step()
    _, facts = rows_of(path, "reduced")
    assert facts["clip_norm"] == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("clipping", [True, False])
def test_a_closure_that_raises_makes_no_step(path, training, clipping):
    seen = []

    def closure(fails):
        training.optimizer.zero_grad()
        loss = training.backward()
        if not fails:
            seen.append(flat(training.model))
        if clipping:
            nn.utils.clip_grad_norm_(training.model.parameters(), 1e-3)
        if fails:
            raise ArithmeticError("on purpose")
        return loss

    at = ["local", "reduced"]
    with capture(training.model, training.optimizer, path, full=every(1), at=at) as cap:
        for fails in (False, True, True, False, False):
            before = cap.step
            try:
                training.optimizer.step(lambda fails=fails: closure(fails))
            except ArithmeticError:
                assert fails
            assert cap.step == before + (not fails)
        assert cap._rows._plan.budget.remaining > 0
        taken = cap._rows._plan.budget._taken
    assert cap.stats.dropped == 0
    assert cap.stats.full_rows == 6
    assert taken == sum(source_cost(cap, point) * 3 for point in at)
    for point in at:
        rows, facts = rows_of(path, point)
        assert facts["step"].tolist() == [0, 1, 2]
        assert facts["micro_step"].tolist() == [0, 0, 0]
        assert all(torch.equal(a, b) for a, b in zip(rows, seen, strict=True))


def source_cost(cap, point):
    """Bytes of a full and a tracked row of all 157 elements and 4 parameters."""
    return 2 * (157 * 4 + 4 + 160)


def test_the_first_evaluation_of_a_closure_is_the_row(path, training):
    optimizer = torch.optim.LBFGS(training.model.parameters(), max_iter=3)
    seen = {point: [] for point in POINTS}
    evaluations = []

    def closure():
        optimizer.zero_grad()
        loss = training.backward()
        before = flat(training.model)
        nn.utils.clip_grad_norm_(training.model.parameters(), 1e-3)
        evaluations.append(loss)
        if len(evaluations) == 1:
            seen["local"].append(before)
            seen["reduced"].append(before)
            seen["clipped"].append(flat(training.model))
        return loss

    with capture(training.model, optimizer, path, full=every(1), at=POINTS):
        for _ in range(3):
            evaluations.clear()
            optimizer.step(closure)
            assert len(evaluations) > 1
    for point in POINTS:
        rows, facts = rows_of(path, point)
        assert facts["step"].tolist() == [0, 1, 2]
        assert facts["micro_step"].tolist() == [0, 0, 0]
        assert all(torch.equal(a, b) for a, b in zip(rows, seen[point], strict=True))


def test_local_gradients_of_an_optimizer_in_backward(path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    twin = copy.deepcopy(model)
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step_now(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step_now)
    exact = []
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    at = ["local", "reduced"]
    with capture(model, list(optimizers.values()), path, full=every(2), track=6, at=at) as cap:
        for step in range(5):
            x = torch.full((2, 5), float(step))
            model(x).square().mean().backward()
            cap.log(loss=step)
            plain.zero_grad()
            twin(x).square().mean().backward()
            exact.append(flat(twin))
            plain.step()
    assert cap.step == 5
    assert cap.stats.dropped == 0
    for point in at:
        rows, facts = rows_of(path, point)
        assert facts["step"].tolist() == [0, 2, 4]
        assert facts["micro_step"].tolist() == [0, 0, 0]
        assert facts["loss"].tolist() == [0, 2, 4]
        assert all(torch.allclose(a, b) for a, b in zip(rows, exact[::2], strict=True))


def test_two_optimizers_of_one_backward_clipped_each_by_itself(path, training):
    """Rows of all points; the step is over when the next backward begins."""
    parts = halves(training.model)
    optimizers = [torch.optim.SGD(part, lr=0.1) for part in parts]
    seen = {point: [] for point in POINTS}
    with capture(training.model, optimizers, path, full=every(2), at=POINTS) as cap:
        for _ in range(4):
            training.model.zero_grad()
            for _ in range(3):
                training.backward()
            seen["local"].append(flat(training.model))
            seen["reduced"].append(flat(training.model))
            for part in parts:
                nn.utils.clip_grad_norm_(part, 1e-3)
            seen["clipped"].append(flat(training.model))
            for optimizer in optimizers:
                optimizer.step()
    assert cap.step == 4
    for point in POINTS:
        rows, facts = rows_of(path, point)
        assert facts["step"].tolist() == [0, 2]
        assert facts["micro_step"].tolist() == [2, 2]
        assert all(torch.equal(a, b) for a, b in zip(rows, seen[point][::2], strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_a_scaler_over_several_optimizers(path, training, fused):
    optimizers = [torch.optim.SGD(part, lr=0.1, fused=fused) for part in halves(training.model)]
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=100)
    exact = []
    with capture(training.model, optimizers, path, full=every(1), at=["local", "reduced"]):
        for step in range(3):
            training.model.zero_grad()
            loss = training.model(torch.randn(6, 12, generator=training.rng)).square().mean()
            scaler.scale(loss * (torch.inf if step == 1 else 1)).backward()
            exact.append(flat(training.model))
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
    for point in ("local", "reduced"):
        rows, facts = rows_of(path, point)
        assert facts["skipped"].tolist() == [0, 1, 0]
        assert facts["loss_scale"].tolist() == [64, 64, 32]
        divided = point == "reduced" and not fused
        assert facts["unscaled"].tolist() == [int(divided)] * 3
        for row, one, scale in zip(rows, exact, (64, 64, 32), strict=True):
            assert torch.allclose(row, one / scale if divided else one, equal_nan=True)


def test_a_parameter_without_a_gradient_for_long_is_said_once(path, capsys):
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "ab"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, full=None, track=4):
        for step in range(350):
            optimizer.zero_grad()
            names = "ab" if step in (0, 120) else "a"
            sum(model[name](torch.ones(1, 2)).sum() for name in names).backward()
            optimizer.step()
            if step == 99:
                assert "no gradient in" not in capsys.readouterr().err
    text = capsys.readouterr().err
    assert (
        text.count("1 parameters had no gradient in 100 recorded steps up to 100: b.weight") == 1
    )
    assert text.count("recorded steps up to") == 1
