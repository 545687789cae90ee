"""Cost against size: the fixed cost of a call, the cost of an element, and the peak of memory."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from coding import laplace
from timing import in_turns

import gradstats
from gradstats.compressors import Rng

SPECS = (
    *("none", "bf16", "sign", "mxfp8", "mxfp4", "nvfp4", "fp8", "affine", "qsgd", "eden", "co3"),
    *("exact-threshold(0.01)", "sidco-e(0.01)", "topk(0.01)", "ef(exact-threshold(0.01))"),
)
LARGEST = 10**8
ROUNDS = {10**3: 10, 10**4: 20, 10**5: 20, 10**6: 10, 10**7: 5, 10**8: 3}
MEMORY = 25_600_000  # elements
C = ctypes.CDLL(None)  # the C library
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def costs(threads: int, largest: int = LARGEST) -> dict[str, Any]:
    """Seconds to encode and write bytes, by size and method, with the two numbers of a line.

    The fixed cost is that of 1,000 elements; an element costs the difference between the two
    largest sizes over the difference of their elements.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sizes = {
            n: in_turns(_cases(laplace(n)), r, pause=0, repeats=max(1, 10**5 // n))
            for n, r in ROUNDS.items()
            if n <= largest
        }
    finally:
        torch.set_num_threads(before)
    fewer, most = sorted(sizes)[-2:]
    return {
        name: {
            "seconds": {str(n): each[name] for n, each in sizes.items()},
            "fixed_us": 1e6 * sizes[min(sizes)][name],
            "ns_per_element": 1e9 * (sizes[most][name] - sizes[fewer][name]) / (most - fewer),
        }
        for name in ("read", *SPECS)
    }


def _cases(grad: torch.Tensor) -> dict[str, Any]:
    cases: dict[str, Any] = {"read": grad.sum}
    for spec in SPECS:
        cases[spec] = encoding(spec, grad)
    return cases


def encoding(spec: str, grad: torch.Tensor) -> Any:
    """A call that encodes once more and writes bytes, from the state that the last call left."""
    method = gradstats.compressor(spec)
    state, rng = [method.init(grad)], Rng(0, 0, "grad")

    def encode() -> bytes:
        payload, state[0] = method.encode(grad, state[0], rng)
        return payload.to_bytes()

    return encode


def peaks(numel: int = MEMORY) -> dict[str, float]:
    """Most memory that encoding takes beside gradient and state, over the gradient's bytes."""
    grad, over = laplace(numel), {}
    for spec in SPECS:
        encode = encoding(spec, grad)
        encode()
        C.malloc_trim(0)  # what is free goes back, or the next call would find it
        CLEAR.write_text("5")  # the peak begins anew
        start = _kilobytes("VmRSS")
        encode()
        over[spec] = 1024 * (_kilobytes("VmHWM") - start) / grad.nbytes
    return over


def _kilobytes(name: str) -> int:
    (line,) = (each for each in STATUS.read_text().splitlines() if each.startswith(f"{name}:"))
    return int(line.split()[1])
