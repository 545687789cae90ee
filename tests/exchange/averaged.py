"""What the workers of test_averaging.py run: buckets that are only averaged, in real trainings."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gradstats.ddp_hooks import CompressorState, compress_hook
from gradstats.exchange.averaging import Averaging
from gradstats.exchange.flights import Flight
from gradstats.exchange.messaging import CollectiveError
from tests.exchange.nets import STEPS, loss_of, net, outcome, train, weights, wrapped

SEVERAL = {"bucket_cap_mb": 0.001}
SPECS = ("none", "bf16", "fp16")


def trained(worker, workers):
    """Weights with the hook, and with the sums of DistributedDataParallel itself."""
    found = {}
    for views in (False, True):
        options = {**SEVERAL, "gradient_as_bucket_view": views}
        plain = DistributedDataParallel(net(), **options)
        train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), worker, range(STEPS))
        for spec in SPECS:
            model, _, state = wrapped(spec, ddp=options)
            train(model, torch.optim.SGD(model.parameters(), lr=0.1), worker, range(STEPS))
            found[spec, views] = weights(model), weights(plain), state.step, state.traffic
    return found


def of_a_static_graph(worker, workers):
    """Weights, those without a hook, and the state's step after each step."""
    found, options = {}, {**SEVERAL, "static_graph": True}
    plain = DistributedDataParallel(net(), **options)
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), worker, range(STEPS))
    for spec in (*SPECS, "topk(1.0)"):
        model, _, state = wrapped(spec, ddp=options)
        optimizer, steps = torch.optim.SGD(model.parameters(), lr=0.1), []
        for step in range(STEPS):
            train(model, optimizer, worker, [step])
            steps.append(state.step)
        found[spec] = weights(model), weights(plain), steps
    return found


def uneven(worker, workers):
    """Weights, and those without a hook, where worker w has w + 2 batches."""
    plain = DistributedDataParallel(net(), **SEVERAL)
    joined(plain, worker)
    found = {}
    for spec in (*SPECS, "topk(1.0)"):
        model, _, _ = wrapped(spec, ddp=SEVERAL, check_every=1)
        joined(model, worker)
        found[spec] = weights(model), weights(plain)
    return found


def joined(model, worker):
    with model.join():
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), worker, range(worker + 2))


def under_way(worker, workers):
    """For each bucket of a step, whether its mean was there when the hook returned."""
    found = {}
    for spec in ("none", "fp16", "topk(0.5)"):
        model, done = DistributedDataParallel(net(), **SEVERAL), []
        state = CompressorState(None, spec, min_numel=8)

        def watched(state, bucket, done=done):
            future = compress_hook(state, bucket)
            done.append(future.done())
            return future

        model.register_comm_hook(state, watched)
        for step in range(4):
            done.clear()
            loss_of(model, worker, step).backward()
        found[spec] = list(done)
    return found


def broken(worker, workers):
    """Gradients of a step in which one worker has a NaN, and those without a hook."""
    found = {}
    for spec in SPECS:
        for at in (0, 3):  # before the workers know the bucket, and after
            model, _, state = wrapped(spec, ddp=SEVERAL)
            plain = DistributedDataParallel(net(), **SEVERAL)
            for step in range(5):
                for each in (model, plain):
                    each.zero_grad()
                    bias, spoils = each.module[2].bias, worker == 0 and step == at
                    handle = bias.register_hook(with_nan if spoils else torch.clone)
                    loss_of(each, worker, step).backward()
                    handle.remove()
                if step == at:
                    found[spec, at] = grads(model), grads(plain), state.nonfinite
            found[spec, at] += (grads(model), grads(plain), state.nonfinite)
    return found


def with_nan(grad):
    grad = grad.clone()
    grad[3] = torch.nan
    return grad


def grads(model):
    return torch.cat([parameter.grad.reshape(-1).clone() for parameter in model.parameters()])


def failing(worker, workers):
    """What each worker is told where the last one fails, and a sum afterwards."""
    fill, found = Averaging.fill, {}
    for error in (ArithmeticError, KeyboardInterrupt):
        for step, bucket in ((0, 0), (3, 0), (3, 1), (3, "last")):
            model, _, state = wrapped("fp16", ddp=SEVERAL)
            calls = []

            def filled(averaging, error=error, state=state, step=step, bucket=bucket, calls=calls):
                calls.append(state.step)
                place = calls.count(state.step) - 1
                number = len(state._layouts._layouts) - 1 if bucket == "last" else bucket
                if worker == workers - 1 and (state.step, place) == (step, number):
                    raise error("out of luck")
                return fill(averaging)

            Averaging.fill = filled
            texts = []
            for each in range(5):
                texts.append(outcome(lambda m=model, s=each: loss_of(m, worker, s).backward()))
                if texts[-1] != "nothing":
                    break
            Averaging.fill = fill
            total = torch.ones(3)
            dist.all_reduce(total)
            found[error.__name__, step, bucket] = texts, float(total.sum())
    return found


def failing_twice(worker, workers):
    """What the last worker is told if it fails, and then a collective does."""
    fill, wait = Averaging.fill, Flight.wait
    model, _, _ = wrapped("fp16", ddp=SEVERAL)

    def filled(averaging):
        raise ArithmeticError("out of luck")

    def waited(flight):
        wait(flight)
        raise CollectiveError("cannot all_gather")

    if worker == workers - 1:
        Averaging.fill, Flight.wait = filled, waited
    text = outcome(lambda: loss_of(model, worker, 0).backward())
    Averaging.fill, Flight.wait = fill, wait
    return text


def drifting(worker, workers):
    """What each worker is told after the mean of the last one was another in step 2."""
    finish = Averaging.finish
    model, _, state = wrapped("none", ddp=SEVERAL, check_every=1)

    def finished(averaging):
        finish(averaging)
        if state.step == 2 and worker == workers - 1:
            averaging._sums[0][0][5] += 1e-3

    Averaging.finish = finished
    texts = []
    for step in range(5):
        texts.append(outcome(lambda s=step: loss_of(model, worker, s).backward()))
        if texts[-1] != "nothing":
            break
    Averaging.finish = finish
    return texts


def all_of_it(worker, workers):
    """All scenarios, by name."""
    scenarios = (
        trained,
        of_a_static_graph,
        uneven,
        under_way,
        broken,
        failing,
        failing_twice,
        drifting,
    )
    return {scenario.__name__: scenario(worker, workers) for scenario in scenarios}
