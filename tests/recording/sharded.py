"""Trainings under `fully_shard` for test_reduce_scatter.py: each function is one worker's."""

import contextlib
import os
import signal
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from gradstats.recording import capture, every
from tests.recording.workers import batch

STEPS, MICRO = 3, 2
PRECISIONS = {
    "float32": MixedPrecisionPolicy(),
    "bfloat16": MixedPrecisionPolicy(param_dtype=torch.bfloat16),
    "float16": MixedPrecisionPolicy(param_dtype=torch.float16),
    "mixed": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
}


class Net(nn.Module):
    """5 and 3 rows over 2 to 4 workers: padded shards; the middle is used at some steps only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = nn.Linear(6, 5), nn.Linear(5, 5)
        self.last, self.scale = nn.Linear(5, 3), nn.Parameter(torch.ones(4))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x, middle=True):
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.middle(x)) if middle else x
        return self.last(x) * self.frozen * self.scale.sum()


def net(dtype=torch.float32):
    return Net().to(dtype)


def shard(model, **settings):
    fully_shard(model.first, **settings)
    fully_shard(model, **settings)  # the middle and the last layer in one group


def loss_of(model, rank, step, micro, middle=True):
    return (
        model(batch(rank, step, micro).to(next(model.parameters()).dtype), middle).square().mean()
    )


def compute_dtype(mp):
    return mp.param_dtype or torch.float32


def own(weights, rank, step, mp, micros=MICRO, middle=True, scale=1.0):
    """The gradient of a worker at these weights, by autograd alone, added up in float32."""
    model = Net()
    model.load_state_dict(weights)
    model = model.to(compute_dtype(mp))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {}
    for micro in range(micros):
        x = batch(rank, step, micro).to(compute_dtype(mp))
        loss = model(x, middle).square().mean() * scale
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, grad in zip(named, grads, strict=True):
            if grad is not None:
                grad = grad.to(mp.reduce_dtype or grad.dtype).float()
                total[name] = total[name] + grad if name in total else grad
    return total


def whole(model):
    """The weights of all workers put together."""
    state = model.state_dict()
    return {name: each.full_tensor().clone() for name, each in state.items()}


def train(model, rank, handle, mp=PRECISIONS["float32"], *, sync=True, middles=(), leave=None):
    """Train; the local gradient of each step as autograd finds it."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    cap, found = handle(optimizer), []
    for step in range(STEPS):
        middle = step not in middles
        found.append(own(whole(model), rank, step, mp, middle=middle))
        if leave is not None and step:  # a batch whose step does not take place
            loss_of(model, rank, step, 7).backward()
            optimizer.zero_grad(set_to_none=leave == "none")
        for micro in range(MICRO):
            model.set_requires_gradient_sync(sync or micro == MICRO - 1)
            loss_of(model, rank, step, micro, middle).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
    with contextlib.suppress(AttributeError):
        cap.close()
    return found, whole(model)


def recording(path, model, **settings):
    how = {"full": every(1), "track": 20, "at": "local", "quiet": True, **settings}
    return lambda optimizer: capture(model, optimizer, path, **how)


def both(path, rank, make, **how):
    """With and without a recording: equal weights, to the bit; the exact gradients on disk."""
    ends = []
    for recorded in (True, False):
        model = make()
        handle = recording(path, model) if recorded else (lambda _: None)
        found, weights = train(model, rank, handle, **how)
        ends.append(weights)
        if recorded:
            torch.save(found, f"{path}.{rank}")
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def made(**settings):
    def make():
        model = net()
        shard(model, **settings)
        return model

    return make


def precision(rank, world, path, name):
    mp = PRECISIONS[name]
    both(path, rank, made(mp_policy=mp), mp=mp)


def no_sync(rank, world, path):
    both(path, rank, made(), sync=False)


def unused(rank, world, path):
    both(path, rank, made(), middles=(1,))


def unused_reduced(rank, world, path):
    """Zeros are reduced for what is not used."""

    def make():
        model = made()()
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_reduce_scatter_unused_params(True)
        return model

    both(path, rank, make, middles=(1,))


def left_out(rank, world, path, how):
    both(path, rank, made(), leave=how)


def columns(rank, world, path):
    """Sharded along another dimension where it divides evenly."""

    def placed(parameter):
        from torch.distributed.tensor import Shard

        even = parameter.ndim == 2 and parameter.shape[1] % world == 0
        return Shard(1) if even else Shard(0)

    both(path, rank, made(shard_placement_fn=placed))


def hybrid(rank, world, path):
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    both(path, rank, made(mesh=mesh))


def together(rank, world, path):
    """One group of two modules."""

    def make():
        model = net()
        fully_shard([model.first, model.middle])
        fully_shard(model)
        return model

    both(path, rank, make)


def listed(rank, world, path):
    """Two optimizers, stepped in turn; every second step has a row."""
    model = made()()
    halves = [list(model.first.parameters()), [*model.middle.parameters(), model.scale]]
    optimizers = [torch.optim.SGD(half, lr=0.1) for half in halves]
    settings = {"full": every(2), "at": "local", "quiet": True, "track": None}
    found = []
    with capture(model, optimizers, path, **settings):
        for step in range(5):
            found.append(own(whole(model), rank, step, PRECISIONS["float32"], micros=1))
            loss_of(model, rank, step, 0).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            model.zero_grad()
    torch.save(found, f"{path}.{rank}")


