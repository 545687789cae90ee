"""Trainings to be killed: every gradient of theirs follows from (launch, worker, step)."""

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradstats.recording import capture, every
from tests.waiting import PATIENCE

STEPS, MICRO, STRIDE, TRACK, RATE, LIMIT = 16, 2, 2, 50, 0.1, 3.0


@dataclass(frozen=True)
class Launch:
    """One start of a training.

    Attributes:
        seed: of its gradients; no two launches share one.
        points: at which it records.
        summary: it records Summaries too.
        world: its workers.
        odd: before each step a batch with NaN is left out, and every micro-batch is clipped, to a
            norm that changes nothing.
    """

    seed: int
    points: tuple[str, ...] = ("reduced",)
    summary: bool = True
    world: int = 1
    odd: bool = False

    @property
    def kinds(self):
        return ("full", "track", "summary") if self.summary else ("full", "track")

    def seen_by(self, rank):
        """The points at which a worker records, in the order of a step."""
        every = ("local", "reduced", "clipped", "outer")
        return [p for p in every if p in self.points and (not rank or p in ("local", "outer"))]


class Net(nn.Module):
    """Two dtypes, and a parameter with sparse gradients where there is one worker."""

    def __init__(self, sparse):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(40, 30)), nn.Parameter(torch.ones(30))
        self.brief = nn.Parameter(torch.ones(50, dtype=torch.bfloat16))
        self.words = nn.Embedding(20, 4, sparse=True) if sparse else None

    def forward(self, factors):
        """A loss whose gradients are `factors`."""
        loss = sum((p * factors[name]).sum() for name, p in self.named_parameters(recurse=False))
        if self.words is not None:
            loss = loss + (self.words(factors["places"]) * factors["words"]).sum()
        return loss


def factors(launch, rank, step, micro):
    rng = torch.Generator().manual_seed(1_000_000 * launch.seed + 1000 * step + 10 * rank + micro)
    return {
        "weight": torch.randn(40, 30, generator=rng),
        "bias": torch.randn(30, generator=rng),
        "brief": torch.randn(50, generator=rng).bfloat16(),
        "places": torch.randperm(20, generator=rng)[:5],
        "words": torch.randn(5, 4, generator=rng),
    }


def gradients(launch, rank, step):
    """By point and name, the dense gradients of a step, without gradstats and without autograd."""
    workers = [_accumulated(launch, worker, step) for worker in range(launch.world)]
    reduced = {name: sum(own[name] for own in workers) / len(workers) for name in workers[0]}
    clipped = {name: nn.Parameter(torch.zeros_like(grad)) for name, grad in reduced.items()}
    for name, parameter in clipped.items():
        parameter.grad = reduced[name].clone()
    nn.utils.clip_grad_norm_([clipped["weight"], clipped["bias"]], LIMIT)
    return {
        "local": workers[rank],
        "reduced": reduced,
        "clipped": {name: parameter.grad for name, parameter in clipped.items()},
        "outer": {name: 2 * grad for name, grad in workers[rank].items()},
    }


def _accumulated(launch, rank, step):
    total = {}
    for micro in range(MICRO):
        new = factors(launch, rank, step, micro)
        places, values = new.pop("places"), new.pop("words")
        if launch.world == 1:
            new["words.weight"] = torch.zeros(20, 4).index_add(0, places, values)
        total = {name: total[name] + grad if total else grad for name, grad in new.items()}
    return total


def train(path, launch, rank, meeting, said):
    """Train, and say after each step how many rows are stored: `said` is one end of a pipe."""
    torch.set_num_threads(1)
    model = Net(sparse=launch.world == 1)
    if launch.world > 1:
        where = {"init_method": f"file://{meeting}", "rank": rank, "world_size": launch.world}
        dist.init_process_group("gloo", **where)
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    said.send("ready")
    settings = {"full": every(STRIDE), "track": TRACK, "summary": launch.summary}
    settings |= {"at": launch.points, "if_exists": "resume", "quiet": True}
    with capture(model, optimizer, path, **settings) as cap:
        for _ in range(STEPS):
            one_step(cap, model, optimizer, launch, rank)
            said.send(_stored(cap.stats))
    said.send(_stored(cap.stats))
    said.send("closed")


def _stored(stats):
    return stats.full_rows, stats.tracked_rows, stats.summary_rows


def one_step(cap, model, optimizer, launch, rank=0):
    step = cap.step
    if launch.odd:
        optimizer.zero_grad()
        (torch.nan * model(factors(launch, rank, step, 0))).backward()
        nn.utils.clip_grad_norm_([model.weight, model.bias], LIMIT)
    optimizer.zero_grad()
    for micro in range(MICRO):
        together = launch.world == 1 or micro == MICRO - 1
        with nullcontext() if together else model.no_sync():
            model(factors(launch, rank, step, micro)).backward()
        if launch.odd and micro < MICRO - 1:
            nn.utils.clip_grad_norm_([model.weight, model.bias], 1e9)
    if "clipped" in launch.points:
        inner = getattr(model, "module", model)
        nn.utils.clip_grad_norm_([inner.weight, inner.bias], LIMIT)
    if "outer" in launch.points:
        named = model.named_parameters()
        cap.record({name: 2 * p.grad for name, p in named}, inner_steps=MICRO)
    optimizer.step()
    cap.log(loss=step / 8)


def leave_a_child(path, said):
    """A training with a forked child, as a DataLoader makes them, that goes on for a while."""
    model = nn.Linear(3, 2)
    capture(model, torch.optim.SGD(model.parameters(), lr=RATE), path, quiet=True)
    if os.fork() == 0:
        said.send(os.getpid())
    time.sleep(PATIENCE)
    os._exit(0)


def intrude(path, rank, meeting, if_exists, said):
    """A run of two workers that records to a path; says what it was told."""
    where = {"init_method": f"file://{meeting}", "rank": rank, "world_size": 2}
    dist.init_process_group("gloo", **where)
    model = DistributedDataParallel(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    try:
        capture(model, optimizer, path, if_exists=if_exists, quiet=True).close()
    except (BlockingIOError, RuntimeError) as error:
        said.send(f"{type(error).__name__}: {error}")
