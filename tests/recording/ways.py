"""Ways of training on one process, each with the gradients that its last step must show.

A way trains a small model for two steps of two micro-batches with a recording at one point, and
returns by name what a row of the last step could be: found with `torch.autograd.grad`, which fills
no `.grad` and runs no hook of a parameter.
"""

import copy
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn

from gradstats.recording import capture, every
from tests.recording.test_wrappers import Checkpointed

STEPS, MICRO, LIMIT, SCALE = 2, 2, 0.01, 1024.0
SETTINGS = {"full": every(1), "track": None, "quiet": True}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


def batch(step, micro):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(10 * step + micro))


def loss_of(model, step, micro):
    return (model(batch(step, micro)) - 1).float().square().mean()


def exact(model, step, around=nullcontext):
    """The gradient of each micro-batch of a step, flat."""
    parameters, found = list(model.parameters()), []
    for micro in range(MICRO):
        with around():
            loss = loss_of(model, step, micro)
        grads = torch.autograd.grad(loss, parameters)
        found.append(torch.cat([grad.reshape(-1) for grad in grads]))
    return found


def clipped(grad):
    """What is left of a gradient that is clipped to a norm of LIMIT."""
    return grad * min(1.0, LIMIT / (grad.double().norm().item() + 1e-6))


def phrases(micros, scale=1.0):
    own = sum(micros)
    found = {"own": own, "own, clipped": clipped(own), "own, of the last micro-batch": micros[-1]}
    if scale != 1:
        found["own × loss scale"] = own * scale
    return found


def same(model):
    return model


def loop(path, at, make=net, wrapped=same, around=nullcontext, clip=True, twin=same):
    """The plain loop."""
    inner = make()
    model = wrapped(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, at=at, **SETTINGS):
        for step in range(STEPS):
            found = exact(twin(inner), step, around)
            optimizer.zero_grad()
            for micro in range(MICRO):
                with around():
                    loss = loss_of(model, step, micro)
                loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            optimizer.step()
    return phrases(found)


def tied():
    model = net()
    model[2].weight = model[0].weight
    return model


def scaled(path, at, fused, early, skip=False):
    """GradScaler; clipping where `unscale_` is called before."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000)
    with capture(model, optimizer, path, at=at, **SETTINGS):
        for step in range(STEPS):
            micros = exact(model, step)
            optimizer.zero_grad()
            for micro in range(MICRO):
                scaler.scale(loss_of(model, step, micro)).backward()
            found = phrases(micros, SCALE)
            if skip and step == STEPS - 1:
                model[0].weight.grad[0, 0] = torch.inf
                for name in ("own", "own × loss scale"):
                    found[f"{name}, with the infinity"] = found[name].clone()
                    found[f"{name}, with the infinity"][0] = torch.inf
            if early:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            scaler.step(optimizer)
            scaler.update()
    return found


def closure(path, at):
    """`optimizer.step(closure)`."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, at=at, **SETTINGS):
        for step in range(STEPS):
            found = exact(model, step)

            def evaluate(step=step):
                optimizer.zero_grad()
                for micro in range(MICRO):
                    loss_of(model, step, micro).backward()
                nn.utils.clip_grad_norm_(model.parameters(), LIMIT)

            optimizer.step(evaluate)
    return phrases(found)


def sparse(path, at):
    """`Embedding(sparse=True)`, which `clip_grad_norm_` does not take."""
    torch.manual_seed(0)
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    words = torch.tensor([1, 1, 4])
    with capture(model, optimizer, path, at=at, **SETTINGS):
        for _ in range(STEPS):
            dense = copy.deepcopy(model.weight.detach()).requires_grad_()
            loss = nn.functional.embedding(words, dense).square().sum()
            (grad,) = torch.autograd.grad(loss, dense)
            optimizer.zero_grad()
            model(words).square().sum().backward()
            optimizer.step()
    return {"own": grad.reshape(-1)}


def several(path, at, listed):
    """Two optimizers with a half of the model each: in a list, or one recorded by itself."""
    model = net()
    halves = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2)]
    chosen = halves if listed else halves[0]
    with capture(model, chosen, path, at=at, **SETTINGS):
        for step in range(STEPS):
            found = exact(model, step)
            for optimizer in halves:
                optimizer.zero_grad()
            for micro in range(MICRO):
                loss_of(model, step, micro).backward()
            for optimizer in halves:
                optimizer.step()
    kept = slice(None) if listed else slice(0, 20)
    return phrases([micro[kept] for micro in found])


def in_backward(path, at):
    """Each parameter's optimizer steps as soon as its gradient is there."""
    model = net()
    own = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def now(parameter):
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(now)
    with capture(model, list(own.values()), path, at=at, **SETTINGS):
        for step in range(STEPS):
            found = exact(model, step)
            loss_of(model, step, 0).backward()
    return {"own": found[0]}


