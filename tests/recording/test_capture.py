"""What is recorded is what the optimizer was given, to the bit, whatever the training does."""

import numpy as np
import pytest
import torch
from torch import nn

from gradstats.recording import capture, every


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """NaN equals NaN, and -0 does not equal 0."""
    left, right = left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8)
    return torch.equal(left, right)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


def test_full_rows_hold_the_gradients_of_the_due_steps(path, training, read):
    with capture(training.model, training.optimizer, path, full=every(3), track=0) as cap:
        for _ in range(10):
            cap.log(loss=training.step())
    stream = read(path)
    assert stream.steps.tolist() == [0, 3, 6, 9]
    for row, step in enumerate(stream.steps):
        assert same_bits(stream.read(row), training.flat(step))
        assert same_bits(stream.read(row, "2.weight"), training.seen[step]["2.weight"])
    assert stream.present.all()
    assert {(p.name, p.module_type) for p in stream.parameters} >= {("0.weight", "Linear")}


def test_tracked_rows_hold_the_same_elements_of_every_step(path, training, read):
    with capture(training.model, training.optimizer, path, full=None, track=40) as cap:
        for _ in range(45):
            cap.log(loss=training.step())
    stream = read(path, "track")
    ids = stream.element_ids["float32"]
    assert len(ids) == 40
    assert stream.steps.tolist() == list(range(45))
    for row, step in enumerate(stream.steps):
        assert same_bits(stream.read(row), training.flat(step)[ids])
    assert len(read(path)) == 0


def test_rows_say_when_where_and_at_what_loss(path, training, read):
    training.optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    with capture(training.model, training.optimizer, path, full=every(2), start_step=100) as cap:
        for _ in range(4):
            cap.log(loss=training.step())
        assert cap.step == 104
        training.step()
    for kind in ("full", "track"):
        rows = read(path, kind).coordinates
        assert rows["point"].tolist() == ["reduced"] * len(rows["step"])
        assert not rows["segment"].any()
        assert not rows["micro_step"].any()
        assert set(rows["learning_rate"]) == {0.25}
    assert np.isnan(rows["grad_norm"]).all()
    assert np.isnan(rows["loss"][-1])
    assert rows["loss"][:-1].tolist() == training.losses[:4]
    full = read(path)
    assert full.steps.tolist() == [100, 102, 104]
    for row, norm in enumerate(full.coordinates["grad_norm"]):
        exact = np.linalg.norm(training.flat(2 * row).double().numpy())
        assert norm == pytest.approx(exact, rel=1e-12)


def test_nothing_done_to_the_gradients_after_the_step_reaches_the_rows(path, training, read):
    with capture(training.model, training.optimizer, path, full=every(1), track=50) as cap:
        for _ in range(12):
            loss = training.step()
            for parameter in training.model.parameters():
                parameter.grad.fill_(1e9)
            cap.log(loss=loss)
            loss.detach().fill_(-1)
    full, track = read(path), read(path, "track")
    assert track.coordinates["loss"].tolist() == training.losses
    for step in range(12):
        assert same_bits(full.read(step), training.flat(step))
        assert same_bits(track.read(step), training.flat(step)[track.element_ids["float32"]])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_is_bit_identical_with_and_without(tmp_path, make_training, optimizer):
    def weights(recorded: bool) -> list[torch.Tensor]:
        training = make_training(optimizer=optimizer)
        training.optimizer.param_groups[0]["weight_decay"] = 0.1
        torch.manual_seed(5)
        handle = capture(training.model, training.optimizer, tmp_path / "x") if recorded else None
        for _ in range(8):
            training.optimizer.zero_grad(set_to_none=False)
            for _ in range(3):
                training.backward()
            nn.utils.clip_grad_norm_(training.model.parameters(), 0.1)
            for parameter in training.model.parameters():
                parameter.grad += 0.01 * torch.randn_like(parameter)  # the global generator
            training.optimizer.step()
            if handle is not None:
                handle.log(loss=1.0)
        if handle is not None:
            handle.close()
            assert handle.stats.tracked_rows == 8
        return list(training.model.parameters())

    assert all(map(same_bits, weights(recorded=True), weights(recorded=False)))


