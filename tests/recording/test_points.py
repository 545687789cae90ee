"""Where in the step a gradient is taken, and what a row says of how it came to be."""

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


def rows_of(path, point, kind="full"):
    stream = GradientStore.open(path).stream(kind=kind)
    rows = np.flatnonzero(stream.coordinates["point"] == point)
    return stream, [int(row) for row in rows]


def flat(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]).clone()


def test_accumulated_gradients_are_seen_before_and_after_clipping(path, training):
    seen = {point: [] for point in POINTS}
    norms = []
    with capture(training.model, training.optimizer, path, full=every(2), at=POINTS) as cap:
        for step in range(6):
            training.optimizer.zero_grad()
            for _ in range(3):
                training.backward()
            seen["local"].append(flat(training.model))
            seen["reduced"].append(flat(training.model))
            norms.append(nn.utils.clip_grad_norm_(training.model.parameters(), 1e-3).item())
            seen["clipped"].append(flat(training.model))
            training.optimizer.step()
            cap.log(loss=step)
    assert cap.stats.dropped == 0
    for point in POINTS:
        for kind, steps in (("full", [0, 2, 4]), ("track", [0, 1, 2, 3, 4, 5])):
            stream, rows = rows_of(path, point, kind)
            ids = stream.element_ids["float32"] if kind == "track" else slice(None)
            assert stream.steps[rows].tolist() == steps
            for row, step in zip(rows, steps, strict=True):
                assert torch.equal(stream.read(row), seen[point][step][ids])
            facts = {name: values[rows] for name, values in stream.coordinates.items()}
            assert facts["clip_norm"] == pytest.approx([norms[step] for step in steps], rel=1e-6)
            coefficients = [1e-3 / (norms[step] + 1e-6) for step in steps]
            assert facts["clip_coefficient"] == pytest.approx(coefficients, rel=1e-6)
            assert facts["micro_step"].tolist() == [2] * len(steps)
            assert facts["loss"].tolist() == steps
            assert facts["loss_scale"].tolist() == [1] * len(steps)
            assert facts["unscaled"].tolist() == [1] * len(steps)
            assert facts["skipped"].tolist() == [0] * len(steps)
            assert facts["world_size"].tolist() == [1] * len(steps)
            assert (facts["step_seconds"][1:] > 0).all()


def test_a_clip_that_does_nothing_has_coefficient_one_and_none_has_none(path, training):
    with capture(training.model, training.optimizer, path, full=every(1), at="clipped"):
        for clip in (True, False):
            training.optimizer.zero_grad()
            training.backward()
            if clip:
                nn.utils.clip_grad_norm_(training.model.parameters(), 1e6)
            training.optimizer.step()
    facts = GradientStore.open(path).stream().coordinates
    assert facts["clip_coefficient"][0] == 1
    assert np.isnan(facts["clip_coefficient"][1])
    assert np.isnan(facts["clip_norm"][1])


def test_clipping_of_another_model_is_not_ours(path, training, make_training):
    other = make_training()
    with capture(training.model, training.optimizer, path, full=every(1)):
        training.backward()
        other.backward()
        nn.utils.clip_grad_norm_(other.model.parameters(), 1e-3)
        training.remember()
        training.optimizer.step()
    stream = GradientStore.open(path).stream()
    assert torch.equal(stream.read(0), training.flat(0))
    assert np.isnan(stream.coordinates["clip_norm"]).all()


def test_torch_is_as_it_was_when_the_last_recording_closes(tmp_path, training, make_training):
    places = [(nn.utils.clip_grad, "_clip_grads_with_norm_"), (torch.amp.GradScaler, "step")]
    before = [getattr(*place) for place in places]
    other = make_training()
    first = capture(training.model, training.optimizer, tmp_path / "a")
    second = capture(other.model, other.optimizer, tmp_path / "b")
    first.close()
    assert [getattr(*place) for place in places] != before
    second.close()
    assert [getattr(*place) for place in places] == before
    assert not any(p._post_accumulate_grad_hooks for p in training.model.parameters())


