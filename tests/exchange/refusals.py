"""What the hook refuses, and workers that disagree or fail."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradstats.compressors import Compressor, Contract, Rng, Step, compressor
from gradstats.compressors.rounds import AllReduce
from gradstats.ddp_hooks import CompressorState, compress_hook
from gradstats.exchange import drive
from gradstats.exchange.collectives import Group
from gradstats.payloads.base import Dense
from tests.exchange.nets import MIN_NUMEL, STEPS, Bucket, loss_of, net, train, weights, wrapped


class Sixteen(Compressor):
    """Sums 16-bit integers, which no backend can."""

    name = "sixteen"
    contract = Contract("all_reduce")

    def encode(self, grad, state, rng=None):
        return Dense(grad.reshape(-1)), state

    def exchange(self, grad, state, rng=None):
        total = yield AllReduce(grad.reshape(-1).to(torch.int16))
        return Step(total.to(grad.dtype).view(grad.shape), Dense(grad.reshape(-1)), state)

    @property
    def spec(self):
        return self.name


def refused(worker, workers):
    """What registration says."""
    told = {}
    for name, settings in {
        "backend": {"compressor": Sixteen()},
        "settings": {"compressor": f"topk(0.0{worker + 1})"},
        "min_numel": {"compressor": "topk(0.01)", "min_numel": 10 * (worker + 1)},
        "loss": {"compressor": "adaquant(qsgd)"},
        "by": {"compressor": "none", "by": "layer"},
        "start": {"compressor": "none", "start_step": -1},
    }.items():
        try:
            CompressorState(None, **settings)
            told[name] = "nothing"
        except (ValueError, RuntimeError) as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told


def disagreeing(worker, workers):
    """Workers with different layouts or compressors, at the exchange and in the hook."""
    told = []
    for spec, grad in (
        ("none", torch.zeros(10 + worker)),
        ("topk(0.5)" if worker else "none", torch.zeros(10)),
    ):
        try:
            drive(compressor(spec).exchange(grad, None), Group())
            told.append("nothing")
        except RuntimeError as error:
            told.append(str(error))
    state = CompressorState(None, "topk(0.5)")
    try:
        state.reduce(Bucket((4, 3 + worker), (5,)))
        told.append("nothing")
    except RuntimeError as error:
        told.append(str(error))
    return told


class Failing(Compressor):
    """Fails on the last worker."""

    name = "failing"
    contract = Contract("all_reduce")

    def encode(self, grad, state, rng=None):
        if rng.workers > 1 and rng.worker == rng.workers - 1:
            raise ArithmeticError("out of luck")
        return Dense(grad.reshape(-1).clone()), state


def failing(worker, workers):
    """A compressor that raises on one worker: nobody waits for it."""
    rng = Rng(worker=worker, workers=workers)
    try:
        drive(Failing().exchange(torch.zeros(5), None, rng), Group())
        return "nothing"
    except (RuntimeError, ArithmeticError) as error:
        return f"{type(error).__name__}: {error}"


def empty(worker, workers):
    """Payloads of no element, and gradients of none."""
    member = compressor("threshold(0.1)")
    state = member.init(torch.arange(100.0))
    none = drive(member.exchange(torch.zeros(100), state), Group())
    nothing = drive(compressor("topk(0.1)").exchange(torch.zeros(0), None), Group())
    return none.sent.count, none.update.sum().item(), nothing.update.shape


def counted(worker, workers):
    """Bytes and seconds of a training."""
    model, optimizer, state = wrapped("ef(topk(0.05))", by="bucket")
    train(model, optimizer, worker, range(STEPS))
    return state.traffic, state.seconds, state.khat_over_k, state.step


def sharded(worker, workers):
    """What FSDP is told."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
    state = CompressorState(None, "topk(0.01)")
    try:
        model.register_comm_hook(state, compress_hook)
        loss_of(model, worker, 0).backward()
    except (TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Looking(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 8, sparse=True), nn.Linear(8, 2)

    def forward(self, ids):
        return self.head(self.embedding(ids))


def sparse(worker, workers):
    """What a model with sparse gradients is told."""
    model = DistributedDataParallel(Looking())
    model.register_comm_hook(CompressorState(None, "topk(0.01)"), compress_hook)
    try:
        model(torch.tensor([1, 2])).sum().backward()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def early(worker, workers, meeting):
    """A state that is made before the process group, as some trainers have it."""
    dist.barrier()  # the other worker may still be connecting
    dist.destroy_process_group()
    state = CompressorState(None, "ef(topk(0.05))", by="parameter", min_numel=MIN_NUMEL)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=worker, world_size=workers
    )
    model = DistributedDataParallel(net())
    model.register_comm_hook(state, compress_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, worker, range(STEPS))
    return weights(model)
