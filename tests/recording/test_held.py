"""What the optimizer and the parameters are, and what becomes of them while they train."""

import pytest
import torch
from torch import nn

import gradstats
from gradstats.recording import capture, every
from gradstats.store import GradientStore

pytestmark = pytest.mark.slow


def batch(step, width=6):
    return torch.randn(4, width, generator=torch.Generator().manual_seed(step))


def grads(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]).clone()


def stepped(model, optimizer, step):
    optimizer.zero_grad()
    model(batch(step)).square().mean().backward()
    seen = grads(model)
    optimizer.step()
    return seen


def two():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))


@pytest.mark.parametrize("shape", [(2, 6), (5, 1), (1, 6), (30,)])
def test_a_parameter_of_another_shape_is_no_row(shape, tmp_path, capsys):
    model = nn.ParameterList([nn.Parameter(torch.ones(5, 6)), nn.Parameter(torch.ones(3))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(
        model, optimizer, tmp_path / "run.zarr", full=every(1), track=20, summary=True
    ) as cap:
        for step in range(3):
            if step == 1:
                model[0].grad = None
                model[0].data = torch.ones(shape)
            optimizer.zero_grad()
            (sum(p.square().sum() for p in model.parameters())).backward()
            optimizer.step()
    store = GradientStore.open(tmp_path / "run.zarr")
    for kind in ("full", "track", "summary"):
        assert store.stream(kind=kind).steps.tolist() == [0]
    assert cap.stats.dropped == 6
    said = capsys.readouterr().err
    assert f"'0': its gradient is {shape} and the store holds (5, 6)" in said


def test_weights_of_a_list_are_those_of_the_forward_pass(tmp_path):
    model = two()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
    before = []
    with capture(model, optimizers, tmp_path / "run.zarr", full=every(1), weights=True):
        for step in range(3):
            before.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
            model(batch(step)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    stream = GradientStore.open(tmp_path / "run.zarr").stream()
    assert len(stream) == 3
    for row, weights in enumerate(before):
        assert torch.equal(stream.read(row, quantity="weight"), weights)


needs_grad_dtype = pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no Tensor.grad_dtype"
)


@needs_grad_dtype
@pytest.mark.parametrize("at", ["local", "reduced"])
def test_a_gradient_has_a_dtype_of_its_own(at, tmp_path):
    model = nn.Linear(6, 5).bfloat16()
    for parameter in model.parameters():
        parameter.grad_dtype = torch.float32
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    settings = {"full": every(1), "track": 9, "at": at, "weights": True}
    with capture(model, optimizer, tmp_path / "run.zarr", **settings):
        for step in range(2):
            optimizer.zero_grad()
            model(batch(step).bfloat16()).float().square().mean().backward()
            seen.append(
                (grads(model), torch.cat([p.data.reshape(-1) for p in model.parameters()]))
            )
            optimizer.step()
    stream = GradientStore.open(tmp_path / "run.zarr").stream()
    assert [p.dtype for p in stream.table] == ["float32", "float32"]
    for row, (grad, weights) in enumerate(seen):
        assert grad.dtype == torch.float32
        assert torch.equal(stream.read(row), grad)
        assert torch.equal(stream.read(row, quantity="weight").bfloat16(), weights)


@needs_grad_dtype
def test_weights_that_the_gradients_dtype_cannot_hold_are_refused(tmp_path):
    model = nn.Linear(6, 5)
    model.weight.grad_dtype = torch.bfloat16
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"weights must be off: 'weight' is torch.float32"):
        capture(model, optimizer, tmp_path / "run.zarr", weights=True)
    assert not (tmp_path / "run.zarr").exists()


def masters_of(model):
    return [p.detach().clone().float().requires_grad_() for p in model.parameters()]


@pytest.mark.parametrize("order", [1, -1])
def test_master_copies_go_by_the_names_of_the_parameters(order, tmp_path, capsys):
    model = two().bfloat16()
    masters = masters_of(model)
    optimizer = torch.optim.SGD(masters[::order], lr=0.1)
    seen = []
    with capture(model, optimizer, tmp_path / "run.zarr", full=every(1), track=7):
        for step in range(3):
            model.zero_grad()
            model(batch(step).bfloat16()).float().square().mean().backward()
            for master, parameter in zip(masters, model.parameters(), strict=True):
                master.grad = parameter.grad.float()
            seen.append({n: p.grad.float() for n, p in model.named_parameters()})
            optimizer.step()
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.data.copy_(master)
    run = gradstats.open(tmp_path / "run.zarr")
    assert [(p.name, p.dtype) for p in run.store.parameters] == [
        (name, "float32") for name, _ in model.named_parameters()
    ]
    for step, named in enumerate(seen):
        for name, grad in named.items():
            assert torch.equal(run.read(step, name), grad)
    assert "holds copies of the parameters" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["other values", "too few", "no copies", "two alike"])
def test_copies_that_cannot_be_told_are_refused_with_a_remedy(kind, tmp_path):
    model = two().bfloat16()
    masters = masters_of(model)
    if kind == "other values":
        masters[1].data += 1
    if kind == "too few":
        masters.pop()
    if kind == "no copies":
        masters = [torch.zeros(3, requires_grad=True)]
    if kind == "two alike":
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        masters = masters_of(model)
    optimizer = torch.optim.SGD(masters, lr=0.1)
    if kind == "two alike":  # in the model's order: which is which does not show
        capture(model, optimizer, tmp_path / "run.zarr", quiet=True).close()
        return
    rule = "the optimizer holds none of its 4 parameters, and its .* tensors are no copies of them"
    with pytest.raises(ValueError, match=rule):
        capture(model, optimizer, tmp_path / "run.zarr")


