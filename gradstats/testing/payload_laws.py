"""The laws on one message: what it owns, its bytes, its randomness."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from gradstats.compressors import Compressor, PayloadError, Rng, from_bytes
from gradstats.testing.comparing import HOLDS, Evidence, equal, equals, same
from gradstats.testing.laws import Facts, encode

MARK = 1_592_653_589


def ownership(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """The gradient is only read, and the payload does not change with it."""
    before = grad.clone()
    payload = encode(compressor, grad, rng)
    yield "the gradient is not written", same(grad, before)
    decoded = payload.decode().clone()
    grad.fill_(12.5)
    yield "the payload owns its values", same(payload.decode(), decoded)


def payload(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """What a payload decodes to, counts and adds."""
    payload = encode(compressor, grad, rng)
    decoded = payload.decode().clone()
    yield "decode is flat, as long as the gradient", equals(tuple(decoded.shape), (grad.numel(),))
    kind = f"got {decoded.dtype}"
    yield "decode is floating-point", Evidence(decoded.is_floating_point(), kind)
    yield "the payload counts the gradient's elements", equals(payload.numel, grad.numel())
    count = f"got {payload.count}, at most {payload.numel}"
    inside = 0 <= payload.count <= payload.numel
    yield "it sends at most every element", Evidence(inside, count)
    out = torch.zeros_like(decoded)
    payload.add_to(out)
    yield "add_to is decode", equal(out, decoded)
    out = torch.zeros_like(decoded, dtype=torch.float64)
    payload.add_to(out, 0.5)
    yield "add_to takes a weight", equal(out, 0.5 * decoded.double())


def readable(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """The bytes alone make the payload again."""
    payload = encode(compressor, grad, rng)
    data = payload.to_bytes()
    yield "nbytes is the length of the bytes", equals(payload.nbytes, len(data))
    try:
        received = from_bytes(data)
    except PayloadError as error:
        yield f"from_bytes reads the bytes, got {error}", False
        return
    yield "the bytes alone decode to the same", same(received.decode(), payload.decode())
    yield "the bytes tell what was sent", equals(received.count, payload.count)
    yield "they can be sent on", _alike(received.to_bytes(), data)


def randomness(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """Random numbers come from the rng alone."""
    with _marked_generators() as untouched:
        data = encode(compressor, grad, rng).to_bytes()
        yield "global generators are untouched", untouched()
    again = encode(compressor, grad, rng).to_bytes()
    yield "the same rng gives the same bytes", _alike(again, data)
    if not compressor.contract.random:
        payload, _ = compressor.encode(grad, compressor.init(grad))
        yield "what is not random needs no rng", _alike(payload.to_bytes(), data)


def _alike(actual: bytes, expected: bytes) -> Evidence:
    """Equality of bytes, with the first that differs."""
    if actual == expected:
        return HOLDS
    pairs = enumerate(zip(actual, expected, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(actual), len(expected)))
    sizes = f"{len(actual)} bytes, expected {len(expected)}"
    return Evidence(False, f"got {sizes}; they differ from byte {first}")


@contextmanager
def _marked_generators() -> Iterator[Callable[[], bool]]:
    """Global generators in a state that nobody seeds by chance; restored afterwards."""
    # the legacy generator is the one that must not change, so it has to be read
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(MARK)
        np.random.seed(MARK)  # noqa: NPY002
        torch.manual_seed(MARK)
        before = _generators()
        try:
            yield lambda: _generators() == before
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def _generators() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    legacy = (kind, np.asarray(keys).tobytes(), *rest)
    return random.getstate(), legacy, torch.get_rng_state().numpy().tobytes()


DECODE = """
import hashlib, sys
from gradstats.compressors import from_bytes
for line in sys.stdin:
    decoded = from_bytes(bytes.fromhex(line)).decode()
    print(hashlib.sha256(decoded.numpy().tobytes()).hexdigest())
"""


def fresh_process(compressor: Compressor, grads: tuple[Tensor, ...], rng: Rng) -> bool:
    """Whether a process that knows nothing but the bytes decodes the same."""
    payloads = [encode(compressor, grad.clone(), rng) for grad in grads]
    child = subprocess.run(
        [sys.executable, "-c", DECODE],
        input="\n".join(payload.to_bytes().hex() for payload in payloads),
        capture_output=True,
        text=True,
        check=False,
    )
    own = [hashlib.sha256(p.decode().numpy().tobytes()).hexdigest() for p in payloads]
    return child.stdout.split() == own
