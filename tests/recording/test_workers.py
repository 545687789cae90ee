"""Several gloo processes: each wrapper, each point, against a training without processes."""

import numpy as np
import pytest
import torch

from gradstats.store import GradientStore
from tests.processes import run_workers
from tests.recording.workers import MICRO, STEPS, Branch, batch, expected, net, work

pytestmark = pytest.mark.slow


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


def run(name, path, world=2):
    """Run one function of workers.py on every worker; (exit code, stdout, stderr) of each."""
    return run_workers(work, world, path.parent, name, str(path))


def succeed(name, path, world=2):
    ended = run(name, path, world)
    assert [code for code, _, _ in ended] == [0] * world, ended
    return [(out, err) for _, out, err in ended]


def rows_of(path, worker, point, kind="full"):
    stream = GradientStore.open(path).stream(worker, kind)
    here = np.flatnonzero(stream.coordinates["point"] == point)
    facts = {name: values[here] for name, values in stream.coordinates.items()}
    return torch.stack([stream.read(int(row)) for row in here]), facts, stream


@pytest.mark.parametrize("name", ["ddp_points", "ddp_bucket_view", "ddp_static_graph"])
def test_local_and_reduced_gradients_of_the_same_steps(path, name):
    limit, micros = 0.05, 1 if name == "ddp_static_graph" else 3
    succeed(name, path)
    points = ["local", "reduced", "clipped"] if name == "ddp_points" else ["local", "reduced"]
    for worker in range(2):
        for point in points if worker == 0 else ["local"]:
            rows, facts, _ = rows_of(path, worker, point)
            exact = expected(worker, point, 2, limit, micros)
            assert torch.allclose(rows, exact, atol=1e-7), point
            assert set(facts["world_size"]) == {2}
            assert set(facts["loss"]) == {worker}
            assert set(facts["micro_step"]) == {micros - 1}
            assert (facts["clip_coefficient"] < 1).all()
            tracked, _, stream = rows_of(path, worker, point, "track")
            ids = stream.element_ids["float32"]
            assert torch.equal(tracked, rows[:, ids])
    one, two = (GradientStore.open(path).stream(w, "track").element_ids for w in range(2))
    assert one["float32"].tolist() == two["float32"].tolist()


def test_auto_is_local_on_every_worker_under_ddp(path):
    ends = succeed("ddp", path)
    assert [out for out, _ in ends] == ["Capture 4 0\n"] * 2
    assert "rank 1 of 2 records its own gradients" in ends[1][1]
    for worker in range(2):
        rows, _, stream = rows_of(path, worker, "local")
        assert len(stream) == STEPS
        assert torch.allclose(rows, expected(worker, "local", 2, 0.05), atol=1e-7)


def test_reduced_gradients_are_rank_0s(path):
    ends = succeed("ddp_reduced", path)
    assert [out for out, _ in ends] == ["Capture 4 0\n", "Idle 0 0\n"]
    assert (
        "rank 0 of 2 records; ranks with the same parameters run without recording" in ends[0][1]
    )
    assert "gradstats" not in ends[1][1]
    assert GradientStore.open(path).workers == (0,)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_a_comm_hook_reduces_to_the_bit_and_is_the_only_one(path, world):
    ends = succeed("comm_hook", path, world)
    assert all("allows one communication hook" in out for out, _ in ends)
    assert all("fp16_compress_hook is registered" in out for out, _ in ends)
    model = net()
    for worker in range(world):
        rows, _, _ = rows_of(path, worker, "local")
        model.zero_grad()
        model(batch(worker, 0, 0)).square().mean().backward()
        exact = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        assert torch.allclose(rows[0], exact, atol=1e-7)


def test_a_comm_hook_beside_a_list_of_optimizers(path):
    succeed("comm_hook_listed", path)
    for worker in range(2):
        rows, facts, _ = rows_of(path, worker, "local")
        assert facts["step"].tolist() == list(range(0, STEPS, 2))
        exact = expected(worker, "local", 2, micros=1)[::2]
        assert torch.allclose(rows, exact, atol=1e-7)


@pytest.mark.parametrize("world", [2, 3])
def test_shards_of_fsdp2_are_recorded_as_they_are(path, world):
    succeed("fsdp2", path, world)
    for point in ("reduced", "clipped"):
        exact = expected(0, point, world, 0.05)
        names = {p.name: p for p in GradientStore.open(path).parameters}
        whole = {name: torch.full((STEPS, *p.shape), torch.nan) for name, p in names.items()}
        for worker in range(world):
            stream = GradientStore.open(path).stream(worker)
            rows = np.flatnonzero(stream.coordinates["point"] == point)
            assert stream.coordinates["micro_step"].tolist() == [MICRO - 1] * 2 * STEPS
            for p in stream.parameters:
                assert p.placement == "Shard(0)"
                assert p.global_shape == names[p.name].shape
                first = p.shard_offset[0]
                for step, row in enumerate(rows):
                    piece = stream.read(int(row), p.name)
                    assert piece.shape == p.shape
                    whole[p.name][step, first : first + p.shape[0]] = piece
        got = torch.cat([each.reshape(STEPS, -1) for each in whole.values()], dim=1)
        assert torch.allclose(got, exact, atol=1e-6)
    if world == 3:  # two rows over three workers: one has none
        sizes = [GradientStore.open(path).stream(w).parameters[-1].numel for w in range(3)]
        assert 0 in sizes