def test_a_closure_is_recorded_after_it_made_the_gradients(path, training, read):
    training.optimizer = torch.optim.LBFGS(training.model.parameters(), max_iter=3)
    evaluations = []

    def closure():
        training.optimizer.zero_grad()
        loss = training.backward()
        if not evaluations:
            training.remember()
        evaluations.append(loss)
        return loss

    with capture(training.model, training.optimizer, path, full=every(1)) as cap:
        for way in (lambda: training.optimizer.step(closure), None):
            evaluations.clear()
            loss = way() if way else training.optimizer.step(closure=closure)
            assert loss is evaluations[0]
            cap.log(loss=loss)
    stream = read(path)
    assert stream.steps.tolist() == [0, 1]
    assert all(same_bits(stream.read(row), training.flat(row)) for row in range(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_recorded_to_the_bit(path, make_training, training, read, dtype):
    training = make_training(model=training.model.to(dtype))
    with capture(training.model, training.optimizer, path, full=every(2), track=30):
        for _ in range(4):
            training.step()
    full, track = read(path), read(path, "track")
    assert full.read(0).dtype == dtype
    for row, step in enumerate(full.steps):
        assert same_bits(full.read(row), training.flat(step))
        exact = np.linalg.norm(training.flat(step).double().numpy())
        assert full.coordinates["grad_norm"][row] == pytest.approx(exact, rel=1e-12)
    (ids,) = track.element_ids.values()
    assert all(same_bits(track.read(s), training.flat(s)[ids]) for s in range(4))


def test_dtypes_mix(path, training, read):
    training.model[0].to(torch.bfloat16)
    training.model.forward = lambda x: training.model[2](training.model[0](x.bfloat16()).float())
    with capture(training.model, training.optimizer, path, full=every(1), track=10_000):
        for _ in range(3):
            training.optimizer.zero_grad()
            training.model(torch.randn(6, 12)).square().mean().backward()
            training.remember()
            training.optimizer.step()
    for kind in ("full", "track"):
        stream = read(path, kind)
        for step, name in [(0, "0.weight"), (2, "0.bias"), (1, "2.weight")]:
            exact = training.seen[step][name]
            assert same_bits(stream.read(step, name).reshape(exact.shape), exact)


def test_no_gradient_is_not_zero_gradient(path, training, read):
    with capture(training.model, training.optimizer, path, full=every(1), track=10_000):
        for frozen in (True, False, True):
            training.model[0].weight.requires_grad_(not frozen)
            training.model[0].weight.grad = None
            training.step()
    for kind in ("full", "track"):
        stream = read(path, kind)
        assert stream.present[:, 0].tolist() == [False, True, False]
        assert stream.present[:, 1:].all()
        assert all(torch.equal(stream.read(row), training.flat(row)) for row in range(3))


def test_strides_do_not_matter(path, read):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exact = []
    with capture(model, optimizer, path, full=every(1), track=200):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 8, 8)).square().mean().backward()
            assert not model[0].weight.grad.is_contiguous()
            exact.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
            optimizer.step()
    full, track = read(path), read(path, "track")
    assert all(same_bits(full.read(row), exact[row]) for row in range(3))
    ids = track.element_ids["float32"]
    assert all(same_bits(track.read(row), exact[row][ids]) for row in range(3))


def test_nan_and_inf_are_stored_and_counted(path, training, read):
    with capture(training.model, training.optimizer, path, full=every(1), track=None) as cap:
        for value in (torch.nan, 1.0, -torch.inf, -0.0):
            training.optimizer.zero_grad()
            training.backward()
            training.model[0].bias.grad[3] = value
            training.remember()
            training.optimizer.step()
            with torch.no_grad():
                training.model[0].bias.zero_()
    stream = read(path)
    assert all(same_bits(stream.read(row), training.flat(row)) for row in range(4))
    assert cap.stats.nonfinite == 2


def test_tied_parameters_are_recorded_once(path, read):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, full=every(1)):
        model(torch.randn(2, 4)).sum().backward()
        exact = model[0].weight.grad.clone()
        optimizer.step()
    stream = read(path)
    assert [p.name for p in stream.parameters] == ["0.weight", "0.bias", "1.bias"]
    assert stream.parameters[0].aliases == ("1.weight",)
    assert torch.equal(stream.read(0, "1.weight"), exact)


def test_a_selection_is_recorded_alone(path, training, read):
    with capture(training.model, training.optimizer, path, full=every(1), parameters="*.bias"):
        training.step()
    stream = read(path)
    assert [p.name for p in stream.parameters] == ["0.bias", "2.bias"]
    assert torch.equal(stream.read(0, "2.bias"), training.seen[0]["2.bias"])


def test_the_choice_of_elements_belongs_to_the_seed(tmp_path, make_training, read):
    def ids(name: str, seed: int) -> list[int]:
        training = make_training()
        with capture(training.model, training.optimizer, tmp_path / name, track=60, seed=seed):
            training.step()
        return read(tmp_path / name, "track").element_ids["float32"].tolist()

    assert ids("a", 1) == ids("b", 1) != ids("c", 2)
    assert len(set(ids("d", 3))) == 60


def test_a_track_larger_than_the_model_keeps_everything(path, training, read):
    with capture(training.model, training.optimizer, path, full=None, track=10**6):
        training.step()
    assert torch.equal(read(path, "track").read(0), training.flat(0))
    assert read(path, "track").sampling_fraction == 1.0
