"""DiLoCo on several workers for test_pseudo.py, and the same in one process."""

import torch
import torch.distributed as dist
from torch import nn

from gradstats.recording import capture, every
from tests.recording.workers import batch, net

ROUNDS, INNER = 3, 4


def inner_steps(model, optimizer, rank, number):
    """Train by oneself for a round; the gradients of the last step stay."""
    for step in range(INNER):
        optimizer.zero_grad()
        model(batch(rank, INNER * number + step, 0)).square().mean().backward()
        optimizer.step()


def outer_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)


def give(model, start, pseudo):
    """Let the outer optimizer have the averaged pseudo-gradient at the round's start."""
    for name, p in model.named_parameters():
        p.data.copy_(start[name])
        p.grad = pseudo[name]


def differences(model, start):
    return {name: start[name] - p.detach() for name, p in model.named_parameters()}


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def flat(named):
    return torch.cat([each.reshape(-1) for each in named.values()])


def train(rank, world, path, at):
    """One worker of a process group."""
    model: nn.Module = net()
    inner, outer = torch.optim.AdamW(model.parameters(), lr=1e-2), outer_optimizer(model)
    start = snapshot(model)
    with capture(model, outer, path, full=every(1), track=20, at=at) as cap:
        for number in range(ROUNDS):
            inner_steps(model, inner, rank, number)
            pseudo = differences(model, start)
            cap.record(pseudo, inner_steps=INNER)
            for grad in pseudo.values():
                dist.all_reduce(grad)
                grad /= world
            give(model, start, pseudo)
            outer.step()
            start = snapshot(model)


def work(rank, world, meeting, path, at):
    """One worker."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    train(rank, world, path, at.split(","))
    dist.barrier()
    dist.destroy_process_group()


def expected(world):
    """Flat, of each worker: its pseudo-gradients and its last inner gradients; and the means."""
    models = [net() for _ in range(world)]
    inners = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in models]
    outers = [outer_optimizer(model) for model in models]
    own, last, means = [[] for _ in models], [[] for _ in models], []
    for number in range(ROUNDS):
        start, found = snapshot(models[0]), []
        for rank, (model, inner) in enumerate(zip(models, inners, strict=True)):
            inner_steps(model, inner, rank, number)
            found.append(differences(model, start))
            own[rank].append(flat(found[-1]))
            last[rank].append(flat({n: p.grad for n, p in model.named_parameters()}))
        mean = {name: sum(each[name] for each in found) / world for name in start}
        means.append(flat(mean))
        for model, outer in zip(models, outers, strict=True):
            give(model, start, {name: grad.clone() for name, grad in mean.items()})
            outer.step()
    return own, last, means
