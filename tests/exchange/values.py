"""Trainings with values out of the ordinary: near the range, broken, momenta on dense paths."""

from dataclasses import replace

import torch
from torch.nn.parallel import DistributedDataParallel

from gradstats.compressors import AllReduce, Compressor, Contract, Rng, Step, compressor
from gradstats.ddp_hooks import CompressorState, compress_hook
from gradstats.exchange import drive
from gradstats.exchange.collectives import Group
from gradstats.payloads.base import Dense
from tests.exchange.nets import MIN_NUMEL, STEPS, Bucket, net, train, weights

HALVES = ("none", "randomk(0.5)", "intsgd", "clt-k(0.5)")


def half_near_the_range(worker, workers):
    """Buckets in 16 bits whose sum leaves the range, and whose mean does not."""
    found = {}
    for spec in (*HALVES, "fp16", "ef(fp16)", "ef(topk(0.5))"):
        for dtype, value in ((torch.float16, 40_000.0), (torch.bfloat16, 2.0**127)):
            if "fp16" in spec and dtype == torch.bfloat16:
                continue  # float16 has no such number
            state = CompressorState(None, spec, min_numel=8)
            bucket = Bucket((8, 8), (5,), dtype=dtype)
            bucket.buffer().fill_(value)
            state.reduce(bucket)
            found[spec, dtype] = (bucket.buffer().clone(), state.nonfinite)
    return found


def half_broken(worker, workers):
    """A NaN in a bucket of large numbers: the rest is averaged as DistributedDataParallel does."""
    found = {}
    for spec in ("ef(topk(0.5))", "ef(twoshot(mxfp8))", "twoshot(none)", "ring(sign)"):
        state = CompressorState(None, spec, min_numel=8)
        bucket = Bucket((8, 8), dtype=torch.float16)
        bucket.buffer().fill_(40_000.0)
        if worker == 0:
            bucket.buffer()[3] = torch.nan
        state.reduce(bucket)
        found[spec] = bucket.buffer().clone(), state.nonfinite
    return found


EXTREMES = (1e-23, 1e-37, 5e17, 1e38)


def moderate(worker):
    """A gradient without outliers."""
    grad = torch.randn(1605, generator=torch.Generator().manual_seed(worker))
    return grad.clamp(-3, 3)


def extreme_values(worker, workers):
    """Gradients whose squares or reciprocals are out of range, in buckets of ordinary dtype."""
    found = {}
    for spec in ("eden(bits=4)", "fp8", "qsgd(bits=8)", "nuqsgd", "svd(rank=8)", "thc(bits=8)"):
        if spec.startswith("thc"):
            spec = "thc(bits=8, grid=255)"
        for scale in (1.0, *EXTREMES):
            state = CompressorState(None, spec, min_numel=8)
            bucket = Bucket((40, 40), (5,))
            bucket.buffer().copy_(moderate(worker) * scale)
            state.reduce(bucket)
            found[spec, scale] = (bucket.buffer().double() / scale, state.nonfinite)
    return found


def outside_the_hook(worker, workers):
    """Exchanges over a group: a NaN on one worker, maxima of levels, what is done in place."""
    rng, member = Rng(worker=worker, workers=workers), compressor("intsgd")
    grad = torch.randn(300, generator=torch.Generator().manual_seed(worker))
    state, updates = member.init(grad), []
    for step in range(4):
        given = grad.clone()
        if step == 2 and worker == workers - 1:
            given[3] = torch.nan
        result = drive(member.exchange(given, state, replace(rng, step=step)), Group())
        state = result.state
        updates.append(result.update)
    levels = torch.tensor([5, 1, 9]) if worker else torch.tensor([1, 9, 3])
    largest = Group().perform(AllReduce(levels, "max", levels=10))
    spoilt = drive(Spoiling().exchange(grad, None, rng), Group()).update
    return updates, float(state), largest, spoilt


