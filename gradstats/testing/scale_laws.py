"""The laws on scale: what is finite stays finite, and a method does not depend on the unit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gradstats.compressors import Compressor, Memory, Rng, Step
from gradstats.exchange import simulate
from gradstats.testing.contract_laws import Facts, encode

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STEPS = 2  # so that states take part
ROWS, COLUMNS = 24, 50
TEAMS = (2, 8)
# exponents k of 2^k x, for x in [2^-6, 1]: everything that a method may send stays in range
EXPONENTS = {
    torch.float16: (-6, 6),
    torch.bfloat16: (-118, -70, -40, 40, 70, 116),
    torch.float32: (-118, -93, -75, -55, -38, 39, 56, 76, 94, 116),
    torch.float64: (-118, -75, -38, 39, 76, 116),
}
LEAST = 2.0**-146  # an error that float32 cannot avoid where what is sent is subnormal


def extremes() -> dict[str, Tensor]:
    """Finite gradients at the ends of the range of every dtype."""
    found: dict[str, Tensor] = {}
    for dtype in DTYPES:
        # float64 is held to the range of float32, in which payloads travel
        limits = torch.finfo(torch.float32 if dtype == torch.float64 else dtype)
        name = str(dtype).removeprefix("torch.")
        for what, grad in _ends(limits):
            found[f"{what} of {name}"] = grad.to(dtype)
    return found


def _ends(limits: torch.finfo) -> Iterator[tuple[str, Tensor]]:
    normal = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(2)).double()
    most, signs = limits.max, torch.tensor([1.0, -1.0]).double().repeat(ROWS, COLUMNS // 2)
    yield "all the largest", torch.full_like(normal, most)
    yield "the largest, of either sign", signs * most
    yield "up to the largest", (normal / normal.abs().max()) * most
    yield "a third of the largest", normal.sign() * (most / 3)
    huge, tiny = normal.clone(), normal.clone()
    huge[3, 7], tiny[3, 7] = most, limits.tiny
    yield "one the largest", huge
    yield "one the least", tiny
    yield "only one the largest", torch.where(huge == most, huge, 0)
    yield "near the least", normal * limits.tiny * 4
    yield "subnormal", normal * limits.tiny * limits.eps * 20
    yield "every scale", normal.sign() * _every_scale(limits).view(ROWS, COLUMNS)
    yield "a single largest", torch.tensor([most]).double()
    yield "a single least", torch.tensor([-limits.tiny]).double()


def _every_scale(limits: torch.finfo) -> Tensor:
    least, most = math.log10(limits.tiny), math.log10(limits.max)
    return torch.logspace(least, most - 1e-3, ROWS * COLUMNS, dtype=torch.float64)


def honesty(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """What is not finite is not hidden."""
    # a random mask may miss a few elements, but not all
    if not compressor.contract.random or not grad.isfinite().any():
        decoded = encode(compressor, grad, rng).decode()
        yield "NaN and inf are not hidden", not decoded.isfinite().all()


def finite(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """What is finite stays finite: decoded, in the update, and a step later."""
    state = compressor.init(grad)
    # what a memory adds to the next gradient may leave the range by itself
    for step in range(1 if isinstance(compressor, Memory) else STEPS):
        payload, state = compressor.encode(grad.clone(), state, replace(rng, step=rng.step + step))
        yield "finite in, finite out", bool(payload.decode().isfinite().all())
    (alone,) = simulate([compressor.exchange(grad.clone(), compressor.init(grad), rng)])
    yield "finite in, finite update", bool(alone.update.isfinite().all())


def moderate() -> dict[str, Tensor]:
    """A matrix whose magnitudes lie in [2^-6, 1]."""
    normal = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))
    magnitudes = (normal.abs() / normal.abs().max()).clamp(min=2.0**-6)
    return {"of magnitudes from 1/64 to 1": normal.sign() * magnitudes}


def homogeneity(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """C(2^k x) = 2^k C(x), with one scale for the vector."""
    share = compressor.contract.scaling
    if share is None or compressor.contract.update == "majority":  # signs have no scale
        return
    for dtype, exponents in EXPONENTS.items():
        x = grad.to(dtype)
        once = encode(compressor, x.clone(), rng).decode().double()
        for k in exponents:
            scaled = (x.double() * 2.0**k).to(dtype)
            found = encode(compressor, scaled, rng).decode().double()
            limit = share * float(once.abs().max()) + LEAST * 2.0**-k
            close = bool(((found * 2.0**-k - once).abs() <= limit).all())
            yield f"C(2^{k} x) = 2^{k} C(x) in {dtype}", close


def near_the_range(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """Workers whose 16-bit gradients are near the end of the range get one finite mean."""
    for workers in TEAMS:
        for what, grads in _teams(grad, workers):
            steps = simulate(
                [
                    compressor.exchange(
                        each, compressor.init(each), replace(rng, worker=worker, workers=workers)
                    )
                    for worker, each in enumerate(grads)
                ]
            )
            updates = [step.update for step in steps]
            where = f"{workers} workers, {what}"
            yield f"the update is finite for {where}", bool(updates[0].isfinite().all())
            same = all(torch.equal(each, updates[0]) for each in updates)
            yield f"all workers get the same update for {where}", same
            yield f"the mean of what was sent for {where}", _is_mean(compressor, steps)


def _teams(grad: Tensor, workers: int) -> Iterator[tuple[str, list[Tensor]]]:
    ones, signs = torch.ones_like(grad), grad.sign()
    for dtype, value in ((torch.float16, 4e4), (torch.float16, 65504.0), (torch.bfloat16, 3e38)):
        name = f"{value:g} in {dtype}"
        yield f"all {name}", [(ones * value).to(dtype) for _ in range(workers)]
        yield f"± {name}", [(signs * value).to(dtype).roll(w) for w in range(workers)]
        yield f"one {name}", [(ones * (1 if w else value)).to(dtype) for w in range(workers)]


def _is_mean(compressor: Compressor, steps: list[Step]) -> bool:
    if compressor.contract.update == "majority":
        return True
    update = steps[0].update
    sent = torch.stack([step.sent.decode() for step in steps]).double()
    most = torch.finfo(update.dtype).max
    inside = (sent.abs() < torch.finfo(steps[0].sent.decode().dtype).max).all(0)
    error = (update.reshape(-1).double() - sent.mean(0).clamp(-most, most)).abs()[inside]
    # where values travel in 16 bits each of them is rounded once more
    return bool((error <= 4 * torch.finfo(update.dtype).eps * sent.abs().mean(0).max()).all())
