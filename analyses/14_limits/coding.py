"""Encoding and decoding at memory speed: GB of the float32 gradient per second."""

from __future__ import annotations

import torch
from timing import in_turns

import gradstats
from gradstats.compressors import Rng, from_bytes

NUMEL = 25_600_000
# GB/s asked of encode + bytes, and of decode + add
ASKED = {
    "sign": (12, 4),
    "mxfp8": (4, 4),
    "mxfp4": (4, 4),
    "nvfp4": (4, 4),
    "fp8": (4, 4),
    "affine": (4, 4),
    "affine(4)": (4, 4),
    "qsgd": (2.5, 4),
    "terngrad": (None, 4),
    "eden": (1.5, 1.5),
    "co3(fp4)": (1, 1),
}


def laplace(numel: int) -> torch.Tensor:
    """Laplace draws of the scale of a gradient."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (numel,), generator=generator) * 2.0 - 1
    return 1e-3 * signs * torch.empty(numel).exponential_(generator=generator)


def speeds(numel: int, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """GB/s to bytes and from bytes, of each method, beside those of reading and copying."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _speeds(numel, rounds)
    finally:
        torch.set_num_threads(before)


def _speeds(numel: int, rounds: int) -> dict[str, dict[str, float]]:
    grad, out = laplace(numel), torch.zeros(numel)
    cases = {"read": grad.sum, "bfloat16": lambda: grad.bfloat16()}
    sizes = {}
    for spec in ASKED:
        method = gradstats.compressor(spec)
        state, rng = method.init(grad), Rng(0, 0, "grad")

        def encode(method=method, state=state, rng=rng):
            return method.encode(grad, state, rng)[0].to_bytes()

        data = encode()
        sizes[spec] = 8 * len(data) / numel
        cases[f"{spec} encode"] = encode
        cases[f"{spec} decode"] = lambda data=data: from_bytes(data).add_to(out, 0.5)
    seconds = in_turns(cases, rounds)
    speed = {name: 4e-9 * numel / each for name, each in seconds.items()}
    rows = {name: {"encode": speed[name]} for name in ("read", "bfloat16")}
    for spec, bits in sizes.items():
        rows[spec] = {
            "encode": speed[f"{spec} encode"],
            "decode": speed[f"{spec} decode"],
            "bits": bits,
        }
    return rows
