"""What the workers of test_ddp_hooks.py run: small trainings under every circumstance."""

import copy

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradstats.ddp_hooks import CompressorState, compress_hook
from tests.exchange.nets import (
    MIN_NUMEL,
    STEPS,
    loss_of,
    net,
    side_is_used,
    train,
    weights,
    wrapped,
)
from tests.exchange.refusals import counted, disagreeing, empty, failing, refused

SPECS = ["ef(topk(0.05))", "ef(exact-threshold(0.05))", "ef(sidco-e(0.05))", "qsgd", "ef(co3)"]


SPECS += ["ef(powersgd)", "ef(acp-sgd)", "ef(clt-k(0.05))", "qsgd-shared", "ef(thc)", "signum"]


SPECS += ["ef21(topk(0.05))", "velocity(dgc(0.05))", "ef(warmup(topk(0.05), steps=1))"]


SPECS += ["ef(twoshot(mxfp8))"]


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