def scaled_step(training, scaler, *, unscale, infinite):
    training.optimizer.zero_grad()
    loss = training.model(torch.randn(6, 12, generator=training.rng)).square().mean()
    scaler.scale(loss * (torch.inf if infinite else 1)).backward()
    before = flat(training.model)
    if unscale:
        scaler.unscale_(training.optimizer)
    after = flat(training.model)
    scaler.step(training.optimizer)
    scaler.update()
    return before, after


@pytest.mark.parametrize("unscale", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_a_scaler_is_told_and_its_skipped_steps_are_rows(path, training, unscale, fused, capsys):
    training.optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    seen = []
    at = ["local", "reduced"]
    with capture(training.model, training.optimizer, path, full=every(1), at=at, quiet=True) as c:
        for index in range(5):
            scale = scaler.get_scale()
            infinite = index == 2
            before, after = scaled_step(training, scaler, unscale=unscale, infinite=infinite)
            seen.append((scale, before, after))
    assert c.step == 5
    assert [scale for scale, _, _ in seen] == [64, 64, 128, 64, 64]
    for point in at:
        stream, rows = rows_of(path, point)
        facts = {name: values[rows] for name, values in stream.coordinates.items()}
        assert facts["step"].tolist() == [0, 1, 2, 3, 4]
        assert facts["skipped"].tolist() == [0, 0, 1, 0, 0]
        assert facts["loss_scale"].tolist() == [64, 64, 128, 64, 64]
        divided = point == "reduced" and (unscale or not fused)
        assert facts["unscaled"].tolist() == [int(divided)] * 5
        for row, (scale, before, after) in zip(rows, seen, strict=True):
            exact = after if unscale and divided else before / scale if divided else before
            assert torch.allclose(stream.read(row), exact, rtol=1e-6, equal_nan=True)
    said = capsys.readouterr().err
    assert said.count("multiplied by GradScaler's loss scale") == (fused and not unscale)


def test_a_clip_before_unscaling_is_seen_as_scaled(path, training):
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    with capture(training.model, training.optimizer, path, full=every(1), at=POINTS[1:]):
        training.optimizer.zero_grad()
        scaler.scale(training.model(torch.ones(1, 12)).sum()).backward()
        before = flat(training.model)
        nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
        scaler.step(training.optimizer)
        scaler.update()
    stream = GradientStore.open(path).stream()
    assert stream.coordinates["unscaled"].tolist() == [0, 1]
    assert torch.equal(stream.read(0), before)


def test_a_scaler_that_is_off_is_none(path, training):
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with capture(training.model, training.optimizer, path, full=every(1)):
        scaled_step(training, scaler, unscale=True, infinite=False)
    facts = GradientStore.open(path).stream().coordinates
    assert (facts["loss_scale"].tolist(), facts["unscaled"].tolist()) == ([1], [1])


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("global", "at must be auto or some of local, reduced, clipped, outer, got 'global'"),
        ([], "at must be auto or some of"),
    ],
)
def test_points_that_are_none_are_refused(path, training, at, message):
    with pytest.raises(ValueError, match=message):
        capture(training.model, training.optimizer, path, at=at)
    assert not path.exists()


def test_a_comm_hook_needs_ddp(path, training):
    with pytest.raises(ValueError, match="needs a model in DistributedDataParallel"):
        capture(training.model, training.optimizer, path, at="local", local_by="comm_hook")


@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("track", [None, 9])
def test_local_rows_begin_in_time_whatever_the_interval(path, training, read, interval, track):
    settings = {"full": every(interval), "track": track, "at": ["local", "reduced"]}
    with capture(training.model, training.optimizer, path, **settings):
        for _ in range(11):
            training.step()
    stream = read(path)
    due = list(range(0, 11, interval))
    assert stream.steps.tolist() == [step for step in due for _ in range(2)]
    assert stream.coordinates["point"].tolist() == ["local", "reduced"] * len(due)
    for row, step in enumerate(stream.steps):
        assert torch.equal(stream.read(row), training.flat(step))
