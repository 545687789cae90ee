"""What the processes of test_workers.py run: each function is one training on one worker."""

import os
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradstats.recording import capture, every

STEPS, MICRO = 4, 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def batch(rank, step, micro):
    seed = 100 * rank + 10 * step + micro
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def expected(rank, point, world, limit=None, micros=MICRO):
    """The rows of a worker, by a training without processes."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = []
    for step in range(STEPS):
        grads = []
        for worker in range(world):
            optimizer.zero_grad()
            for micro in range(micros):
                model(batch(worker, step, micro)).square().mean().backward()
            grads.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
        mean = sum(grads) / world
        start = 0
        for p in model.parameters():
            p.grad = mean[start : start + p.numel()].reshape(p.shape).clone()
            start += p.numel()
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit) if limit else None
        clipped = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        rows.append({"local": grads[rank], "reduced": mean, "clipped": clipped}[point])
        optimizer.step()
        del norm
    return torch.stack(rows)


def train(model, path, *, rank, micros=MICRO, limit=0.05, fully=False, clip=None, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, full=every(1), track=20, **settings) as cap:
        for step in range(STEPS):
            optimizer.zero_grad()
            for micro in range(micros):
                quiet = micro < micros - 1
                if fully:
                    model.set_requires_gradient_sync(fully == "each" or not quiet)
                with model.no_sync() if quiet and not fully else nullcontext():
                    model(batch(rank, step, micro)).square().mean().backward()
            if clip is not None:
                clip(limit)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
            cap.log(loss=rank)
    return cap


def ddp(rank, world, path, **settings):
    cap = train(DistributedDataParallel(net()), path, rank=rank, **settings)
    print(type(cap).__name__, cap.stats.full_rows, cap.stats.dropped)


def ddp_points(rank, world, path):
    ddp(rank, world, path, at=["local", "reduced", "clipped"])


def ddp_reduced(rank, world, path):
    ddp(rank, world, path, at="reduced")


def ddp_bucket_view(rank, world, path):
    model = DistributedDataParallel(net(), gradient_as_bucket_view=True)
    train(model, path, rank=rank, at=["local", "reduced"])


def ddp_static_graph(rank, world, path):
    model = DistributedDataParallel(net(), static_graph=True)
    train(model, path, rank=rank, at=["local", "reduced"], micros=1)


class Branch(nn.Module):
    """The second layer is used on rank 0 alone."""

    def __init__(self, rank):
        super().__init__()
        torch.manual_seed(0)
        self.rank, self.trunk, self.twig = rank, nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        return self.trunk(x) + (self.twig(x) if self.rank == 0 else 0)


def ddp_unused(rank, world, path):
    model = DistributedDataParallel(Branch(rank), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"full": every(1), "track": None, "at": ["local", "reduced"]}
    with capture(model, optimizer, path, **settings):
        model(batch(rank, 0, 0)).square().mean().backward()
        optimizer.step()


def stage_net(stage, wide):
    """A pipeline's stage, whose parameters go by the whole model's names."""
    torch.manual_seed(stage)
    layers = [nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6 + 3 * (stage and wide))]
    return nn.ModuleDict({str(4 * stage + i): layer for i, layer in enumerate(layers)})


def stage_gradient(stage, rank, step, wide):
    """What a worker's rows hold: of its stage, by itself."""
    model = stage_net(stage, wide)
    for parameter in model.parameters():
        parameter.data += 0.01 * step
    stage_loss(model, rank, step).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def stage_loss(model, rank, step):
    x = batch(rank, step, 0)
    for layer in model.values() if isinstance(model, nn.ModuleDict) else model.children():
        x = layer(x)
    return x.square().mean()


class Stage(nn.Module):
    """DDP calls a module; this one makes its loss."""

    def __init__(self, layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, rank, step):
        return stage_loss(self, rank, step)


def stages(rank, world, path, *, wrap=True, wide=False, **settings):
    """Half of the processes train one half of a model, the others the other half."""
    stage, per = rank * 2 // world, world // 2
    groups = [dist.new_group(list(range(i * per, (i + 1) * per))) for i in range(2)]
    module = Stage(stage_net(stage, wide))
    model = DistributedDataParallel(module, process_group=groups[stage]) if wrap else module
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with capture(model, optimizer, path, full=every(1), track=20, **settings) as cap:
        for step in range(STEPS):
            optimizer.zero_grad()
            model(rank, step).backward()
            optimizer.step()
            for parameter in model.parameters():
                parameter.data += 0.01
        dist.barrier()
    print(type(cap).__name__, cap.stats.full_rows, cap.stats.dropped)


