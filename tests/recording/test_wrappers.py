"""Each way of training that hooks are known to get wrong; all on one process."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradstats.recording import capture, every, slots, writer
from gradstats.store import GradientStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


def flat(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]).clone()


def rows_of(path, point, kind="full"):
    stream = GradientStore.open(path).stream(kind=kind)
    here = np.flatnonzero(stream.coordinates["point"] == point)
    return [stream.read(int(row)) for row in here], stream


class Checkpointed(nn.Module):
    """A block used twice, recomputed in backward."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(1)
        self.reentrant = reentrant
        self.inlet, self.block, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        x = self.inlet(x)
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=self.reentrant).tanh()
        return self.head(x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(path, reentrant):
    model = Checkpointed(reentrant)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exact = []
    with capture(model, optimizer, path, full=every(1), at=["local", "reduced"]):
        for step in range(3):
            optimizer.zero_grad()
            for micro in range(2):
                x = torch.full((2, 4), float(step + micro), requires_grad=True)
                model(x).sum().backward()
            exact.append(flat(model))
            optimizer.step()
    for point in ("local", "reduced"):
        rows, stream = rows_of(path, point)
        assert all(torch.equal(row, one) for row, one in zip(rows, exact, strict=True))
        assert set(stream.coordinates["micro_step"]) == {1}


@pytest.mark.parametrize("at", ["local", "reduced"])
def test_compile_makes_no_more_graphs_and_never_recompiles(tmp_path, at):
    def graphs(recorded):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        compiled = torch.compile(model, backend="aot_eager")
        optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
        exact = []
        settings = {"full": every(2), "track": 10, "at": at}
        handle = (
            capture(compiled, optimizer, tmp_path / "r.zarr", **settings) if recorded else None
        )
        with torch._dynamo.config.patch(error_on_recompile=True):
            for step in range(6):
                optimizer.zero_grad()
                compiled(torch.full((4, 8), float(step))).square().mean().backward()
                exact.append(flat(model))
                nn.utils.clip_grad_norm_(compiled.parameters(), 0.1)
                optimizer.step()
        if handle is not None:
            handle.close()
            rows, stream = rows_of(tmp_path / "r.zarr", at)
            assert all(torch.equal(a, b) for a, b in zip(rows, exact[::2], strict=True))
            assert stream.parameters[0].name == "0.weight"
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    assert graphs(recorded=True) == graphs(recorded=False) == 1


def test_tied_parameters_at_the_local_point(path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, full=every(1), at=["local", "reduced"]):
        model(torch.tensor([1, 2, 2])).square().sum().backward()
        exact = model.embed.weight.grad.clone()
        optimizer.step()
    for point in ("local", "reduced"):
        (row,), stream = rows_of(path, point)
        assert torch.equal(row.reshape(7, 3), exact)
        assert stream.parameters[0].aliases == ("head.weight",)


@pytest.mark.parametrize("at", ["local", "reduced"])
def test_sparse_embedding_gradients_stay_sparse(path, at, capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50_000, 16, sparse=True), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exact = []
    with capture(model, optimizer, path, full=every(1), track=10, at=at, quiet=True) as cap:
        for step in range(3):
            optimizer.zero_grad()
            for index in (step, step + 1):  # accumulated: uncoalesced, with repeats
                model(torch.tensor([index, 5, 5, 49_999])).sum().backward()
            exact.append(model[0].weight.grad.coalesce())
            optimizer.step()
    assert "dense" not in capsys.readouterr().err
    assert cap.stats.dropped == 0
    store = GradientStore.open(path)
    assert store.nbytes < 5_000_000  # one dense row takes 3.2 MB
    stream = store.stream()
    assert store.parameters[0].layout == "sparse"
    assert store.parameters[0].numel == 800_000
    for step in range(3):
        grad = stream.read(step, "0.weight")
        assert torch.equal(grad.indices(), exact[step].indices())
        assert torch.equal(grad.values(), exact[step].values())
        assert stream.nnz(step, "0.weight") == exact[step].values().numel()
        parts = [exact[step].values().flatten(), stream.read(step)]
        norm = torch.linalg.vector_norm(torch.cat(parts).double()).item()
        assert stream.coordinates["grad_norm"][step] == pytest.approx(norm, rel=1e-12)
    assert stream.read(0).numel() == 17


def test_a_sparse_gradient_that_no_module_announced_is_said(path, capsys):
    model = nn.Embedding(20, 3)
    model.forward = lambda x: nn.functional.embedding(x, model.weight, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, full=every(1), quiet=True):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.tensor([1, 5, 5])).sum().backward()
            exact = model.weight.grad.to_dense()
            optimizer.step()
    assert capsys.readouterr().err.count("the gradient of 'weight' is sparse") == 1
    assert torch.equal(GradientStore.open(path).stream().read(1, "weight"), exact)


