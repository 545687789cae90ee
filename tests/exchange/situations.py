"""What the workers of test_situations.py run: trainings in which something is out of the way."""

import copy
import io
import os
import pickle
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from gradstats.compressors import AllReduce, Compressor, Contract, Memory, Rng, Step, compressor
from gradstats.ddp_hooks import CompressorState, compress_hook
from gradstats.exchange import drive
from gradstats.exchange.collectives import Group
from gradstats.payloads.base import Dense
from tests.exchange.trainings import (
    MIN_NUMEL,
    STEPS,
    Bucket,
    loss_of,
    net,
    train,
    weights,
    wrapped,
)


def everything(worker, workers):
    """All scenarios, by name."""
    torch.manual_seed(11)
    return {scenario.__name__: scenario(worker, workers) for scenario in SCENARIOS}


def told(call):
    """What a call raises, or "nothing"."""
    try:
        call()
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


# --- values ---

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
    state = CompressorState(None, "ef(topk(0.5))", min_numel=8)
    bucket = Bucket((8, 8), dtype=torch.float16)
    bucket.buffer().fill_(40_000.0)
    if worker == 0:
        bucket.buffer()[3] = torch.nan
    state.reduce(bucket)
    return bucket.buffer().clone(), state.nonfinite


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


# --- memories that are a part of the optimizer ---

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


# --- memories and parameters ---


class Layers(nn.Module):
    """Equal layers under names, registered in a given order; some frozen."""

    def __init__(self, order="abcd", frozen=""):
        super().__init__()
        for name in order:
            layer = nn.Linear(20, 20)
            with torch.no_grad():
                for parameter in layer.parameters():
                    seed = torch.Generator().manual_seed(ord(name))
                    parameter.copy_(torch.randn(parameter.shape, generator=seed) / 5)
            setattr(self, name, layer)
        for name in frozen:
            getattr(self, name).requires_grad_(False)

    def forward(self, x):
        for name in "abcd":
            x = torch.tanh(getattr(self, name)(x))
        return x[:, :4]


def layers(order="abcd", frozen="", named=True, spec="ef(topk(0.05))", **settings):
    model = DistributedDataParallel(Layers(order, frozen))
    names = model.named_parameters() if named else None
    state = CompressorState(None, spec, min_numel=MIN_NUMEL, named_parameters=names, **settings)
    model.register_comm_hook(state, compress_hook)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), state


def by_name(worker, workers):
    """Memories that are saved by one model and loaded by another one."""
    found = {}
    model, optimizer, state = layers()
    train(model, optimizer, worker, range(3))
    saved, inner = state.state_dict(), copy.deepcopy(model.module.state_dict())
    train(model, optimizer, worker, range(3, STEPS))
    found["whole"] = weights_by_name(model)

    model, optimizer, state = layers("dcba")
    model.module.load_state_dict(inner)
    state.load_state_dict(saved)
    train(model, optimizer, worker, range(3, STEPS))
    found["registered in another order"] = weights_by_name(model)

    for way, change in {"frozen": "d", "thawed": ""}.items():
        first, first_optimizer, first_state = layers(frozen="a" if way == "thawed" else "")
        train(first, first_optimizer, worker, range(2))
        theirs = first_state.state_dict()
        model, optimizer, state = layers(frozen=change)
        found[way, "strict"] = told(lambda s=state, t=theirs: s.load_state_dict(t))
        found[way, "unfit"] = tuple(state.load_state_dict(theirs, strict=False))
        found[way, "kept"] = (theirs["memories"], state.state_dict()["memories"])
    return found


def weights_by_name(model):
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