@pytest.mark.parametrize("name", ["fsdp1", "fsdp1_flat"])
def test_fsdp1_is_recorded_as_the_optimizer_gets_it(path, name):
    """Each worker's rows against what it held at the step, and put together against no FSDP."""
    ends = succeed(name, path)
    assert all("at must not be 'local' under FullyShardedDataParallel" in out for out, _ in ends)
    assert all(out.endswith("\n8 0\n") for out, _ in ends)
    assert not any("no gradient in any row" in err for _, err in ends)
    store = GradientStore.open(path)
    names = {p.name: p.shape for p in store.parameters}
    if name == "fsdp1":
        assert names == {p: tuple(one.shape) for p, one in net().named_parameters()}
    else:
        assert names == {"_flat_param": (12,), "0._flat_param": (36,)}  # 35 and one of padding
        assert [p.module_type for p in store.parameters] == ["Sequential", "Linear"]
    for point in ("reduced", "clipped"):
        exact, whole = expected(0, point, 2, 0.05), {}
        for worker in range(2):
            held = torch.load(f"{path}.{worker}")[point]
            rows, facts, stream = rows_of(path, worker, point)
            assert torch.equal(rows, torch.stack(held))
            assert facts["micro_step"].tolist() == [MICRO - 1] * STEPS
            assert (facts["clip_coefficient"] < 1).all()
            for p in stream.parameters:
                shape = p.global_shape or p.shape
                into = whole.setdefault(p.name, torch.zeros(STEPS, int(np.prod(shape))))
                begin = p.shard_offset[0] if p.shard_offset else 0
                into[:, begin : begin + p.numel] = rows[:, p.offset : p.offset + p.numel]
        if name == "fsdp1_flat":
            got = torch.cat([whole["0._flat_param"][:, :35], whole["_flat_param"][:, :12]], dim=1)
        else:
            got = torch.cat([whole[p] for p in names], dim=1)
        assert torch.allclose(got, exact, atol=1e-6)


@pytest.mark.parametrize("before", [1, 3])
def test_a_sharded_run_is_not_resumed_by_other_numbers_of_workers(path, before):
    first = succeed("resumed_elsewhere", path, before)
    assert [out for out, _ in first] == ["recorded\n"] * before
    for out, _ in succeed("resumed_elsewhere", path, 2):
        assert out.startswith(("ValueError cannot resume", "RuntimeError cannot record")), out


def test_a_parameter_that_one_worker_does_not_use(path):
    succeed("ddp_unused", path)
    own = []
    for rank in range(2):
        model = Branch(rank)
        model(batch(rank, 0, 0)).square().mean().backward()
        own.append({n: p.grad for n, p in model.named_parameters()})
        _, _, stream = rows_of(path, rank, "local")
        assert stream.present[0].tolist() == [True, True, rank == 0, rank == 0]
        for name, grad in own[rank].items():
            if grad is not None:
                assert torch.equal(stream.read(0, name), grad)
    stream = GradientStore.open(path).stream(0)
    for name, grad in own[0].items():
        other = own[1][name] if own[1][name] is not None else torch.zeros_like(grad)
        assert torch.allclose(stream.read(1, name), (grad + other) / 2, atol=1e-7)


def test_a_worker_dies_and_the_others_go_on(path):
    ends = run("one_dies", path, 3)
    assert [code for code, _, _ in ends] == [0, 0, 9], ends
    lengths = [len(GradientStore.open(path).stream(worker)) for worker in range(3)]
    assert lengths[:2] == [2 * STEPS, 2 * STEPS]
    assert lengths[2] <= 2
    for worker in range(3):
        stream, exact = GradientStore.open(path).stream(worker), together_then_alone(worker, 3)
        assert stream.steps.tolist() == list(range(len(stream)))
        for row in range(len(stream)):
            assert torch.allclose(stream.read(row), exact[row], atol=1e-7)


def together_then_alone(rank, world):
    """The gradients of a worker that trains with others for two steps, by itself afterwards."""
    model = net()
    parameters, rows = list(model.parameters()), []
    for step in range(2 * STEPS):
        grads = []
        for worker in range(world):
            loss = model(batch(worker, step, 0)).square().mean()
            grads.append(torch.autograd.grad(loss, parameters))
        rows.append(torch.cat([grad.reshape(-1) for grad in grads[rank]]))
        means = [sum(each) / world for each in zip(*grads, strict=True)]
        with torch.no_grad():
            for parameter, grad in zip(
                parameters, means if step < 2 else grads[rank], strict=True
            ):
                parameter -= 0.1 * grad
    return rows


def test_what_rank_0_cannot_do_is_said_on_every_rank(path):
    path.mkdir()
    (path / "mine").touch()
    (out0, _), (out1, _) = succeed("rank_0_fails", path)
    assert out0.startswith("FileExistsError cannot create")
    assert out1.startswith("RuntimeError cannot record: on rank 0, FileExistsError: cannot create")
