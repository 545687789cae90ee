"""Gradients that laws are held on: ordinary, awkward, extreme, and where bounds are reached."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache

import torch
from torch import Tensor

from gradstats.runs.examples import load_example

Gradients = Mapping[str, Tensor]

N = 2400
LONG = 100_000  # elements from which the bytes must follow their formula
LAID_OUT = ("not contiguous", "no dimension", "one element")
EXTREMAL = 512  # elements of a gradient at which a bound is reached
FREQUENT = ("constant", "4/3", "one large of 64, the rest small", "of equal singular values")
RARE = "one large of 512, the rest small"  # in 100 draws a sampler may never take it
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ROWS, COLUMNS = 24, 50


def _normal() -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(0))


@cache
def ordinary() -> Gradients:
    """Gradients as they occur, of one seed."""
    normal = _normal()
    return {
        "normal": normal,
        "real": real(N),
        "two-dimensional": normal.reshape(40, -1),
        "tied": normal.sign() * normal.abs().ceil(),
        "constant": torch.full((N,), 0.7),
    }


@cache
def awkward() -> Gradients:
    """Finite gradients of other dtypes, layouts, sizes and distributions."""
    normal, single = _normal(), torch.zeros(N)
    single[N // 3 + 1] = -2.5  # an odd index, which floats of few bits do not have
    return {
        "float64": normal.double(),
        "bfloat16": normal.bfloat16(),
        "float16": normal.half(),
        "not contiguous": normal.reshape(40, -1).t(),
        "all negative": -normal.abs() - 0.1,
        "heavy-tailed": normal.sign() / (normal.abs() + 1e-4) ** 2,
        "mostly zero": normal * (torch.arange(N) % 200 == 0),
        "one non-zero": single,
        "halfway between floats of 8 bits": torch.full((N,), 1 + 2.0**-8),
        "between the levels of small floats": 1 + torch.arange(N).remainder(97) / 97,
        "every scale": normal.sign() * torch.logspace(-30, 12, N),
        "huge": normal * 1e15,
        "zero": torch.zeros(N),
        "one element": torch.tensor([-3.0]),
        "no dimension": torch.tensor(3.0),
        "empty": torch.zeros(0),
    }


@cache
def unpromised() -> Gradients:
    """Subnormal and nonfinite gradients, of which no bound is promised."""
    return {"subnormal": _normal() * 1e-41, **nonfinite()}


@cache
def nonfinite() -> Gradients:
    """Gradients with NaN or inf."""
    holed = _normal()
    holed[[5, 77]] = torch.nan
    return {
        "two NaN": holed,
        "two infinite": holed.nan_to_num(-torch.inf),
        "all NaN": torch.full((N,), torch.nan),
        "all infinite": torch.full((N,), torch.inf),
    }


@cache
def real(n: int) -> Tensor:
    """The first n elements of the gradient of a ResNet-20 that comes with the package."""
    _, grad = next(load_example("resnet20").gradients())
    return grad[:n].float()


@cache
def long() -> Gradients:
    """Gradients long enough for their bytes to follow a formula."""
    normal = torch.randn(LONG, generator=torch.Generator().manual_seed(1))
    matrix = normal.view(250, -1)
    named = {"normal": normal, "real": real(LONG), "matrix": matrix}
    return {f"{name}, {LONG:,} elements": grad for name, grad in named.items()}


@cache
def extremal() -> Gradients:
    """Gradients at which the bounds of published methods are reached, or nearly.

    An average gradient is far from any bound: a variance that is declared at half its value holds
    there. The constant is the worst for sparsifiers, sampling and levels that are wider than the
    elements; x = 4/3 of a power of 2 for exponents, where (x - 1)(2 - x)/x² is 1/8; one element
    of 1 and the rest 1/(√B + 1) for a scale that is the maximum, where max|x| ‖x‖₁/‖x‖² is
    (√B + 1)/2; elements midway between two levels for what rounds to the nearest.
    """
    flat = {"constant": 0.7, "4/3": 4 / 3, "just below a power of 2": 2 - 2.0**-6}
    grads = {name: torch.full((EXTREMAL,), value) for name, value in flat.items()}
    for every in (64, EXTREMAL):
        name = f"one large of {every}, the rest small"
        grads[name] = _peaks(every, 1.0, 1 / (math.sqrt(every) + 1))
    grads["a sixteenth of the largest"] = _peaks(32, 1.0, 1 / 16)
    grads["midway in 3 bits of mantissa"] = _peaks(EXTREMAL, 1.75, 17 / 16)
    grads["midway in 2 bits of mantissa"] = _peaks(EXTREMAL, 1.75, 9 / 8)
    grads["midway in 1 bit of mantissa"] = _peaks(16, 6.0, 5.0)
    normal = torch.randn(32, 32, generator=torch.Generator().manual_seed(4))
    grads["of equal singular values"] = torch.linalg.qr(normal).Q[:16].contiguous()
    return grads


def _peaks(every: int, peak: float, rest: float) -> Tensor:
    grad = torch.full((EXTREMAL,), rest)
    grad[every // 2 :: every] = peak
    return grad


@cache
def extremes() -> Gradients:
    """Finite gradients at the ends of the range of every dtype."""
    grads: dict[str, Tensor] = {}
    for dtype in DTYPES:
        # float64 is held to the range of float32, in which payloads travel
        limits = torch.finfo(torch.float32 if dtype == torch.float64 else dtype)
        name = str(dtype).removeprefix("torch.")
        for what, grad in _ends(limits):
            grads[f"{what} of {name}"] = grad.to(dtype)
    return grads


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


@cache
def moderate() -> Gradients:
    """A matrix whose magnitudes lie in [2^-6, 1]."""
    normal = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))
    magnitudes = (normal.abs() / normal.abs().max()).clamp(min=2.0**-6)
    return {"of magnitudes from 1/64 to 1": normal.sign() * magnitudes}