def without_names(worker, workers):
    """Checkpoints that could be of any parameter, and such as could not."""
    found = {}
    for name, frozen in {
        "the same": "",
        "another one frozen": "a",
        "the last frozen": "d",
    }.items():
        model, optimizer, state = layers(named=False)
        train(model, optimizer, worker, range(2))
        saved = state.state_dict()
        model, optimizer, state = layers(frozen=frozen, named=False)
        found[name] = told(lambda s=state, t=saved: s.load_state_dict(t))
    model, optimizer, state = wrapped("ef(topk(0.05))")
    train(model, optimizer, worker, range(2))
    saved = state.state_dict()
    for name, frozen in {"different shapes": (), "fewer": (0, 1), "others": (4, 5)}.items():
        again = net()
        for place, parameter in enumerate(again.parameters()):
            parameter.requires_grad_(place not in frozen)
        model, optimizer, state = wrapped("ef(topk(0.05))", again)
        state.load_state_dict(saved)
        found[name] = told(lambda m=model, o=optimizer: train(m, o, worker, range(1)))
    model, optimizer, state = layers()
    found["names wanted"] = told(lambda: state.load_state_dict(layers_saved_without(worker)))
    return found


def layers_saved_without(worker):
    model, optimizer, state = layers(named=False)
    train(model, optimizer, worker, range(1))
    return state.state_dict()


def other_dtype(worker, workers):
    """A checkpoint of a model in which one layer had another dtype."""
    saved = None
    for dtype in (torch.float32, torch.bfloat16):
        inner = Layers()
        inner.b.to(dtype)
        state = CompressorState(None, "ef(topk(0.05))", named_parameters=inner.named_parameters())
        if saved is None:
            saved = state.state_dict()
    return told(lambda: state.load_state_dict(saved))


class Mixed(nn.Module):
    """Equal layers of two dtypes in turn."""

    def __init__(self):
        super().__init__()
        inner = Layers()
        self.layers = nn.ModuleList([inner.a, inner.b.bfloat16(), inner.c, inner.d.bfloat16()])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x.to(layer.weight.dtype)))
        return x[:, :4].float()


OPTIONS = {
    "the same": {},
    "small buckets": {"bucket_cap_mb": 0.001},
    "views": {"gradient_as_bucket_view": True},
    "unused parameters": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
}


def mixed_dtypes(worker, workers):
    """A model of two dtypes that goes on under other options of DistributedDataParallel."""

    def made(options):
        model = DistributedDataParallel(Mixed(), **options)
        named = model.named_parameters()
        state = CompressorState(
            None, "ef(topk(0.05))", "parameter", MIN_NUMEL, named_parameters=named
        )
        model.register_comm_hook(state, compress_hook)
        return model, torch.optim.SGD(model.parameters(), lr=0.1), state

    model, optimizer, state = made({"bucket_cap_mb": 0.002})
    train(model, optimizer, worker, range(3))
    saved, inner = state.state_dict(), copy.deepcopy(model.module.state_dict())
    train(model, optimizer, worker, range(3, STEPS))
    found = {}
    for name, options in OPTIONS.items():
        again, optimizer, state = made(options)
        again.module.load_state_dict(inner)
        state.load_state_dict(saved)
        train(again, optimizer, worker, range(3, STEPS))
        found[name] = weights(again)
    return weights(model), found


def memories_of_a_frozen_layer(worker, workers):
    """A layer that is frozen after two steps: its memory is saved, and waits for it."""
    model, optimizer, state = layers()
    train(model, optimizer, worker, range(2))
    before = state.state_dict()["memories"]["d.weight"]
    model.module.d.requires_grad_(False)
    saved = state.state_dict()
    found = []
    for frozen in ("d", ""):
        model, optimizer, state = layers(frozen=frozen)
        unfit = state.load_state_dict(saved, strict=bool(frozen))
        found.append((tuple(unfit), before, state.state_dict()["memories"]["d.weight"]))
    return found


