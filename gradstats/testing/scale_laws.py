"""The laws on scale: what is finite stays finite, and a method does not depend on the unit."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gradstats.compressors import Compressor, Memory, Rng
from gradstats.exchange import simulate
from gradstats.testing.comparing import is_finite, within
from gradstats.testing.laws import Facts, encode

STEPS = 2  # so that states take part
# exponents k of 2^k x, for x in [2^-6, 1]: everything that a method may send stays in range
EXPONENTS = {
    torch.float16: (-6, 6),
    torch.bfloat16: (-118, -70, -40, 40, 70, 116),
    torch.float32: (-118, -93, -75, -55, -38, 39, 56, 76, 94, 116),
    torch.float64: (-118, -75, -38, 39, 76, 116),
}
LEAST = 2.0**-146  # an error that float32 cannot avoid where what is sent is subnormal


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
        yield "finite in, finite out", is_finite(payload.decode())
    (alone,) = simulate([compressor.exchange(grad.clone(), compressor.init(grad), rng)])
    yield "finite in, finite update", is_finite(alone.update)


def homogeneity(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """C(2^k x) = 2^k C(x), with one scale for the vector."""
    share = compressor.contract.scaling or 0
    for dtype, exponents in EXPONENTS.items():
        x = grad.to(dtype)
        once = encode(compressor, x.clone(), rng).decode().double()
        for k in exponents:
            scaled = (x.double() * 2.0**k).to(dtype)
            decoded = encode(compressor, scaled, rng).decode().double()
            limit = share * float(once.abs().max()) + LEAST * 2.0**-k
            close = within(decoded * 2.0**-k, once, limit)
            yield f"C(2^{k} x) = 2^{k} C(x) in {dtype}, over 2^{k}", close


def has_no_unit(compressor: Compressor) -> bool:
    """Whether the law of homogeneity binds: absolute sizes do not matter to the method."""
    contract = compressor.contract
    return contract.scaling is not None and contract.update != "majority"  # signs have no scale