def by_micro_batch(path, at):
    """`clip_grad_norm_` after every micro-batch."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, at=at, **SETTINGS):
        for step in range(STEPS):
            first, second = exact(model, step)
            found = clipped(first) + second
            optimizer.zero_grad()
            for micro in range(MICRO):
                loss_of(model, step, micro).backward()
                nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            optimizer.step()
    own = phrases([first, second])
    top = {"own, on what was clipped": found, "own, on what was clipped, clipped": clipped(found)}
    return {**own, **top}


def left_out(path, at, last=False):
    """A batch whose norm is not finite makes no step: in between, or the last one."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, at=at, **SETTINGS):
        for step in range(STEPS):
            for factor in (1.0, torch.nan) if last else (torch.nan, 1.0):
                micros = exact(model, step)
                optimizer.zero_grad()
                for micro in range(MICRO):
                    (factor * loss_of(model, step, micro)).backward()
                if not nn.utils.clip_grad_norm_(model.parameters(), LIMIT).isfinite():
                    continue
                found = micros
                optimizer.step()
    return phrases(found)


def before_backward(path, at):
    """`clip_grad_norm_` at the begin of a step, which clips what the step before left."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, path, at=at, **SETTINGS):
        for step in range(STEPS):
            if step:
                nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            found = exact(model, step)
            optimizer.zero_grad()
            for micro in range(MICRO):
                loss_of(model, step, micro).backward()
            optimizer.step()
    return phrases(found)


def part_by_part(path, at, listed=False):
    """Two models, each clipped after a backward pass of its own."""
    model = nn.ModuleList([net(), net()])
    groups = list(model) if listed else [model]
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in groups]
    with capture(model, optimizers, path, at=at, **SETTINGS):
        for step in range(STEPS):
            found = [sum(exact(part, step)) for part in model]
            for optimizer in optimizers:
                optimizer.zero_grad()
            for part in model:
                for micro in range(MICRO):
                    loss_of(part, step, micro).backward()
                nn.utils.clip_grad_norm_(part.parameters(), LIMIT)
            for optimizer in optimizers:
                optimizer.step()
    parts = torch.cat([clipped(grad) for grad in found])
    return {"own": torch.cat(found), "own, each part clipped": parts}


def masters(path, at):
    """The optimizer updates float32 copies of bfloat16 parameters."""
    model = net().bfloat16()
    copies = [p.detach().clone().float().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.SGD(copies, lr=0.1)
    with capture(model, optimizer, path, at=at, **SETTINGS):
        for step in range(STEPS):
            model.zero_grad()
            for micro in range(MICRO):
                (model(batch(step, micro).bfloat16()) - 1).float().square().mean().backward()
            for copied, parameter in zip(copies, model.parameters(), strict=True):
                copied.grad = parameter.grad.float()
            found = torch.cat([one.grad.reshape(-1) for one in copies])
            nn.utils.clip_grad_norm_(copies, LIMIT)
            optimizer.step()
            for copied, parameter in zip(copies, model.parameters(), strict=True):
                parameter.data.copy_(copied)
    return {"the copies'": found, "the copies', clipped": clipped(found)}


def late(path, at):
    """`capture` is called between the backward passes and the step."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = exact(model, 0)
    for micro in range(MICRO):
        loss_of(model, 0, micro).backward()
    with capture(model, optimizer, path, at=at, **SETTINGS):
        optimizer.step()
    return phrases(found)


def zero(path, at):
    """What DeepSpeed ZeRO marks parameters with."""
    model = net()
    model[0].weight.ds_id = 0
    capture(model, torch.optim.SGD(model.parameters(), lr=0.1), path, at=at, **SETTINGS)


def plain(model):
    """The same model without reentrant checkpoints, which `torch.autograd.grad` cannot pass."""
    twin = copy.deepcopy(model)
    twin.reentrant = False
    return twin


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager")


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


WAYS = {
    "plain loop, accumulation": partial(loop, clip=False),
    "`clip_grad_norm_`": loop,
    "`clip_grad_norm_` after every micro-batch": by_micro_batch,
    "`clip_grad_norm_` before the backward pass": before_backward,
    "each part clipped after its own backward pass": part_by_part,
    "the same, an optimizer for each part, a list": partial(part_by_part, listed=True),
    "a batch with NaN left out": left_out,
    "the last batch left out": partial(left_out, last=True),
    "attached between backward and step": late,
    "float32 copies of bfloat16 parameters": masters,
    "autocast": partial(loop, around=autocast),
    "GradScaler": partial(scaled, fused=False, early=False),
    "GradScaler, `unscale_` before clipping": partial(scaled, fused=False, early=True),
    "GradScaler, fused optimizer": partial(scaled, fused=True, early=False),
    "GradScaler, fused, `unscale_` before": partial(scaled, fused=True, early=True),
    "GradScaler, step left out": partial(scaled, fused=False, early=False, skip=True),
    "GradScaler, fused, step left out": partial(scaled, fused=True, early=False, skip=True),
    "tied parameters": partial(loop, make=tied),
    "checkpointing, reentrant": partial(loop, make=partial(Checkpointed, True), twin=plain),
    "checkpointing": partial(loop, make=partial(Checkpointed, False)),
    "`torch.compile`": partial(loop, wrapped=compiled),
    "`DataParallel` around the model": partial(loop, wrapped=nn.DataParallel),
    "`step(closure)`": closure,
    "sparse embedding": sparse,
    "several optimizers, one recorded": partial(several, listed=False),
    "several optimizers, a list": partial(several, listed=True),
    "optimizer in backward, a list": in_backward,
    "DeepSpeed ZeRO": zero,
}