class Spoiling(Compressor):
    """Works in place on what it gets."""

    name = "spoiling"
    contract = Contract("all_reduce")

    def encode(self, grad, state, rng=None):
        return Dense(grad.reshape(-1).clone()), state

    def exchange(self, grad, state, rng=None):
        mean = yield AllReduce(grad, "mean")
        return Step(mean.mul_(2).add_(1), Dense(grad.reshape(-1).clone()), state)


def first_gradients_of_zeros(worker, workers):
    """What a threshold sends that was first seen with zeros, as LoRA's A has them."""
    counts = []
    for spec in ("threshold(0.1)", "ef(threshold(0.1))"):
        state, bucket = CompressorState(None, spec, min_numel=8), Bucket((40, 40))
        for step in range(3):
            grad = torch.randn(1600, generator=torch.Generator().manual_seed(step))
            bucket.buffer().copy_(grad if step else 0 * grad)
            state.reduce(bucket)
            counts.append(state.khat_over_k)
    return counts


class Exploding(Compressor):
    """What comes out is infinite in step 1, though nothing infinite went in."""

    name = "exploding"
    contract = Contract("all_reduce", has_memory=True)

    @property
    def spec(self):
        return self.name

    def init(self, grad):
        return torch.zeros(())

    def encode(self, grad, state, rng=None):
        return Dense(grad.reshape(-1).clone()), state + 1

    def exchange(self, grad, state, rng=None):
        mean = yield AllReduce(grad.reshape(-1), "mean")
        update = mean / (0.0 if rng.step == 1 else 1.0)
        return Step(update.view(grad.shape), Dense(grad.reshape(-1).clone()), state + 1)


def broken_on_the_way_out(worker, workers):
    """A compressor that gives inf: the bucket is averaged, counted, the memory stays."""
    state = CompressorState(None, Exploding(), min_numel=8)
    found, bucket = [], Bucket((8, 8), (5,))
    for _ in range(3):
        bucket.buffer().fill_(worker + 1.0)
        state.reduce(bucket)
        found.append((bucket.buffer().clone(), state.nonfinite))
    return found, [float(m["state"]) for m in state.state_dict()["memories"].values()]


MOMENTA = ["velocity(none)", "velocity(topk(1.0))", "velocity(none, nesterov=True)"]


def momentum_on_dense_paths(worker, workers):
    """The momentum of a memory, in every way in which a gradient may go dense."""
    found = {}
    ways = {
        "compressed": {},
        "small": {"min_numel": 10**6},
        "before the start": {"start_step": STEPS},
        "across the start": {"start_step": STEPS // 2},
    }
    for spec in MOMENTA:
        for way, settings in ways.items():
            for by in ("bucket", "parameter"):
                model = DistributedDataParallel(net())
                state = CompressorState(None, spec, by, **{"min_numel": MIN_NUMEL, **settings})
                model.register_comm_hook(state, compress_hook)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                train(model, optimizer, worker, range(STEPS))
                found[spec, way, by] = weights(model)
    return found


def plain_momentum(worker, workers):
    """The same trainings without a hook, the momentum in the optimizer."""
    found = {}
    for nesterov in (False, True):
        model = DistributedDataParallel(net())
        settings = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov}
        optimizer = torch.optim.SGD(model.parameters(), **settings)
        train(model, optimizer, worker, range(STEPS))
        found[nesterov] = weights(model)
    return found


def momentum_in_a_broken_bucket(worker, workers):
    """What the optimizer gets where a worker has a NaN; the memory before and after."""
    state = CompressorState(None, "velocity(topk(0.5))", min_numel=8)
    updates, bucket = [], Bucket((8, 8), (5,))
    for step in range(3):
        bucket.buffer().fill_(1.0)
        if step == 1 and worker == 0:
            bucket.buffer()[0] = torch.nan
        before = state.state_dict()["memories"]
        state.reduce(bucket)
        updates.append((bucket.buffer().clone(), before, state.state_dict()["memories"]))
    return updates
