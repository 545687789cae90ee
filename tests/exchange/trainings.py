"""What the workers of test_ddp_hooks.py run: small trainings under every circumstance."""

import copy
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradstats.compressors import Compressor, Contract, Rng, Step, compressor
from gradstats.compressors.rounds import AllReduce
from gradstats.ddp_hooks import CompressorState, compress_hook
from gradstats.exchange import drive, fused, simulate
from gradstats.exchange.collectives import Group
from gradstats.payloads.base import Dense

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


SPECS = ["ef(topk(0.05))", "ef(exact-threshold(0.05))", "ef(sidco-e(0.05))", "qsgd", "ef(co3)"]
SPECS += ["ef(powersgd)", "ef(acp-sgd)", "ef(clt-k(0.05))", "qsgd-shared", "ef(thc)", "signum"]
SPECS += ["ef21(topk(0.05))", "velocity(dgc(0.05))", "ef(warmup(topk(0.05), steps=1))"]


def every_way(worker, workers):
    """All scenarios, by name."""
    torch.manual_seed(11)
    found = {"trained": {}}
    for spec in [*SPECS, "none"]:
        for by in ("parameter", "bucket"):
            model, optimizer, state = wrapped(spec, by=by)
            train(model, optimizer, worker, range(STEPS))
            found["trained"][spec, by] = (weights(model), state.traffic, state.khat_over_k)
    for scenario in (
        without_a_hook,
        small_buckets,
        rebuilt,
        views,
        accumulated,
        scaled,
        broken,
        unused,
        resumed,
        late,
        private,
        refused,
        disagreeing,
        failing,
        empty,
        counted,
    ):
        found[scenario.__name__] = scenario(worker, workers)
    return found


def without_a_hook(worker, workers):
    model = DistributedDataParallel(net())
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), worker, range(STEPS))
    return weights(model)


class Watching:
    """A hook that also notes what the buckets hold."""

    def __init__(self):
        self.seen = []

    def __call__(self, state, bucket):
        self.seen.append([tuple(p.shape) for p in bucket.parameters()])
        return compress_hook(state, bucket)


def small_buckets(worker, workers):
    """Several buckets, which are rebuilt in another order after the first step."""
    found = {}
    for spec in ("ef(topk(0.05))", "qsgd", "ef(powersgd)"):
        for by in ("parameter", "bucket"):
            model = DistributedDataParallel(net(), bucket_cap_mb=0.005)
            state = CompressorState(None, spec, by=by, min_numel=MIN_NUMEL)
            watching = Watching()

            def hook(state, bucket, watching=watching):
                return watching(state, bucket)

            model.register_comm_hook(state, hook)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            train(model, optimizer, worker, range(STEPS))
            found[spec, by] = (weights(model), watching.seen)
    return found


class Linear(nn.Module):
    """A loss that is linear in every parameter, so that its gradients are known."""

    SHAPES = ((11, 10), (12, 10), (13, 10), (14, 10))

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(shape) for shape in self.SHAPES)

    def forward(self, directions):
        return sum((w * d).sum() for w, d in zip(self.weights, directions, strict=True))


def rebuilt(worker, workers):
    """Memories of buckets that change: what came out in all, went in on this worker, and waits."""
    found = {}
    for spec in ("ef(topk(0.05))", "ef(randomk(0.1))"):
        model, watching = DistributedDataParallel(Linear(), bucket_cap_mb=0.0001), Watching()
        state = CompressorState(None, spec, by="bucket", min_numel=MIN_NUMEL)
        model.register_comm_hook(state, lambda s, bucket, w=watching: w(s, bucket))
        rng = torch.Generator().manual_seed(worker)
        out, given = ([torch.zeros(shape) for shape in Linear.SHAPES] for _ in range(2))
        for _ in range(STEPS):
            directions = [torch.randn(shape, generator=rng) for shape in Linear.SHAPES]
            model.zero_grad()
            model(directions).backward()
            for i, parameter in enumerate(model.parameters()):
                out[i] += parameter.grad
                given[i] += directions[i]
        memories = state.state_dict()["memories"]
        waits = {each["numel"]: each["state"]["residual"] for each in memories.values()}
        waiting = [waits[each.numel()].view(each.shape) for each in out]
        found[spec] = (out, given, waiting, watching.seen)
    return found


def views(worker, workers):
    ddp = {"gradient_as_bucket_view": True}
    model, optimizer, _ = wrapped("ef(topk(0.05))", ddp=ddp)
    train(model, optimizer, worker, range(STEPS))
    return weights(model)