def killed(rank, world, path, victim, at):
    """One worker is killed between two backward passes; the other gets an error from gloo."""
    model = made()()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    settings = {"full": every(1), "at": "local", "quiet": True, "track": 20}
    found = []
    with capture(model, optimizer, path, if_exists="resume", **settings):
        for step in range(6):
            found.append(own(whole(model), rank, step, PRECISIONS["float32"]))
            torch.save(found, f"{path}.{rank}")
            for micro in range(MICRO):
                if (rank, step, micro) == (victim, at, 1):
                    os.kill(os.getpid(), signal.SIGKILL)
                loss_of(model, rank, step, micro).backward()
            optimizer.step()
            optimizer.zero_grad()


def divisor(rank, world, path):
    """A divisor of the user's own, in float16: a part of it is applied before the reduction."""

    def make():
        model = made(mp_policy=PRECISIONS["float16"])()
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(32.0)
        return model

    both(path, rank, make, mp=PRECISIONS["float16"])


def shards_of_rounds(rank, world, path):
    """Pseudo-gradients of sharded parameters."""
    model = made()()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    inner, outer = (torch.optim.SGD(trained, lr=lr) for lr in (0.1, 0.7))
    with capture(model, outer, path, full=every(1), at="outer", track=20, quiet=True) as cap:
        for step in range(2):
            inner.zero_grad()
            loss_of(model, rank, step, 0).backward()
            inner.step()
        pseudo = {name: start[name] - p.detach() for name, p in model.named_parameters()}
        cap.record(pseudo, inner_steps=2)
    torch.save({name: each.to_local() for name, each in pseudo.items()}, f"{path}.{rank}")
    assert cap.stats.dropped == 0


def kept(rank, world, path):
    """Parameters stay unsharded between the forward and the backward pass."""
    both(path, rank, made(reshard_after_forward=False))


def checkpointed(rank, world, path):
    def make():
        model = net()
        model.middle = CheckpointWrapper(model.middle)
        shard(model)
        return model

    both(path, rank, make)


def compiled(rank, world, path):
    def make():
        model = net()
        model.first.compile(backend="aot_eager")
        shard(model)
        return model

    both(path, rank, make)


def scaled(rank, world, path):
    """Under a GradScaler; float16 as well."""
    model = made(mp_policy=PRECISIONS["float16"])()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    scaler = ShardedGradScaler("cpu", init_scale=256.0)
    cap, found = recording(path, model)(optimizer), []
    for step in range(STEPS):
        found.append(own(whole(model), rank, step, PRECISIONS["float16"], scale=256.0))
        for micro in range(MICRO):
            scaler.scale(loss_of(model, rank, step, micro)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    cap.close()
    torch.save(found, f"{path}.{rank}")


class Counting(DefaultReduceScatter):
    """A user's own communication."""

    calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return super().__call__(*args, **kwargs)


def users_own(rank, world, path):
    model, comm = made()(), Counting()
    model.set_custom_reduce_scatter(comm)
    group = model._get_fsdp_state()._fsdp_param_groups[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    one = capture(model, optimizer, path, full=every(1), at="local", quiet=True)
    two = capture(model, optimizer, path + "2", full=every(1), at="local", quiet=True)
    assert isinstance(group._reduce_scatter_comm, Counting)
    loss_of(model, rank, 0, 0).backward()
    assert comm.calls == 1
    optimizer.step()
    one.close()
    assert group._reduce_scatter_comm is not comm
    loss_of(model, rank, 1, 0).backward()
    optimizer.step()
    two.close()
    assert group._reduce_scatter_comm is comm
    assert comm.calls == 2
    first = model.first._get_fsdp_state()._fsdp_param_groups[0]
    assert type(first._reduce_scatter_comm) is DefaultReduceScatter
    sys.stdout.write(f"{one.stats.full_rows} {two.stats.full_rows}\n")


def replaced(rank, world, path):
    """Settings of torch that replace the communication still work, and rows stop by name."""
    model = made()()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, full=every(1), at="local", quiet=True):
        model.set_custom_reduce_scatter(DefaultReduceScatter())
        loss_of(model, rank, 0, 0).backward()
        optimizer.step()


def refusals(rank, world, path):
    model = made()()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for settings in ({"at": ["local", "reduced"]}, {"at": "local", "weights": True}):
        with contextlib.suppress(FileExistsError):
            _refused(model, optimizer, path, **settings)
    alone = net()
    mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("replicate", "shard"))
    shard(alone, mesh=mesh)
    _refused(alone, torch.optim.SGD(alone.parameters()), path, at="local")
    group = model._get_fsdp_state()
    group._fsdp_param_groups = group._fsdp_param_groups * 2
    _refused(model, optimizer, path, at="local")
    method = FSDPModule.set_custom_reduce_scatter
    del FSDPModule.set_custom_reduce_scatter
    _refused(model, optimizer, path, at="local")
    FSDPModule.set_custom_reduce_scatter = method


def _refused(model, optimizer, path, **settings):
    try:
        capture(model, optimizer, path, **settings)
    except ValueError as error:
        sys.stdout.write(f"{error}\n")


def alone(rank, world, path):
    both(path, rank, made())


def work(rank, world, meeting, name, path, *args):
    """Run one of the functions above on one worker."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    globals()[name](rank, world, path, *args)
    dist.barrier()
    dist.destroy_process_group()
