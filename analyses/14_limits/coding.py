"""Encoding and decoding at memory speed: GB of the float32 gradient per second."""

from __future__ import annotations

import torch
from timing import Work, in_turns

import gradstats
from gradstats.compressors import Rng, from_bytes

NUMEL = 25_600_000
WAYS = ("encode", "encode to bytes", "add", "add from bytes", "once")


def _asked(encode: float | None, decode: float) -> dict[str, float]:
    """Limits, which are those of the whole way."""
    return {"add from bytes": decode} | ({"encode to bytes": encode} if encode else {})


ASKED = {
    "sign": _asked(12, 4),
    "mxfp8": _asked(4, 4),
    "mxfp4": _asked(4, 4),
    "nvfp4": _asked(4, 4),
    "fp8": _asked(4, 4),
    "affine": _asked(4, 4),
    "affine(4)": _asked(4, 4),
    "qsgd": _asked(2.5, 4),
    "terngrad": _asked(None, 4),
    "eden": _asked(1.5, 1.5),
    "co3(fp4)": _asked(1, 1),
}


def laplace(numel: int) -> torch.Tensor:
    """Laplace draws of the scale of a gradient."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (numel,), generator=generator) * 2.0 - 1
    return 1e-3 * signs * torch.empty(numel).exponential_(generator=generator)


def speeds(numel: int, rounds: int) -> dict[str, dict[str, float]]:
    """GB/s of each method, one of `WAYS` each, beside those of reading and of a cast."""
    grad, out = laplace(numel), torch.zeros(numel)
    cases: dict[str, dict[str, Work]] = {
        "read": {"once": grad.sum},
        "torch's cast to bfloat16": {"once": grad.bfloat16},
    }
    cases |= {spec: _ways(spec, grad, out) for spec in ASKED}
    flat = {(name, way): work for name, ways in cases.items() for way, work in ways.items()}
    seconds = in_turns(flat, rounds)
    return {
        name: {way: 4e-9 * numel / seconds[name, way] for way in ways}
        for name, ways in cases.items()
    }


def _ways(spec: str, grad: torch.Tensor, out: torch.Tensor) -> dict[str, Work]:
    method, rng = gradstats.compressor(spec), Rng(0, 0, "grad")
    state = method.init(grad)

    def encoded() -> gradstats.compressors.Payload:
        return method.encode(grad, state, rng)[0]

    payload = encoded()
    data = payload.to_bytes()
    return {
        "encode": encoded,
        "encode to bytes": lambda: encoded().to_bytes(),
        "add": lambda: payload.add_to(out, 0.5),
        "add from bytes": lambda: from_bytes(data).add_to(out, 0.5),
    }