def accumulated(worker, workers):
    """Four micro-batches by accumulation, and as one batch."""
    model, optimizer, state = wrapped("ef(topk(0.05))")
    train(model, optimizer, worker, range(STEPS), micros=4)
    whole, other, _ = wrapped("ef(topk(0.05))")
    for step in range(STEPS):
        other.zero_grad()
        sum(loss_of(whole, worker, step, micro) / 4 for micro in range(4)).backward()
        other.step()
    return weights(model), weights(whole), state.step


def scaled(worker, workers):
    """Under a GradScaler whose scale changes, with an overflow on one worker, and without one."""
    found = []
    for scaler in (torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2), None):
        model, optimizer, state = wrapped("ef(topk(0.05))", scaler=scaler)
        scales = []
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, worker, step)
            if step == 3:
                if scaler is None:
                    continue  # the step that the scaler skips
                loss = loss * (float("inf") if worker == 0 else 1.0)
            (scaler.scale(loss) if scaler else loss).backward()
            if scaler:
                scaler.step(optimizer)
                scaler.update()
                scales.append(scaler.get_scale())
            else:
                optimizer.step()
        found.append((weights(model), state.nonfinite, scales))
    return found


def broken(worker, workers):
    """A NaN on the last worker in step 2; whoever sees one in its gradients skips the step."""
    found = {}
    for spec in ("ef(topk(0.05))", "qsgd", "ef(powersgd)", "ef(acp-sgd)", "ef(thc)", "intsgd"):
        model, optimizer, state = wrapped(spec)
        skipped = []
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, worker, step)
            if step == 2 and worker == workers - 1:
                loss = loss * float("nan")
            loss.backward()
            if all(p.grad.isfinite().all() for p in model.parameters()):
                optimizer.step()
            else:
                skipped.append(step)
        found[spec] = (weights(model), skipped, state.nonfinite, state.step)
    return found


def unused(worker, workers):
    """A parameter that only worker 0 uses, and only in even steps."""
    ddp = {"find_unused_parameters": True}
    model, optimizer, _ = wrapped("ef(topk(0.05))", net(branch=True), ddp=ddp)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, worker, step, side=side_is_used(worker, step)).backward()
        optimizer.step()
    return weights(model)


RESUMED = ["ef(exact-threshold(0.05))", "ef(sidco-e(0.05))", "qsgd", "ef(powersgd)", "ef(acp-sgd)"]
RESUMED += [
    "ef(co3)",
    "velocity(dgc(0.05))",
    "intsgd",
    "ef(warmup(topk(0.05), steps=2))",
    "signum",
]


def resumed(worker, workers):
    """Uninterrupted, and stopped after three steps, saved, and gone on with from the files."""
    found = {}
    for spec in RESUMED:
        for by in ("parameter", "bucket"):
            model, optimizer, state = wrapped(spec, by=by)
            train(model, optimizer, worker, range(3))
            saved = copy.deepcopy(
                {
                    "model": model.module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "compressor": state.state_dict(),
                }
            )
            torch.save(saved, f"/tmp/gradstats-{worker}.pt") if False else None
            train(model, optimizer, worker, range(3, STEPS))
            again = net()
            again.load_state_dict(saved["model"])
            model2, optimizer2, state2 = wrapped(spec, again, by=by)
            optimizer2.load_state_dict(saved["optimizer"])
            state2.load_state_dict(saved["compressor"])
            train(model2, optimizer2, worker, range(3, STEPS))
            found[spec, by] = (weights(model), weights(model2), saved["compressor"])
    return found


def late(worker, workers):
    """A start after two dense steps."""
    model, optimizer, state = wrapped("ef(topk(0.05))", start_step=2)
    train(model, optimizer, worker, range(2))
    after_two = weights(model)
    volumes = copy.deepcopy(state.traffic.volumes)
    train(model, optimizer, worker, range(2, STEPS))
    return after_two, volumes, state.traffic.volumes


def private(worker, workers):
    """Global generators, after a training with a random method and without."""
    states = []
    for spec in ("qsgd", "none"):
        torch.manual_seed(5)
        model, optimizer, _ = wrapped(spec)
        train(model, optimizer, worker, range(2))
        states.append(torch.get_rng_state())
    return states


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


class Bucket:
    """As DistributedDataParallel's, but of any layout."""

    def __init__(self, *shapes, dtype=torch.float32):
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

    def is_last(self):
        return True


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