@pytest.mark.parametrize("at", ["local", "reduced"])
def test_parameters_come_and_go(path, at, capsys):
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "abcd"})
    model["a"].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, full=every(1), at=at):
        for step in range(4):
            optimizer.zero_grad()
            model["a"].weight.requires_grad_(step >= 2)  # unfrozen
            model["b"].weight.requires_grad_(step < 2)  # frozen
            x = model["b"](model["a"](torch.ones(1, 2)))
            if step % 2:  # c is used now and then, d never
                x = model["c"](x)
            if x.requires_grad:
                x.sum().backward()
            optimizer.step()
    present = GradientStore.open(path).stream().present
    assert present[:, 0].tolist() == [False, False, True, True]
    assert present[:, 1].tolist() == [True, True, False, False]
    assert present[:, 2].tolist() == [False, True, False, True]
    assert not present[:, 3].any()
    assert "1 parameters had no gradient in any row: d.weight" in capsys.readouterr().err


def test_two_optimizers_of_a_gan_have_a_recording_each(tmp_path):
    maker, critic = nn.Linear(3, 4), nn.Linear(4, 1)
    made = {"maker": maker, "critic": critic}
    optimizers = {name: torch.optim.Adam(m.parameters()) for name, m in made.items()}
    captures = {
        name: capture(m, optimizers[name], tmp_path / name, full=every(1), at=["local", "reduced"])
        for name, m in made.items()
    }
    exact = {"maker": [], "critic": []}
    for step in range(5):
        name = "maker" if step % 3 == 2 else "critic"  # two steps of one to one of the other
        optimizers[name].zero_grad()
        critic(maker(torch.full((2, 3), float(step)))).square().mean().backward()
        exact[name].append(flat(made[name]))
        optimizers[name].step()
        for other in made.values():
            other.zero_grad()
    for name in made:
        captures[name].close()
        rows, _ = rows_of(tmp_path / name, "reduced")
        assert all(torch.equal(a, b) for a, b in zip(rows, exact[name], strict=True))
    assert captures["maker"].stats.full_rows // 2 == 1


def test_an_optimizer_in_backward_is_recorded_as_a_list(path):
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
    with capture(model, list(optimizers.values()), path, full=every(2), track=6) as cap:
        for step in range(5):
            x = torch.full((2, 5), float(step))
            model(x).square().mean().backward()
            cap.log(loss=step)
            plain.zero_grad()
            twin(x).square().mean().backward()
            exact.append(flat(twin))
            plain.step()
    rows, stream = rows_of(path, "reduced")
    assert stream.steps.tolist() == [0, 2, 4]
    assert all(torch.allclose(a, b) for a, b in zip(rows, exact[::2], strict=True))
    assert stream.coordinates["loss"].tolist() == [0, 2, 4]
    tracked, track = rows_of(path, "reduced", "track")
    assert track.steps.tolist() == [0, 1, 2, 3, 4]
    ids = track.element_ids["float32"]
    assert all(torch.allclose(a, b[ids]) for a, b in zip(tracked, exact, strict=True))


def test_gradients_that_are_gone_before_the_step_are_pointed_out(path, capsys):
    model = nn.Linear(3, 1)

    def consume(parameter):
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(consume)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, full=every(1), at=["local", "reduced"]):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    (local,), _ = rows_of(path, "local")  # ours runs before the hook that takes it away
    assert local.tolist() == [1, 1, 1, 1]
    _, stream = rows_of(path, "reduced")
    assert not stream.present[1].any()
    capsys.readouterr()
    with capture(model, optimizer, path.with_name("b"), full=every(1)):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert "an optimizer in backward? pass all optimizers as a list" in capsys.readouterr().err


