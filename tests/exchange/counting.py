"""Rounds and reads are counted; states are pickled, scaled and put into another group."""

import copy
import io
import os
import pickle

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from gradstats import kernels
from gradstats.compressors import Compressor, Contract
from gradstats.ddp_hooks import CompressorState, compress_hook
from tests.exchange.nets import MIN_NUMEL, Bucket, loss_of, outcome, train, weights
from tests.exchange.resuming import Layers, layers

# the collectives that torch sees, beyond the one in which the workers tell how a bucket stands
ROUNDS = {
    "none": ["all_reduce"],
    "ef(topk(0.05))": ["messages", "all_reduce"],
    "qsgd": ["messages", "all_reduce"],
    "velocity(dgc(0.05))": ["messages", "all_reduce"],
    "ef(powersgd)": ["all_reduce", "all_reduce"],
    "clt-k(0.05)": ["broadcast", "all_reduce", "all_reduce"],
    # the second shot is as long as the first, so that no lengths are sent
    "twoshot(mxfp8)": ["all_to_all_single", "messages", "all_reduce"],
    "twoshot(mxfp8, second=bf16)": ["all_to_all_single", "all_gather", "messages", "all_reduce"],
}
NAMES = ("all_reduce", "all_gather", "all_to_all_single", "broadcast")


def counted_rounds(worker, workers):
    """Collectives of a bucket, and reads of it, as torch itself sees them."""
    found = {}
    for spec in ROUNDS:
        state = CompressorState(None, spec, min_numel=8)
        calls = []
        originals = {name: getattr(dist, name) for name in NAMES}
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
        with kernels.use("eager"), Reads() as reads:  # in which torch sees all of them
            state.reduce(bucket)
        found[spec] = reads.elements / bucket.buffer().numel()
    return found


def quiet_attributes(worker, workers):
    """What may be read on one worker alone, also before the workers have met."""
    state = CompressorState(None, "topk(0.5)")
    if worker == 0:
        texts = [
            outcome(lambda n=name: getattr(state, n))
            for name in ("traffic", "seconds", "settings")
        ]
        texts.append(outcome(state.state_dict))
        return texts
    return []


def what_is_the_backends(worker, workers):
    """Errors of a compressor itself are not laid to the backend; what the backend lacks is."""
    has, dist.all_to_all_single = dist.all_to_all_single, lacking
    try:
        lacks = outcome(lambda: CompressorState(None, "twoshot(mxfp8)"))
    finally:
        dist.all_to_all_single = has
    return outcome(lambda: CompressorState(None, Clumsy())), lacks


def lacking(*args, **kwargs):
    raise RuntimeError("Backend gloo does not support alltoall_base")


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
    refused = outcome(lambda: again.reduce(Bucket((8, 8))))
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
    text = outcome(lambda: state.reduce(Bucket((8, 8))))
    kept = state.state_dict()["worker"]
    dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}-3", rank=worker, world_size=workers
    )
    again = CompressorState(None, "ef(topk(0.5))", min_numel=8)
    again.load_state_dict(state.state_dict())
    return text, kept, outcome(lambda: again.reduce(Bucket((8, 8))))
