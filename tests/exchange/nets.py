"""Small models, their gradients and how the workers of the tests train them."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradstats.compressors import Rng, compressor
from gradstats.ddp_hooks import CompressorState, compress_hook
from gradstats.exchange import fused, simulate

MIN_NUMEL = 100


STEPS = 6


def net(branch=False):
    generator = torch.Generator().manual_seed(3)
    model = (
        Branching()
        if branch
        else nn.Sequential(
            nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 4)
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return model


class Branching(nn.Module):
    """The side is used by worker 0 in even steps only."""

    def __init__(self):
        super().__init__()
        self.main, self.side, self.head = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 4)

    def forward(self, x, side=False):
        hidden = self.main(x)
        return self.head(torch.tanh(hidden + self.side(x) if side else hidden))


def batch(worker, step, micro=0):
    seed = 10_000 + 1000 * worker + 10 * step + micro
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 20, generator=generator), torch.randn(16, 4, generator=generator)


def loss_of(model, worker, step, micro=0, **options):
    x, y = batch(worker, step, micro)
    return (model(x, **options) - y).square().mean()


def weights(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def wrapped(spec, model=None, by="parameter", ddp=None, **settings):
    """A model in DistributedDataParallel with the hook, its optimizer and the hook's state."""
    model = DistributedDataParallel(model or net(), **(ddp or {}))
    state = CompressorState(None, spec, by=by, min_numel=MIN_NUMEL, **settings)
    model.register_comm_hook(state, compress_hook)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), state


def train(model, optimizer, worker, steps, micros=1, **options):
    """The mean loss of each step."""
    losses = []
    for step in steps:
        optimizer.zero_grad()
        total = 0.0
        for micro in range(micros):
            quiet = micro < micros - 1
            with model.no_sync() if quiet else nullcontext():
                loss = loss_of(model, worker, step, micro, **options) / micros
                loss.backward()
            total += float(loss.detach())
        optimizer.step()
        losses.append(total)
    return losses


def side_is_used(worker, step):
    return worker == 0 and step % 2 == 0


def gradient_of(parameter):
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


def simulated(spec, workers, steps, by="parameter", branch=False):
    """The weights of the same training without processes."""
    member, model = compressor(spec), net(branch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    parameters = list(model.parameters())
    order = list(range(len(parameters)))[::-1]  # numbered from the last
    states = [{} for _ in range(workers)]
    for step in steps:
        exchanges, groups, used = [], [], set()
        for worker in range(workers):
            optimizer.zero_grad()
            options = {"side": side_is_used(worker, step)} if branch else {}
            loss_of(model, worker, step, **options).backward()
            used |= {place for place in order if parameters[place].grad is not None}
            grads = [gradient_of(parameters[place]) for place in order]
            big = [i for i, g in enumerate(grads) if g.dim() > 1 and g.numel() >= MIN_NUMEL]
            groups = [[i] for i in big] if by == "parameter" else [big]
            several = []
            for group in groups:
                grad = grads[group[0]]
                if by == "bucket":
                    grad = torch.cat([grads[i].reshape(-1) for i in group])
                name = ",".join(map(str, group))
                memory = states[worker][name] if name in states[worker] else member.init(grad)
                several.append(member.exchange(grad, memory, Rng(0, step, name, worker, workers)))
            small = [i for i in range(len(grads)) if i not in big]
            for i in small:
                memory = states[worker][str(i)] if states[worker] else member.init(grads[i])
                several.append(member.dense(grads[i], memory))
            groups += [[i] for i in small]
            exchanges.append(fused(several))
        results = simulate(exchanges)
        for worker, found in enumerate(results):
            names = [",".join(map(str, group)) for group in groups]
            states[worker] = {n: step.state for n, step in zip(names, found, strict=True)}
        for group, found in zip(groups, results[0], strict=True):
            shapes = [parameters[order[i]] for i in group]
            pieces = found.update.reshape(-1).split([p.numel() for p in shapes])
            for parameter, piece in zip(shapes, pieces, strict=True):
                parameter.grad = piece.view(parameter.shape).clone()
        for place in set(order) - used:  # of such DistributedDataParallel drops the update
            parameters[place].grad = None
        optimizer.step()
    return weights(model)


class Bucket:
    """As DistributedDataParallel's, but of any layout."""

    def __init__(self, *shapes, dtype=torch.float32, last=True):
        self._last, self.place = last, 0
        self._parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
        numels = [p.numel() for p in self._parameters]
        self._buffer = torch.ones(sum(numels), dtype=dtype)
        pieces = self._buffer.split(numels)
        self._views = [v.view(p.shape) for v, p in zip(pieces, self._parameters, strict=True)]

    def parameters(self):
        return self._parameters

    def gradients(self):
        return self._views

    def buffer(self):
        return self._buffer

    def index(self):
        return self.place

    def is_last(self):
        return self._last


def outcome(call):
    """What a call raises, or "nothing"."""
    try:
        call()
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"