def refused_checkpoints(worker, workers):
    """A load that is refused leaves the state as it was; so do checkpoints of other steps."""
    model, optimizer, state = layers()
    train(model, optimizer, worker, range(2))
    everyone = [None] * workers
    dist.all_gather_object(everyone, state.state_dict())
    model, optimizer, state = layers(frozen="d")
    texts = [told(lambda: state.load_state_dict(everyone[worker]))]
    texts.append(told(lambda: state.load_state_dict(everyone)))
    other = [{**each, "step": each["step"] + place} for place, each in enumerate(everyone)]
    texts.append(told(lambda: state.load_state_dict(other, reshard=True)))
    texts.append(told(lambda: state.load_state_dict({"step": 3})))
    texts.append(told(lambda: state.load_state_dict(everyone[(worker + 1) % workers])))
    texts.append(told(lambda: state.rebind(named_parameters=model.named_parameters())))
    return texts, state.step, state.state_dict()["memories"]


def caller_keeps_checkpoint(worker, workers):
    """Whether training changes the checkpoint that was loaded."""
    model, optimizer, state = layers()
    train(model, optimizer, worker, range(2))
    saved = state.state_dict()
    before = copy.deepcopy(saved["memories"])
    model, optimizer, state = layers()
    state.load_state_dict(saved)
    train(model, optimizer, worker, range(2))
    return before, saved["memories"]


def resharded(worker, workers):
    """Checkpoints of one worker more: refused, and put together."""
    found = {}
    everyone = [None] * workers
    for spec in ("ef(topk(0.05))", "velocity(topk(0.05))", "lowpass(clt-k(0.05))", "signum"):
        model, optimizer, state = layers(spec=spec)
        train(model, optimizer, worker, range(2))
        dist.all_gather_object(everyone, state.state_dict())
        more = [copy.deepcopy(each) for each in (*everyone, everyone[0])]
        for place, each in enumerate(more):
            each["settings"]["workers"], each["worker"] = len(more), place
        model, optimizer, state = layers(spec=spec)
        alone = told(lambda s=state, m=more: s.load_state_dict(m[worker]))
        state.load_state_dict(more, reshard=True)
        found[spec] = (alone, more, state.state_dict()["memories"])
        train(model, optimizer, worker, range(1))
    unknown = Own(compressor("topk(0.05)"))
    model, optimizer, state = layers(spec=unknown)
    train(model, optimizer, worker, range(1))
    dist.all_gather_object(everyone, state.state_dict())
    model, optimizer, state = layers(spec=unknown)
    found["unknown"] = told(lambda: state.load_state_dict(everyone, reshard=True))
    return found


class Own(Memory):
    """A memory that does not say what becomes of it among other workers."""

    name = "own"

    def __init__(self, inside):
        object.__setattr__(self, "compressor", inside)

    @property
    def spec(self):
        return "own"

    def init(self, grad):
        return compressor("ef(topk(0.05))").init(grad)

    def encode(self, grad, state, rng=None):
        return compressor("ef(topk(0.05))").encode(grad, state, rng)

    def exchange(self, grad, state, rng=None):
        return (yield from compressor("ef(topk(0.05))").exchange(grad, state, rng))

    def dense(self, grad, state):
        return (yield from compressor("ef(topk(0.05))").dense(grad, state))


# --- buckets ---


class Unusual(nn.Module):
    """One parameter that is not row-major and real, or has nothing in it."""

    def __init__(self, kind):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        shape = (60, 40)
        odd = torch.randn(shape, generator=generator)
        if kind == "complex":
            odd = torch.randn(shape, dtype=torch.complex64, generator=generator)
        if kind == "complex, column-major":
            odd = torch.randn(shape[::-1], dtype=torch.complex64, generator=generator).t()
        if kind == "column-major":
            odd = odd.t().contiguous().t()
        if kind == "channels last":
            odd = odd.view(6, 10, 8, 5).contiguous(memory_format=torch.channels_last)
        if kind == "strided":
            odd = torch.randn(60, 80, generator=generator)[:, ::2]
        if kind == "empty":
            odd = torch.zeros(0, 40)
        self.odd = nn.Parameter(odd)
        self.plain = nn.Parameter(torch.randn(7, generator=generator))

    def forward(self, direction):
        along = (self.odd * direction).sum()
        return (along.abs() if along.is_complex() else along) + self.plain.sum() * len(direction)


