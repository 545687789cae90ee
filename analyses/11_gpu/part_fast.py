"""What every method costs, next to the bytes that have to move and to torch.topk."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from where import Checks, LeftOut, Where

import gradstats
from gradstats.compressors import Rng, compressor

SIZES, QUICK_SIZES = (25_600_000, 100_000_000), (20_000,)
RATIOS = (0.01, 0.001)
WARM, ROUNDS = 3, 20
WAITING = ("Synchronize", "EventQuery")  # in the name of a call of the CUDA runtime
Work = Callable[[], Any]


def checks(where: Where) -> Checks:
    """Every method at each size, dtype and ratio; the copy, which others are held to, first."""
    measured: dict[Any, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for n in QUICK_SIZES if where.quick else SIZES:
            label = f"{n:,} {str(dtype).removeprefix('torch.')}"
            vector = Vector(where, n, dtype, measured)
            for name in ("copy", "sum"):
                yield f"{label}: {name}", partial(vector.measure, name, None)
            for ratio in RATIOS:
                for name in SELECTIONS:
                    yield f"{label}: {name}, {ratio}", partial(vector.measure, name, ratio)
            for name in OTHERS:
                yield f"{label}: {name}", partial(vector.measure, name, None)


# method -> reads and writes of whole vectors that can't be avoided; what is sent is little beside
SELECTIONS = {
    "torch.topk": (1, 0),
    "exact-threshold": (1, 0),
    "sidco-e": (2, 0),
    "sidco-e(stages=0)": (2, 0),
    "ef(exact-threshold)": (2, 1),
}
OTHERS = {
    "summarize": (1, 0),
    "qsgd(bits=4)": (1, 0),
    "mxfp8": (1, 0),
    "nvfp4": (1, 0),
    "eden": (1, 0),
    "sign": (1, 0),
    "qsgd(bits=4), decode + add": (1, 1),
    "mxfp8, decode + add": (1, 1),
}


class Vector:
    """A heavy-tailed gradient on the device, made when it is first needed.

    Args:
        where: device and time.
        n: number of elements.
        dtype: of the elements.
        measured: milliseconds by (n, dtype, method, ratio), of all vectors.
    """

    def __init__(
        self, where: Where, n: int, dtype: torch.dtype, measured: dict[Any, float]
    ) -> None:
        self.where, self.n, self.dtype, self.measured = where, n, dtype, measured
        self.values = torch.empty(0)

    def measure(self, name: str, ratio: float | None) -> dict[str, Any]:
        """Milliseconds, and what they are compared with."""
        if self.where.seconds < 2:
            raise LeftOut("out of time")
        if not len(self.values):
            generator = torch.Generator(self.where.device).manual_seed(0)
            normal = torch.randn(self.n, generator=generator, device=self.where.device)
            self.values = (normal**3).to(self.dtype)
        work = self.work(name, ratio)
        times = sorted(seconds(self.where, work, self.where.quick))
        ms = 1e3 * times[len(times) // 4]
        self.measured[self.n, self.dtype, name, ratio] = ms
        found = {"ms": ms, "spread": times[3 * len(times) // 4] / times[len(times) // 4] - 1}
        found |= {"rounds": len(times), **self._shares(name, ratio, ms)}
        return found | (transfers(work) if self.where.on_gpu else {})

    def _shares(self, name: str, ratio: float | None, ms: float) -> dict[str, float]:
        """Of the copy's bandwidth for the bytes that must move, and of torch.topk's time."""
        passes = {"copy": 2, "sum": 1}.get(name)
        reads, writes = {**SELECTIONS, **OTHERS}.get(name, (passes, 0))
        wide = 4 if "decode" in name else self.dtype.itemsize  # of what is added to
        moved = (reads + writes) * self.n * wide
        found = {"gb_per_s": moved / ms / 1e6}
        copy = self.measured.get((self.n, self.dtype, "copy", None))
        if copy:
            found["share_of_copy"] = moved / ms / (2 * self.n * self.dtype.itemsize / copy)
        topk = self.measured.get((self.n, self.dtype, "torch.topk", ratio or RATIOS[0]))
        if topk:
            found["of_topk"] = ms / topk
        return found

    def work(self, name: str, ratio: float | None) -> Work:
        """One round."""
        values = self.values
        if name == "copy":
            other = torch.empty_like(values)
            return lambda: other.copy_(values)
        if name == "sum":
            return values.sum
        if name == "torch.topk":
            k = max(1, round((ratio or RATIOS[0]) * self.n))
            return lambda: values.abs().topk(k, sorted=False)
        if name == "summarize":
            return lambda: gradstats.summarize(values)
        spec = name.removesuffix(", decode + add")
        return adding(spec, values) if name != spec else encoding(spec, ratio, values)


def encoding(spec: str, ratio: float | None, values: Tensor) -> Work:
    """Encode the next step: memories go on, so that feedback is as it is in a training."""
    if ratio is not None:
        inner = spec.removeprefix("ef(").removesuffix(")") if spec.startswith("ef(") else spec
        name, _, options = inner.removesuffix(")").partition("(")
        inner = f"{name}({ratio}{', ' if options else ''}{options})"
        spec = f"ef({inner})" if spec.startswith("ef(") else inner
    member = compressor(spec)
    kept = {"state": member.init(values), "step": 0}

    def work() -> None:
        rng = Rng(step=kept["step"])
        payload, kept["state"] = member.encode(values, kept["state"], rng)
        kept["step"] += 1
        del payload

    return work


def adding(spec: str, values: Tensor) -> Work:
    """Add one decoded payload to a vector."""
    member, out = compressor(spec), torch.zeros(len(values), device=values.device)
    payload, _ = member.encode(values, member.init(values), Rng())
    return lambda: payload.add_to(out)


def seconds(where: Where, work: Work, quick: bool) -> list[float]:
    """Of each round, by events on a GPU; fewer rounds where they are long."""
    took = []
    for _ in range(1 if quick else WARM):
        start = time.perf_counter()
        work()
        where.finish()
        took.append(time.perf_counter() - start)
    rounds = 3 if quick else max(3, min(ROUNDS, int(2 / max(took[-1], 1e-6))))
    return [one_round(where, work) for _ in range(rounds)]


def one_round(where: Where, work: Work) -> float:
    """Seconds of one call."""
    if not where.on_gpu:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def transfers(work: Work) -> dict[str, int]:
    """How often a round waits for the device, and copies to and from the host."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
    events = profiler.events()
    names = np.array([event.name for event in events])
    waits = sum(any(part in name for part in WAITING) for name in names)
    return {
        "synchronisations": max(0, int(waits) - 1),  # the profiler's own, at its end
        "to_host": int(sum("DtoH" in name for name in names)),
        "from_host": int(sum("HtoD" in name for name in names)),
    }