def test_nan_and_infinite_local_gradients_are_kept_and_counted(path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with capture(model, optimizer, path, full=every(1), track=0, at="local") as cap:
        for value in (1.0, torch.nan, torch.inf):
            optimizer.zero_grad()
            model(torch.tensor([[value, 1.0]])).sum().backward()
            optimizer.step()
    assert cap.stats.nonfinite == 2
    rows, _ = rows_of(path, "local")
    assert [str(row[0].item()) for row in rows] == ["1.0", "nan", "inf"]


class Wrapped:
    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_wrapped_optimizers_and_models(path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outer = nn.DataParallel(model)
    with capture(outer, Wrapped(Wrapped(optimizer)), path, full=every(1), at="local"):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    _, stream = rows_of(path, "local")
    assert [p.name for p in stream.parameters] == ["weight", "bias"]


@pytest.mark.parametrize("when_full", ["drop", "thin"])
@pytest.mark.usefixtures("slow_disk")
def test_a_slow_disk_does_not_hold_the_training_back(path, when_full, capsys, monkeypatch):
    for module in (slots, writer):
        monkeypatch.setattr(module, "BATCH_ROWS", 1)  # two rows wait, as large ones do
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"full": every(1), "track": 0, "when_full": when_full}
    with capture(model, optimizer, path, **settings) as cap:
        for _ in range(200):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
    assert cap.stats.seconds < 0.1
    if when_full == "drop":
        assert cap.stats.full_rows + cap.stats.dropped == 200
    else:
        assert cap.stats.thinned > 100
        assert cap.stats.full_rows + cap.stats.dropped + cap.stats.thinned == 200
    assert "the writer is behind" in capsys.readouterr().err


@pytest.mark.parametrize("mark", ["ds_id", "ds_tensor"])
def test_zero_is_refused_by_name(path, mark):
    model = nn.Linear(3, 1)
    setattr(model.weight, mark, 1)
    with pytest.raises(ValueError, match="'weight': DeepSpeed ZeRO keeps its gradient"):
        capture(model, torch.optim.SGD(model.parameters(), lr=0.1), path)
    assert not path.exists()


def test_hooks_never_wait_for_the_device(path):
    """Reading a number off the device is `_local_scalar_dense` to torch, whatever it is called."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1))
    settings = {"full": every(2), "track": 9, "summary": True}
    with (
        capture(model, optimizer, path, at=["local", "reduced", "clipped"], **settings) as cap,
        Watch() as watch,
    ):
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(torch.ones(3, 4)).sum()
            loss.backward()
            before = len(watch.seen)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            for hook in list(optimizer._optimizer_step_pre_hooks.values()):
                hook(optimizer, (optimizer,), {})
            cap.log(loss=loss)
            ours = watch.seen[before:]
            assert any("copy_" in name or "take" in name for name in ours)
            assert not any("_local_scalar_dense" in name for name in ours)
    assert cap.stats.dropped == 0


def test_a_copy_of_the_model_is_not_recorded(path):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exact = []
    with capture(model, optimizer, path, full=every(1), track=None, at="local"):
        for _ in range(3):
            twin = copy.deepcopy(model)  # an average of weights, say
            twin(torch.ones(3, 4)).sum().backward()
            optimizer.zero_grad()
            model(torch.randn(3, 4)).square().sum().backward()
            exact.append(flat(model))
            optimizer.step()
    rows, _ = rows_of(path, "local")
    assert all(torch.equal(row, one) for row, one in zip(rows, exact, strict=True))


def test_an_optimizer_and_a_model_inside_of_wrappers(path):
    class Accelerated:
        def __init__(self, optimizer):
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

        def step(self):
            self.optimizer.step()

    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    torch.manual_seed(0)
    model = Wrapped(Wrapped(nn.Linear(4, 2)))
    optimizer = Accelerated(torch.optim.SGD(model.parameters(), lr=0.1))
    with capture(model, optimizer, path, full=every(1), track=None) as cap:
        model(torch.ones(3, 4)).sum().backward()
        exact = flat(model)
        optimizer.step()
    assert cap.stats.full_rows == 1
    rows, stream = rows_of(path, "reduced")
    assert [p.name for p in stream.table] == ["weight", "bias"]
    assert torch.equal(rows[0], exact)