def test_a_track_of_sparse_parameters_alone_is_refused(tmp_path):
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="full or summary must be on, got neither: all"):
        capture(model, optimizer, tmp_path / "run.zarr", full=None, track=10)
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize("at", ["local", "reduced"])
def test_what_shadows_and_on_summary_get_is_without_the_loss_scale(at, tmp_path):
    """Of a constant gradient under a scale that grows at every step."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(50))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    told, direction = {}, torch.linspace(-1, 1, 50)
    path, settings = tmp_path / "run.zarr", {"full": None, "track": 50, "at": at}
    settings |= {"shadow": ["ef(topk(0.1))"], "on_summary": lambda step, s: told.update({step: s})}
    with capture(model, optimizer, path, **settings):
        for _ in range(4):
            optimizer.zero_grad()
            scaler.scale((model[0] * direction).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    run = gradstats.open(path)
    assert run.stream("track").coordinates["loss_scale"].tolist() == [8.0, 16.0, 32.0, 64.0]
    for step in range(4):
        assert told[step]["0"].total_sq == pytest.approx(direction.square().sum().item())
    shadows = run.shadow_rows()
    replayed = gradstats.replay(run, ["ef(topk(0.1))"]).to_dict("records")
    for one, other in zip(shadows, replayed, strict=True):
        assert one["residual_ratio"] == pytest.approx(other["residual_ratio"], rel=1e-6)


def test_a_frozen_quantized_weight_is_left_out(tmp_path, capsys):
    model = two()
    model.codes = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    narrow = torch.zeros(4).to(torch.float8_e4m3fn)
    model.narrow = nn.Parameter(narrow, requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, tmp_path / "run.zarr", full=every(1)) as cap:
        optimizer.zero_grad()
        model[1](model[0](batch(0))).square().mean().backward()
        optimizer.step()
    names = [p.name for p in GradientStore.open(tmp_path / "run.zarr").parameters]
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert cap.stats.full_rows == 1
    assert "2 frozen parameters are not recorded: codes, narrow" in capsys.readouterr().err


def test_another_optimizer_over_recorded_parameters_is_counted_and_said(tmp_path, capsys):
    """Head first, then the body with an optimizer of its own."""
    model = two()
    head = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with capture(model, head, tmp_path / "run.zarr", full=every(1)) as cap:
        for step in range(3):
            stepped(model, head, step)
        every_one = torch.optim.Adam(model.parameters(), lr=0.1)
        for step in range(7):
            stepped(model, every_one, step)
    assert (cap.stats.full_rows, cap.stats.unrecorded) == (3, 7)
    said = capsys.readouterr().err
    assert said.count("another optimizer (Adam) updates recorded parameters") == 1
    assert "7 steps of other optimizers not recorded" in said


def test_other_optimizers_of_other_parameters_are_nobodys_business(tmp_path, capsys):
    model, other = two(), two()
    optimizer, beside = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    with capture(model, optimizer, tmp_path / "run.zarr", full=every(1)) as cap:
        for step in range(3):
            stepped(model, optimizer, step)
            stepped(other, beside, step)
    assert (cap.stats.full_rows, cap.stats.unrecorded) == (3, 0)
    assert "another optimizer" not in capsys.readouterr().err


class Wrapping(torch.optim.Optimizer):
    """An optimizer whose step is another one's, over the same groups."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.base = inner

    def step(self, closure=None):
        return self.base.step(closure)


def test_a_step_inside_a_recorded_step_is_the_same_one(tmp_path):
    model = two()
    optimizer = Wrapping(torch.optim.SGD(model.parameters(), lr=0.1))
    with capture(model, optimizer, tmp_path / "run.zarr", full=every(1)) as cap:
        for step in range(3):
            stepped(model, optimizer, step)
    assert (cap.stats.full_rows, cap.stats.unrecorded) == (3, 0)


def extended(optimizer, extra):
    optimizer.param_groups[0]["params"].extend(extra)


def replaced(optimizer, extra):
    optimizer.param_groups[0]["params"] = list(extra)


def cleared(optimizer, extra):
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": list(extra)})


@pytest.mark.parametrize(
    ("change", "new", "gone"), [(extended, 2, 0), (replaced, 2, 2), (cleared, 2, 2)]
)
def test_groups_that_change_in_place_are_said(change, new, gone, tmp_path, capsys):
    model = two()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with capture(model, optimizer, tmp_path / "run.zarr", full=every(1)):
        stepped(model, optimizer, 0)
        change(optimizer, model[1].parameters())
        stepped(model, optimizer, 1)
    said = capsys.readouterr().err
    assert said.count(f"the optimizer got {new} new parameters") == 1
    assert said.count(f"no longer holds {gone} of the recorded parameters") == bool(gone)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
@pytest.mark.parametrize("at", ["local", "reduced"])
def test_a_compiled_step_is_compiled_as_without_a_recording(at, tmp_path):
    from torch._dynamo.utils import counters

    graphs = []
    for recorded in (False, True):
        torch._dynamo.reset()
        counters.clear()
        model = two()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        if recorded:
            settings = {"full": every(2), "track": 5, "at": at, "quiet": True}
            cap = capture(model, optimizer, tmp_path / "run.zarr", **settings)
        step = torch.compile(optimizer.step, backend="eager")
        for number in range(5):
            optimizer.zero_grad()
            model(batch(number)).square().mean().backward()
            step()
        graphs.append((counters["stats"]["unique_graphs"], counters["stats"]["calls_captured"]))
    cap.close()
    assert graphs[0] == graphs[1]
    assert (cap.stats.full_rows, cap.stats.tracked_rows) == (3, 5)