LAYOUTS = ["none", "topk(1.0)", "powersgd(rank=4)", "svd(rank=4)", "qsgd(bits=8)"]
LAYOUTS += ["ef(topk(1.0))", "ef21(topk(1.0))", "velocity(topk(1.0), momentum=0.0)"]
KINDS = ["complex", "complex, column-major", "column-major", "channels last", "strided", "empty"]


def direction_of(worker, odd):
    """A gradient of rank 2, another one on each worker."""
    generator = torch.Generator().manual_seed(77 + worker)
    rows = len(odd) or 1
    left = torch.randn(rows, 2, generator=generator)
    right = torch.randn(2, odd[0].numel() if odd.numel() else 40, generator=generator)
    matrix = left @ right
    return matrix.view(odd.shape) if odd.numel() else matrix


def unusual_parameters(worker, workers):
    """The gradient that each method leaves of unusual parameters, and the exact mean."""
    found = {}
    for kind in KINDS:
        for cap in (25, 0.0001):
            exact = DistributedDataParallel(Unusual(kind), bucket_cap_mb=cap)
            exact(direction_of(worker, exact.module.odd.detach())).backward()
            for spec in LAYOUTS:
                model = DistributedDataParallel(Unusual(kind), bucket_cap_mb=cap)
                state = CompressorState(None, spec, min_numel=8, check_every=1)
                model.register_comm_hook(state, compress_hook)
                for _ in range(4):
                    model.zero_grad()
                    model(direction_of(worker, model.module.odd.detach())).backward()
                grads = [p.grad.clone() for p in model.parameters()]
                found[kind, cap, spec] = (grads, [p.grad.clone() for p in exact.parameters()])
    return found


class Uncovered(Bucket):
    """A bucket that has more than its parameters."""

    def buffer(self):
        return torch.cat([super().buffer(), torch.zeros(2)])


def not_covered(worker, workers):
    state = CompressorState(None, "topk(0.5)")
    return told(lambda: state.reduce(Uncovered((4, 3))))


# --- the group ---


def drifting(worker, workers):
    """A worker whose update differs in one element, in the first step and in a later one."""
    found = []
    for at, every, by in ((0, 100, 1e-7), (4, 4, 1e-7), (4, 0, 1e-7), (3, 0, float("nan"))):
        state = CompressorState(None, Drifting(at, by), min_numel=8, check_every=every)
        texts, bucket = [], Bucket((8, 8), (5,))
        for _ in range(6):
            bucket.buffer().fill_(1.0)
            texts.append(told(lambda s=state, b=bucket: s.reduce(b)))
            if texts[-1] != "nothing":
                break
        found.append(texts)
    return found


class Drifting(Compressor):
    """Gives the last worker another update in one step."""

    name = "drifting"
    contract = Contract("all_reduce")

    def __init__(self, at, by):
        self.at, self.by = at, by

    @property
    def spec(self):
        return self.name

    def encode(self, grad, state, rng=None):
        return Dense(grad.reshape(-1).clone()), state

    def exchange(self, grad, state, rng=None):
        mean = yield AllReduce(grad, "mean")
        if rng.step == self.at and rng.workers > 1 and rng.worker == rng.workers - 1:
            mean.view(-1)[5] += self.by
        return Step(mean, Dense(grad.reshape(-1).clone()), state)


class FailingAt(Compressor):
    """Fails on the last worker in step 2, while it encodes: by an error, or as it is stopped."""

    name = "failing-at"
    contract = Contract("all_gather")

    def __init__(self, error):
        self.error = error

    @property
    def spec(self):
        return self.name

    def encode(self, grad, state, rng=None):
        return compressor("topk(0.5)").encode(grad, None)

    def exchange(self, grad, state, rng=None):
        if rng.step == 2 and rng.worker == rng.workers - 1:
            raise self.error("out of luck")
        return (yield from compressor("topk(0.5)").exchange(grad, None))


