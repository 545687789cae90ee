"""What the workers of test_group.py run: every compressor over two steps of one bucket."""

import torch

from gradstats.compressors import COMPRESSORS, Rng, compressor, compressors
from gradstats.exchange import drive, fused, simulate
from gradstats.exchange.collectives import Group
from gradstats.exchange.counts import Traffic

SHAPES = {"matrix": (48, 40), "bias": (30,), "conv": (16, 8, 3, 3)}
STEPS = 2
MEMBERS = [str(each) for name in COMPRESSORS for each in compressors(name, [0.05])]
MEMORIES = [f"ef({each})" for each in MEMBERS if compressor(each).contract.wants_feedback] + [
    "ef21(topk(0.05))",
    "velocity(clt-k(0.05))",
    "lowpass(clt-k(0.05))",
    "ef(topk(0.05) | qsgd)",
    "twoshot(none)",
    "twoshot(mxfp8)",
    "twoshot(topk(0.05), second=bf16)",
    "ef(twoshot(qsgd))",
    "ef21(twoshot(sign))",
    "ring(none)",
    "ef(ring(nvfp4))",
]
SPECS = [spec for spec in MEMBERS + MEMORIES if "loss" not in compressor(spec).contract.needs]


def gradient(name, step, worker):
    seed = 1000 * list(SHAPES).index(name) + 10 * step + worker
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed)) * (1 + worker)


def bucket(member, states, step, worker, workers):
    """The exchange of all parameters of one worker."""
    exchanges = []
    for name in SHAPES:
        grad = gradient(name, step, worker)
        state = states[name] if name in states else member.init(grad)
        rng = Rng(5, step, name, worker, workers)
        exchanges.append(member.exchange(grad, state, rng))
    return fused(exchanges)


def kept(steps):
    """What is compared: updates and bytes."""
    return [(step.update, step.sent.to_bytes()) for step in steps]


def over_group(worker, workers):
    """By spec what each step left, and the traffic."""
    found = {}
    for spec in SPECS:
        member, states, rows, group = compressor(spec), {}, [], Group()
        for step in range(STEPS):
            steps = drive(bucket(member, states, step, worker, workers), group)
            states = dict(zip(SHAPES, (each.state for each in steps), strict=True))
            rows.append(kept(steps))
        found[spec] = (rows, group.traffic)
    return found


def in_simulation(spec, workers):
    """For each worker the same as `over_group`."""
    member = compressor(spec)
    states = [{} for _ in range(workers)]
    rows, ledgers = [[] for _ in range(workers)], [Traffic() for _ in range(workers)]
    for step in range(STEPS):
        exchanges = [bucket(member, states[w], step, w, workers) for w in range(workers)]
        for worker, steps in enumerate(simulate(exchanges, ledgers)):
            after = (each.state for each in steps)
            states[worker] = dict(zip(SHAPES, after, strict=True))
            rows[worker].append(kept(steps))
    return list(zip(rows, ledgers, strict=True))
