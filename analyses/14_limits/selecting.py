"""What selecting costs: feedback, large ratios and small vectors, as ratios inside one run.

Every group's works run by turns, and each is quoted by its lower quartile. A *read* is
`torch.sum` of the same vector in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from gradstats.compressors import Rng, compressor
from gradstats.compressors.rounds import alone

Work = Callable[[], object]
RATIO = 0.01
FEEDBACK = ("exact-threshold", "threshold", "sidco-e", "topk")
SETTLED = 12  # steps after which adaptive stages and memories are settled


def quartiles(works: dict[str, Work], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Lower quartile of the seconds of each work; they run by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            for _ in range(repeats):
                work()
            if turn:
                seconds[name].append((time.perf_counter() - start) / repeats)
    return {name: sorted(each)[len(each) // 4] for name, each in seconds.items()}


def over(base: str, seconds: dict[str, float]) -> dict[str, float]:
    """Each work's time over that of the base."""
    return {name: round(each / seconds[base], 2) for name, each in seconds.items()}


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
    return over("read", quartiles(works, rounds))


def ratios(numel: int, rounds: int) -> dict[str, float]:
    """Reads of selecting without feedback."""
    grads = [torch.randn(numel, generator=torch.Generator().manual_seed(0))]
    works: dict[str, Work] = {"read": grads[0].sum}
    for ratio in (0.001, 0.01, 0.1, 0.3):
        works[f"exact-threshold({ratio})"] = encoding(f"exact-threshold({ratio})", grads)
    works[f"sidco-e({RATIO})"] = encoding(f"sidco-e({RATIO})", grads)
    return over("read", quartiles(works, rounds))


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
    seconds = quartiles(works, rounds, repeats=max(1, 1_000_000 // numel))
    faster = {name: round(seconds["torch.topk"] / each, 2) for name, each in seconds.items()}
    return {"microseconds of torch.topk": round(1e6 * seconds["torch.topk"], 1), **faster}


def main() -> None:
    """Print the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--numel", type=int, default=10_000_000)
    parser.add_argument("--only", choices=("feedback", "ratios", "small"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, object] = {"threads": options.threads}
    if options.only in (None, "feedback"):
        report["feedback, reads"] = feedback(options.numel, options.rounds)
    if options.only in (None, "ratios"):
        report["selecting, reads"] = ratios(options.numel, options.rounds)
    if options.only in (None, "small"):
        for numel in (10_000, 100_000):
            report[f"{numel:,} elements, times torch.topk"] = small(numel, options.rounds)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
