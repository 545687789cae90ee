"""Checkpoints: by name, by number, of other models, of other numbers of workers."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradstats.compressors import Memory, compressor
from gradstats.ddp_hooks import CompressorState, compress_hook
from tests.exchange.nets import MIN_NUMEL, STEPS, net, outcome, train, weights, wrapped


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
        found[way, "strict"] = outcome(lambda s=state, t=theirs: s.load_state_dict(t))
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
        found[name] = outcome(lambda s=state, t=saved: s.load_state_dict(t))
    model, optimizer, state = wrapped("ef(topk(0.05))")
    train(model, optimizer, worker, range(2))
    saved = state.state_dict()
    for name, frozen in {"different shapes": (), "fewer": (0, 1), "others": (4, 5)}.items():
        again = net()
        for place, parameter in enumerate(again.parameters()):
            parameter.requires_grad_(place not in frozen)
        model, optimizer, state = wrapped("ef(topk(0.05))", again)
        state.load_state_dict(saved)
        found[name] = outcome(lambda m=model, o=optimizer: train(m, o, worker, range(1)))
    model, optimizer, state = layers()
    found["names wanted"] = outcome(lambda: state.load_state_dict(layers_saved_without(worker)))
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
    return outcome(lambda: state.load_state_dict(saved))


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
    texts = [outcome(lambda: state.load_state_dict(everyone[worker]))]
    texts.append(outcome(lambda: state.load_state_dict(everyone)))
    other = [{**each, "step": each["step"] + place} for place, each in enumerate(everyone)]
    texts.append(outcome(lambda: state.load_state_dict(other, reshard=True)))
    texts.append(outcome(lambda: state.load_state_dict({"step": 3})))
    texts.append(outcome(lambda: state.load_state_dict(everyone[(worker + 1) % workers])))
    texts.append(outcome(lambda: state.rebind(named_parameters=model.named_parameters())))
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
        alone = outcome(lambda s=state, m=more: s.load_state_dict(m[worker]))
        state.load_state_dict(more, reshard=True)
        found[spec] = (alone, more, state.state_dict()["memories"])
        train(model, optimizer, worker, range(1))
    unknown = Own(compressor("topk(0.05)"))
    model, optimizer, state = layers(spec=unknown)
    train(model, optimizer, worker, range(1))
    dist.all_gather_object(everyone, state.state_dict())
    model, optimizer, state = layers(spec=unknown)
    found["unknown"] = outcome(lambda: state.load_state_dict(everyone, reshard=True))
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