def stages_wide(rank, world, path):
    stages(rank, world, path, wide=True)


def stages_reduced(rank, world, path):
    stages(rank, world, path, at="reduced")


def stages_local(rank, world, path):
    stages(rank, world, path, at="local")


def stages_swapped(rank, world, path):
    stages(rank, world, path, wide=True, if_exists="resume")


def stages_alone(rank, world, path):
    stages(rank, world, path, wrap=False)


def comm_hook(rank, world, path):
    """With the recording's hook and without any: the same weights, to the bit."""
    ends = []
    for recorded in (True, False):
        model = DistributedDataParallel(net(), bucket_cap_mb=0.0001)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = {"full": every(1), "at": "local", "local_by": "comm_hook"}
        handle = capture(model, optimizer, path, **settings) if recorded else None
        for step in range(STEPS):
            optimizer.zero_grad()
            model(batch(rank, step, 0)).square().mean().backward()
            optimizer.step()
        if handle is not None:
            handle.close()
        ends.append(weights(model))
    assert torch.equal(*ends)
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    model = DistributedDataParallel(net())
    model.register_comm_hook(None, fp16_compress_hook)
    try:
        capture(model, torch.optim.SGD(model.parameters()), path + "2", **settings)
    except ValueError as error:
        print(error)


def comm_hook_listed(rank, world, path):
    """Two optimizers, and gradients by a communication hook; every second step has a row."""
    model = DistributedDataParallel(net())
    halves = [torch.optim.SGD(model.module[i].parameters(), lr=0.1) for i in (0, 2)]
    settings = {"full": every(2), "track": None, "at": "local", "local_by": "comm_hook"}
    with capture(model, halves, path, **settings):
        for step in range(STEPS):
            model.zero_grad()
            model(batch(rank, step, 0)).square().mean().backward()
            for optimizer in halves:
                optimizer.step()


def fsdp2(rank, world, path):
    model = net()
    fully_shard(model[0])
    fully_shard(model)
    train(model, path, rank=rank, at=["reduced", "clipped"], fully=True)


def fsdp1(rank, world, path, orig=True):
    model, settings = net(), {"use_orig_params": orig, "device_id": torch.device("cpu")}
    model[0] = FullyShardedDataParallel(model[0], **settings)
    model = FullyShardedDataParallel(model, **settings)
    try:
        capture(model, torch.optim.SGD(model.parameters()), path, at="local")
    except ValueError as error:
        print(error)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    at = ["reduced", "clipped"]
    seen = {point: [] for point in at}
    with capture(model, optimizer, path, full=every(1), track=20, at=at) as cap:
        for step in range(STEPS):
            optimizer.zero_grad()
            for micro in range(MICRO):
                with model.no_sync() if micro < MICRO - 1 else nullcontext():
                    model(batch(rank, step, micro)).square().mean().backward()
            seen["reduced"].append(shards(model))
            model.clip_grad_norm_(0.05)
            seen["clipped"].append(shards(model))
            optimizer.step()
    print(cap.stats.full_rows, cap.stats.dropped)
    torch.save(seen, f"{path}.{rank}")


def shards(model):
    """What the optimizer gets here: parameters without an element here have no gradient."""
    return torch.cat([p.grad.reshape(-1).clone() for p in model.parameters() if p.numel()])


def fsdp1_flat(rank, world, path):
    fsdp1(rank, world, path, orig=False)


def resumed_elsewhere(rank, world, path):
    """Two workers go on with the run of one, or of three: refused on all, at once."""
    model = net()
    fully_shard(model)
    try:
        train(model, path, rank=rank, at="reduced", fully=True, if_exists="resume")
    except (ValueError, RuntimeError) as error:
        print(type(error).__name__, error)
    else:
        print("recorded")


def one_dies(rank, world, path):
    """The last worker is killed after two steps; the others go on without a process group."""
    model = DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cap = capture(model, optimizer, path, full=every(1), at="local")
    for step in range(2 * STEPS):
        optimizer.zero_grad()
        sync = model.no_sync() if step >= 2 else nullcontext()
        with sync:
            model(batch(rank, step, 0)).square().mean().backward()
        if step == 2 and rank == world - 1:
            os._exit(9)
        optimizer.step()
    cap.close()
    os._exit(0)


def rank_0_fails(rank, world, path):
    model = DistributedDataParallel(net())
    try:
        capture(model, torch.optim.SGD(model.parameters()), path)
    except (FileExistsError, RuntimeError) as error:
        print(type(error).__name__, error)


def work(rank, world, meeting, name, path):
    """Run one of the functions above on one worker."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    globals()[name](rank, world, path)
    dist.barrier()
    dist.destroy_process_group()
