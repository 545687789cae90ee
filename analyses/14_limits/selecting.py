"""What selecting costs: feedback, large ratios and small vectors, as ratios inside one run.

Every group's works run by turns, and each is quoted by its lower quartile. A *read* is
`torch.sum` of the same vector in the same run.
"""

from __future__ import annotations

from itertools import count

import torch
from timing import Work, in_turns
from torch import Tensor

from gradstats.compressors import Rng, compressor
from gradstats.compressors.rounds import alone

RATIO = 0.01
FEEDBACK = ("exact-threshold", "threshold", "sidco-e", "topk")
SETTLED = 12  # steps after which adaptive stages and memories are settled


def in_reads(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Each work's time over that of "read", right after another operation of torch."""
    seconds = in_turns(works, rounds, pause=0)
    return {name: each / seconds["read"] for name, each in seconds.items()}


def encoding(spec: str, grads: list[Tensor]) -> Work:
    """A step of encoding, whose state goes on from call to call."""
    member, steps = compressor(spec), count()
    state = member.init(grads[0])

    def work() -> object:
        nonlocal state
        step = next(steps)
        payload, state = member.encode(grads[step % len(grads)], state, Rng(step=step))
        return payload

    for _ in range(SETTLED):
        work()
    return work


def exchanging(spec: str, grads: list[Tensor]) -> Work:
    """A whole exchange of a worker that is alone, whose state goes on from call to call."""
    member, steps = compressor(spec), count()
    state = member.init(grads[0])

    def work() -> object:
        nonlocal state
        step = next(steps)
        done = alone(member.exchange(grads[step % len(grads)], state, Rng(step=step)))
        state = done.state
        return done.update

    work()
    return work


def feedback(numel: int, rounds: int) -> dict[str, float]:
    """Reads of a step with feedback."""
    grads = [torch.randn(numel, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    works: dict[str, Work] = {"read": grads[0].sum}
    for name in FEEDBACK:
        works[f"ef({name}({RATIO}))"] = encoding(f"ef({name}({RATIO}))", grads)
    spec = f"velocity(exact-threshold({RATIO}))"
    works[spec] = encoding(spec, grads)
    spec = f"ef(exact-threshold({RATIO}))"
    works[f"exchange of {spec}"] = exchanging(spec, grads)
    return in_reads(works, rounds)


def ratios(numel: int, rounds: int) -> dict[str, float]:
    """Reads of selecting without feedback."""
    grads = [torch.randn(numel, generator=torch.Generator().manual_seed(0))]
    works: dict[str, Work] = {"read": grads[0].sum}
    for ratio in (0.001, 0.01, 0.1, 0.3):
        works[f"exact-threshold({ratio})"] = encoding(f"exact-threshold({ratio})", grads)
    works[f"sidco-e({RATIO})"] = encoding(f"sidco-e({RATIO})", grads)
    return in_reads(works, rounds)


def small(numel: int, rounds: int) -> dict[str, float]:
    """How many times faster than `torch.topk` of the same vector."""
    generator = torch.Generator().manual_seed(numel)
    signs = torch.randint(0, 2, (numel,), generator=generator) * 2 - 1
    grad = signs * torch.empty(numel).exponential_(generator=generator)
    k = round(RATIO * numel)
    works: dict[str, Work] = {
        "torch.topk": lambda: torch.topk(grad, k),
        "torch.topk of magnitudes": lambda: torch.topk(grad.abs(), k),
    }
    for spec in ("exact-threshold", "sidco-e", "topk", "threshold", "ef(exact-threshold"):
        written = f"{spec}({RATIO})" + ")" * spec.count("(")
        works[written] = encoding(written, [grad])
    works["sidco-e, 3 stages"] = encoding(f"sidco-e({RATIO}, stages=3)", [grad])
    seconds = in_turns(works, rounds, pause=0, repeats=max(1, 1_000_000 // numel))
    return {name: seconds["torch.topk"] / each for name, each in seconds.items()}