def failing_in_the_hook(worker, workers):
    """What each worker is told; the group would wait for many minutes."""
    found = {}
    for error in (ArithmeticError, SystemExit, KeyboardInterrupt):
        state = CompressorState(None, FailingAt(error), min_numel=8)
        texts, bucket = [], Bucket((8, 8), (5,))
        for _ in range(4):
            texts.append(told(lambda s=state, b=bucket: s.reduce(b)))
            if texts[-1] != "nothing":
                break
        found[error.__name__] = texts
    return found


# the collectives that torch sees, beyond the one in which the workers tell how a bucket stands
ROUNDS = {
    "none": ["all_reduce"],
    "ef(topk(0.05))": ["all_gather", "all_reduce"],
    "qsgd": ["all_gather", "all_reduce"],
    "velocity(dgc(0.05))": ["all_gather", "all_reduce"],
    "ef(powersgd)": ["all_reduce", "all_reduce"],
    "clt-k(0.05)": ["broadcast", "all_reduce", "all_reduce"],
}


def counted_rounds(worker, workers):
    """Collectives of a bucket, and reads of it, as torch itself sees them."""
    found = {}
    for spec in (
        "none",
        "ef(topk(0.05))",
        "qsgd",
        "ef(powersgd)",
        "clt-k(0.05)",
        "velocity(dgc(0.05))",
    ):
        state = CompressorState(None, spec, min_numel=8)
        calls = []
        originals = {
            name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast")
        }
        for name, call in originals.items():
            setattr(dist, name, counting(name, call, calls))
        try:
            for _ in range(3):
                bucket = Bucket((40, 40), (50,))
                bucket.buffer().copy_(torch.arange(1650.0) + worker)
                calls.clear()
                state.reduce(bucket)
        finally:
            for name, call in originals.items():
                setattr(dist, name, call)
        found[spec] = list(calls)
    return found


def counting(name, call, calls):
    def counted(*args, **kwargs):
        calls.append(name)
        return call(*args, **kwargs)

    return counted


class Reads(TorchDispatchMode):
    """Counts the elements that go through what looks for NaN and inf."""

    LOOKS = ("norm", "isfinite", "isnan", "isinf", "aminmax", "amax")

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(look in str(function) for look in self.LOOKS):
            tensors = args[0] if isinstance(args[0], list | tuple) else [args[0]]
            self.elements += sum(tensor.numel() for tensor in tensors)
        return function(*args, **(kwargs or {}))


def counted_reads(worker, workers):
    """How often the checks read a bucket."""
    found = {}
    for spec in ("none", "ef(topk(0.05))", "velocity(randomk(0.05))"):
        state = CompressorState(None, spec, min_numel=8)
        bucket = Bucket((40, 40), (50,))
        state.reduce(bucket)
        with Reads() as reads:
            state.reduce(bucket)
        found[spec] = reads.elements / bucket.buffer().numel()
    return found


def quiet_attributes(worker, workers):
    """What may be read on one worker alone, also before the workers have met."""
    state = CompressorState(None, "topk(0.5)")
    if worker == 0:
        texts = [
            told(lambda n=name: getattr(state, n)) for name in ("traffic", "seconds", "settings")
        ]
        texts.append(told(state.state_dict))
        return texts
    return []


def what_is_the_backends(worker, workers):
    """Errors of a compressor itself are not laid to the backend."""
    return told(lambda: CompressorState(None, Clumsy()))


class Clumsy(Compressor):
    name = "clumsy"
    contract = Contract("all_reduce")

    @property
    def spec(self):
        return self.name

    def encode(self, grad, state, rng=None):
        raise RuntimeError("shapes do not match")


