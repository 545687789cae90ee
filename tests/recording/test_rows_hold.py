"""A staged row is the gradient of its step or no row: batches left out, clipping at odd times."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

import gradstats
from gradstats.recording import capture, every
from gradstats.store import GradientStore
from gradstats.summary import summarize

pytestmark = pytest.mark.slow

POINTS = ["local", "reduced", "clipped"]
LIMIT = 0.05
imported_by_name = clip_grads_with_norm_


class Loop:
    """A training of two parts that notes what a row of each point has to hold.

    `reduced` is what is in `.grad` before the last clipping of it, `clipped` what the optimizer
    gets, of all parameters one after another.
    """

    def __init__(self, optimizers=1, to_none=True):
        rng = torch.Generator().manual_seed(3)
        self.parts = nn.ModuleList([nn.Linear(6, 5), nn.Linear(6, 3)])
        with torch.no_grad():
            for parameter in self.parts.parameters():
                parameter.normal_(generator=rng)
        self.to_none = to_none
        groups = [self.parts] if optimizers == 1 else list(self.parts)
        self.optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in groups]
        self.rng = rng
        self.before = [None] * 4  # before clipping, by parameter
        self.seen = {point: [] for point in POINTS}

    @property
    def parameters(self):
        return list(self.parts.parameters())

    def backward(self, *parts, factor=1.0):
        batch = torch.randn(4, 6, generator=self.rng)
        chosen = [self.parts[i] for i in parts] if parts else self.parts
        (factor * sum(one(batch).square().mean() for one in chosen)).backward()

    def zero(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=self.to_none)

    def clip(self, parts=None, function=None):
        chosen = self.parameters if parts is None else list(self.parts[parts].parameters())
        for place, parameter in enumerate(self.parameters):
            if any(parameter is one for one in chosen) and parameter.grad is not None:
                self.before[place] = parameter.grad.clone()
        if function is None:
            return clip_grad_norm_(chosen, LIMIT)
        norm = get_total_norm([p.grad for p in chosen])
        function(chosen, LIMIT, norm)
        return norm

    def step(self, fresh=()):
        """Step; of `fresh` parameters the gradient is newer than the clipping."""
        now = [p.grad.clone() for p in self.parameters]
        old = enumerate(zip(self.before, now, strict=True))
        before = [n if b is None or place in fresh else b for place, (b, n) in old]
        self.seen["reduced"].append(torch.cat([g.reshape(-1) for g in before]))
        self.seen["clipped"].append(torch.cat([g.reshape(-1) for g in now]))
        for optimizer in self.optimizers:
            optimizer.step()
        self.before = [None] * 4


@pytest.fixture(params=[1, 2], ids=["one optimizer", "a list"])
def optimizers(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["to none", "to zero"])
def loop(request, optimizers):
    return Loop(optimizers, request.param)


def record(loop, path, **settings):
    settings = {"full": every(1), "at": ["reduced", "clipped"], "quiet": True} | settings
    return capture(loop.parts, loop.optimizers, path, track=10, summary=True, **settings)


def check(path, seen, **facts):
    """Whole rows, tracked elements and Summaries of both points are what was seen."""
    store = GradientStore.open(path)
    full, track, summary = (store.stream(kind=k) for k in ("full", "track", "summary"))
    ids = track.element_ids["float32"]
    for point in ("reduced", "clipped"):
        for stream in (full, track, summary):
            rows = np.flatnonzero(stream.coordinates["point"] == point)
            assert stream.coordinates["step"][rows].tolist() == list(range(len(seen[point])))
            for name, expected in facts.items():
                found = stream.coordinates[name][rows].tolist()
                assert found == pytest.approx(expected, nan_ok=True), name
            for row, grad in zip(rows, seen[point], strict=True):
                if stream is summary:
                    run = gradstats.open(path, point=point)
                    total = sum(one.total_sq for one in run.summaries(int(row)).values())
                    assert total == pytest.approx(summarize(grad).total_sq, rel=1e-12)
                else:
                    expected = grad if stream is full else grad[ids]
                    assert torch.equal(stream.read(int(row)), expected)


def test_clipping_after_every_micro_batch(loop, tmp_path):
    norms = []
    with record(loop, tmp_path / "run.zarr"):
        for _ in range(3):
            loop.zero()
            for _ in range(4):
                loop.backward()
                norm = loop.clip()
            norms.append(norm.item())
            loop.step()
    check(tmp_path / "run.zarr", loop.seen, micro_step=[3] * 3, clip_norm=norms)


def test_a_batch_with_nan_is_left_out(loop, tmp_path, capsys):
    with record(loop, tmp_path / "run.zarr", quiet=False):
        for number in range(6):
            loop.zero()
            loop.backward(factor=float("nan") if number in (0, 1, 3, 5) else 1.0)
            if not loop.clip().isfinite():
                continue
            loop.step()
    check(tmp_path / "run.zarr", loop.seen, micro_step=[0, 0], skipped=[0, 0])
    assert "NaN or inf" not in capsys.readouterr().err
    local = gradstats.open(tmp_path / "run.zarr", point="reduced")
    assert all(grad.isfinite().all() for _, grad in local.gradients())


def test_no_row_of_a_step_that_never_took_place(loop, tmp_path):
    cap = record(loop, tmp_path / "run.zarr")
    loop.zero()
    loop.backward()
    loop.clip()
    loop.step()
    loop.zero()
    loop.backward()
    loop.clip()
    cap.close()
    check(tmp_path / "run.zarr", loop.seen)


def test_clipping_before_the_backward_pass(loop, tmp_path):
    with record(loop, tmp_path / "run.zarr"):
        for _ in range(4):
            if loop.parameters[0].grad is not None:
                loop.clip()
            loop.zero()
            loop.backward()
            loop.step(fresh=range(4))
    nothing = [float("nan")] * 4
    check(tmp_path / "run.zarr", loop.seen, clip_norm=nothing, micro_step=[0] * 4)


def test_each_part_clipped_after_its_own_backward_pass(loop, tmp_path, capsys):
    with record(loop, tmp_path / "run.zarr", quiet=False):
        for _ in range(3):
            loop.zero()
            for part in (0, 1):
                loop.backward(part)
                loop.clip(part)
            loop.step()
    check(tmp_path / "run.zarr", loop.seen, clip_norm=[float("nan")] * 3)
    said = capsys.readouterr().err
    assert "had no gradient" not in said
    assert said.count("clip_norm and clip_coefficient are NaN") == 1


def test_another_micro_batch_after_the_clipping_of_one_part(loop, tmp_path):
    with record(loop, tmp_path / "run.zarr"):
        for _ in range(3):
            loop.zero()
            loop.backward()
            loop.clip()
            loop.backward()  # on top of what is clipped
            loop.clip(1)
            loop.step(fresh=(0, 1))
    check(tmp_path / "run.zarr", loop.seen, clip_norm=[float("nan")] * 3)


def test_gradients_made_anew_after_clipping(loop, tmp_path):
    with record(loop, tmp_path / "run.zarr"):
        for number in range(3):
            loop.zero()
            loop.backward()
            loop.clip()
            for parameter in loop.parameters:
                parameter.grad = torch.full_like(parameter, number + 1.0)
            loop.step(fresh=range(4))
    check(tmp_path / "run.zarr", loop.seen, clip_norm=[float("nan")] * 3)


def test_clipping_by_a_function_that_was_imported_before(loop, tmp_path):
    norms = []
    with record(loop, tmp_path / "run.zarr"):
        for _ in range(2):
            loop.zero()
            loop.backward()
            norms.append(loop.clip(function=imported_by_name).item())
            loop.step()
    check(tmp_path / "run.zarr", loop.seen, clip_norm=norms)
    assert clip_grads_with_norm_.__closure__[0].cell_contents.__module__.startswith("torch")


@pytest.mark.parametrize("unscaled", [True, False])
def test_scaled_batches_that_are_left_out(unscaled, tmp_path):
    """By hand before the scaler is asked, and by the scaler."""
    loop, scaler = Loop(), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer, path = loop.optimizers[0], tmp_path / "run.zarr"
    expected = []
    with capture(loop.parts, optimizer, path, full=every(1), track=None, quiet=True):
        for number in range(5):
            optimizer.zero_grad()
            infinite = torch.inf if number in (1, 3) else 1.0
            batch = torch.randn(4, 6, generator=loop.rng)
            loss = sum(one(batch).square().mean() for one in loop.parts)
            scaler.scale(infinite * loss).backward()
            scale = scaler.get_scale()
            if unscaled:
                scaler.unscale_(optimizer)
            grads = torch.cat([p.grad.reshape(-1) for p in loop.parameters])
            if not clip_grad_norm_(loop.parameters, LIMIT).isfinite() and number == 1:
                if unscaled:
                    scaler.update()
                continue
            expected.append(grads * (1 if unscaled else 1 / scale))
            scaler.step(optimizer)
            scaler.update()
    stream = GradientStore.open(path).stream()
    facts = stream.coordinates
    assert facts["step"].tolist() == [0, 1, 2, 3]
    assert facts["skipped"].tolist() == [0, 0, 1, 0]
    for row in (0, 1, 3):
        scale = 1 if facts["unscaled"][row] else facts["loss_scale"][row]
        assert torch.allclose(stream.read(row) / scale, expected[row], rtol=1e-6)
    assert facts["micro_step"].tolist() == [0] * 4


class FailsOnce(torch.amp.GradScaler):
    """A scaler whose first step raises, when it has divided the gradients."""

    failed = False

    def _maybe_opt_step(self, *args, **kwargs):
        if not self.failed:
            self.failed = True
            raise RuntimeError("once")
        return super()._maybe_opt_step(*args, **kwargs)


def test_a_scaler_whose_step_fails_settles_nothing(tmp_path):
    """The script catches the error and goes on with another batch."""
    loop, scaler = Loop(), FailsOnce("cpu", init_scale=8.0)
    optimizer, path = loop.optimizers[0], tmp_path / "run.zarr"
    expected = []
    with capture(loop.parts, optimizer, path, full=every(1), track=None, quiet=True):
        for number in range(3):
            optimizer.zero_grad()
            loop.backward(factor=scaler.get_scale())
            expected.append(torch.cat([p.grad.reshape(-1) for p in loop.parameters]))
            scaler.scale(torch.ones(()))
            clip_grad_norm_(loop.parameters, LIMIT)
            if number == 0:
                with pytest.raises(RuntimeError, match="once"):
                    scaler.step(optimizer)
            else:
                scaler.step(optimizer)
            scaler.update()
    stream = GradientStore.open(path).stream()
    assert stream.steps.tolist() == [0, 1]
    for row, grad in enumerate(expected[1:]):
        assert torch.equal(stream.read(row), grad)  # as clipping found it, not divided yet
    assert not stream.coordinates["unscaled"].any()


def test_local_rows_without_a_batch_that_was_left_out(tmp_path):
    """A part that only the batch left out went through has no gradient."""
    loop = Loop()
    with capture(loop.parts, loop.optimizers, tmp_path / "run.zarr", full=every(1), at="local"):
        loop.backward(factor=torch.nan)
        loop.zero()
        loop.backward(0)
        expected = torch.cat([p.grad.reshape(-1) for p in loop.parts[0].parameters()])
        loop.optimizers[0].step()
    stream = GradientStore.open(tmp_path / "run.zarr").stream()
    assert torch.equal(stream.read(0)[: len(expected)], expected)
    assert not stream.read(0)[len(expected) :].any()
    assert stream.present[0].tolist() == [True, True, False, False]
    assert stream.coordinates["micro_step"].tolist() == [0]


def test_micro_steps_are_counted_on_any_parameter(tmp_path):
    """Whichever of them a backward pass reaches, and only where it reaches one."""
    loop = Loop()
    other = nn.Linear(6, 1)
    for parameter in loop.parts[1].parameters():
        parameter.requires_grad_(True)
    with capture(loop.parts, loop.optimizers, tmp_path / "run.zarr", full=every(1)):
        for parts in ([(0,)], [(0,), (0,)], [(1,), (0, 1), (0,)], [(0, 1)]):
            loop.zero()
            for chosen in parts:
                loop.backward(*chosen)
                other(torch.ones(6)).sum().backward()
            loop.optimizers[0].step()
        loop.zero()
        loop.parts[1].requires_grad_(False)
        loop.backward(0)
        loop.backward(0)
        loop.optimizers[0].step()
    facts = GradientStore.open(tmp_path / "run.zarr").stream().coordinates
    assert facts["micro_step"].tolist() == [0, 1, 2, 0, 1]


def test_what_was_before_attaching_is_unknown(tmp_path):
    loop = Loop()
    loop.backward()
    loop.backward()
    with capture(loop.parts, loop.optimizers, tmp_path / "run.zarr", full=every(1)):
        loop.backward()
        loop.step()
        loop.zero()
        loop.backward()
        loop.step()
    stream = GradientStore.open(tmp_path / "run.zarr").stream()
    assert stream.coordinates["micro_step"].tolist() == [-1, 0]
    for row, grad in enumerate(loop.seen["reduced"]):
        assert torch.equal(stream.read(row), grad)