def pickled(worker, workers):
    """A state with a group of its own, pickled and taken up again."""
    group = dist.new_group(list(range(workers)))
    model = DistributedDataParallel(Layers(), process_group=group)
    named = list(model.named_parameters())
    state = CompressorState(group, "ef(topk(0.05))", min_numel=MIN_NUMEL, named_parameters=named)
    model.register_comm_hook(state, compress_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, worker, range(2))
    file = io.BytesIO()
    torch.save(state, file)
    inner = copy.deepcopy(model.module.state_dict())
    train(model, optimizer, worker, range(2, 4))
    file.seek(0)
    again = torch.load(file, weights_only=False)
    refused = told(lambda: again.reduce(Bucket((8, 8))))
    other = DistributedDataParallel(Layers(), process_group=group)
    other.module.load_state_dict(inner)
    other.register_comm_hook(again, compress_hook)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    again.rebind(process_group=group, named_parameters=other.named_parameters())
    train(other, optimizer, worker, range(2, 4))
    unnamed = pickle.loads(pickle.dumps(CompressorState(None, "ef(topk(0.05))")))
    return refused, weights(model), weights(other), unnamed.settings


def skipped_by_the_scaler(worker, workers):
    """Memories before and after a step that the scaler skips, in several buckets."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    model = DistributedDataParallel(Layers(), bucket_cap_mb=0.001)
    names = model.named_parameters()
    state = CompressorState(
        None, "velocity(topk(0.05))", min_numel=MIN_NUMEL, named_parameters=names, scaler=scaler
    )
    model.register_comm_hook(state, compress_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in range(5):
        optimizer.zero_grad()
        before = state.state_dict()["memories"]
        scaler.scale(loss_of(model, worker, step)).backward()
        if step == 3:  # after the backward pass, so that no bucket was broken
            model.module.a.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        found.append((before, state.state_dict()["memories"]))
    return found, state.nonfinite


def scales_that_change(worker, workers):
    """Momenta where a scale is set by hand, and where two backward passes make a skipped step."""
    found = []
    for way in ("by hand", "two passes"):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        model, optimizer, state = layers(spec="velocity(topk(0.05))", scaler=scaler)
        for step in range(4):
            optimizer.zero_grad()
            before = state.state_dict()["memories"]
            for _ in range(2 if way == "two passes" else 1):
                scaler.scale(loss_of(model, worker, step)).backward()
            if way == "two passes" and step == 3:
                model.module.a.weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update(64.0 if way == "by hand" and step == 3 else None)
        found.append((before, state.state_dict()["memories"]))
    return found


def another_group(worker, workers):
    """A state that is used after the group was made again, with the ranks turned round."""
    state = CompressorState(None, "ef(topk(0.5))", min_numel=8)
    bucket = Bucket((8, 8))
    state.reduce(bucket)
    dist.barrier()
    dist.destroy_process_group()
    meeting = os.environ["MEETING_AGAIN"]
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=workers - 1 - worker, world_size=workers
    )
    text = told(lambda: state.reduce(Bucket((8, 8))))
    kept = state.state_dict()["worker"]
    dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}-3", rank=worker, world_size=workers
    )
    again = CompressorState(None, "ef(topk(0.5))", min_numel=8)
    again.load_state_dict(state.state_dict())
    return text, kept, told(lambda: again.reduce(Bucket((8, 8))))


SCENARIOS = [
    half_near_the_range,
    half_broken,
    extreme_values,
    outside_the_hook,
    first_gradients_of_zeros,
    broken_on_the_way_out,
    momentum_on_dense_paths,
    plain_momentum,
    momentum_in_a_broken_bucket,
    by_name,
    without_names,
    other_dtype,
    mixed_dtypes,
    memories_of_a_frozen_layer,
    refused_checkpoints,
    caller_keeps_checkpoint,
    resharded,
    unusual_parameters,
    not_covered,
    drifting,
    failing_in_the_hook,
    counted_rounds,
    counted_reads,
    quiet_attributes,
    what_is_the_backends,
    pickled,
    skipped_by_the_scaler,
    scales_that_change,
]


def dying(worker, workers):
    """The last worker dies in step 2: what the others are told."""
    state = CompressorState(None, "ef(topk(0.5))", min_numel=8)
    bucket = Bucket((8, 8), (5,))
    for step in range(4):
        if step == 2 and worker == workers - 1:
            os._exit(0)
        text = told(lambda: state.reduce(bucket))
        if text != "nothing":
            return text
    return "nothing"
