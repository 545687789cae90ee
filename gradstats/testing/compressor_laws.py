"""The laws that every compressor obeys; public as `gradstats.testing.check_compressor`."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from gradstats.compressors import (
    Compressor,
    ErrorFeedback,
    Memory,
    PayloadError,
    Rng,
    from_bytes,
)
from gradstats.exchange import simulate
from gradstats.runs.examples import load_example
from gradstats.testing import memory_laws
from gradstats.testing.contract_laws import (
    FREQUENT,
    RARE,
    Facts,
    contraction,
    encode,
    expectation,
    extremal,
    size,
    variance,
)
from gradstats.testing.scale_laws import (
    extremes,
    finite,
    homogeneity,
    honesty,
    moderate,
    near_the_range,
)

N = 2400
LONG = 100_000  # elements from which the bytes must follow their formula
WORKERS = 3
MARK = 1_592_653_589
LAID_OUT = ("not contiguous", "no dimension", "one element")

Check = Callable[[Compressor, Tensor, Rng], Facts]


def check_compressor(
    compressor: Compressor, *, rng: Rng | None = None, fresh_process: bool = True
) -> None:
    """Hold a compressor to what `Compressor` and its own contract promise.

    One step is checked on ordinary, real and awkward gradients: every dtype, two dimensions,
    strides, all negative, tied, constant, one non-zero, zero, one element, none, every scale,
    subnormal, NaN, infinite. Bounds are also checked where published ones are reached: constants,
    4/3 of a power of 2, one large element among small ones, elements midway between levels, equal
    singular values. Memory and several workers are checked on ordinary and real gradients. What
    holds in expectation is checked over 100 draws of the random numbers: a bound fails when the
    mean is 5 standard errors above it, unbiasedness when the mean is 5 standard errors off along
    the gradient, its signs or all ones, or its squared distance is 5 standard deviations more than
    the variance explains. Bytes are compared with their formula at 10⁵ elements. At the ends
    of the range of every dtype what is finite stays finite; a factor that is a power of 2 passes
    through, but for `scaling` of the contract, where what is sent is neither subnormal nor beyond
    the range of float32.

    Args:
        compressor: an instance of anyone's class.
        rng: where the random numbers start; other steps and workers are derived from it.
        fresh_process: also decode in a process that knows nothing but the bytes (two seconds).

    Raises:
        AssertionError: naming the compressor, the gradient and the first law that it breaks.

    Example:
        >>> from gradstats.compressors import TopK
        >>> check_compressor(TopK(0.01))
    """
    rng = Rng() if rng is None else rng
    for gradients, checks in plan():
        for name, grad in gradients.items():
            for check in checks:
                _hold(compressor, name, check(compressor, grad.clone(), rng))
    if fresh_process:
        _hold(compressor, ", ".join(_long()), _fresh_process(compressor, _long(), rng))


def plan() -> tuple[tuple[dict[str, Tensor], tuple[Check, ...]], ...]:
    """Gradients by name, and the laws that are held on each of them."""
    ordinary, awkward, tiny, nonfinite = _gradients()
    bounds = extremal()
    # in heavy tails a mean over 100 draws says nothing of the expectation
    random = {
        "sorted": ordinary["normal"].sort().values,
        "tied": ordinary["tied"],
        "two-dimensional": ordinary["two-dimensional"],
        **{name: bounds[name] for name in FREQUENT},
    }
    return (
        (ordinary | awkward | tiny | nonfinite, (_bytes, _step, _randomness)),
        (ordinary | awkward | bounds, (contraction,)),
        (ordinary, (_separate_states, _feedback, _exchange)),
        (ordinary | {name: awkward[name] for name in LAID_OUT}, memory_laws.LAWS),
        (random, (expectation,)),
        ({RARE: bounds[RARE]}, (variance,)),
        (_long(), (size, contraction)),
        (nonfinite, (honesty,)),
        (extremes(), (finite,)),
        (moderate(), (homogeneity, near_the_range)),
    )


def _hold(compressor: Compressor, gradient: str, facts: Facts) -> None:
    where = f"{compressor} must obey, on the gradient {gradient!r}"
    try:
        for fact, holds in facts:
            if not holds:
                raise AssertionError(f"{where}: {fact}")
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise AssertionError(f"{where}: no call fails, got {error!r}") from error


def _gradients() -> tuple[dict[str, Tensor], ...]:
    normal = torch.randn(N, generator=torch.Generator().manual_seed(0))
    single, holed = torch.zeros(N), normal.clone()
    single[N // 3 + 1] = -2.5  # an odd place, which floats of few bits do not have
    holed[[5, 77]] = torch.nan
    ordinary = {
        "normal": normal,
        "real": _real(N),
        "two-dimensional": normal.reshape(40, -1),
        "tied": normal.sign() * normal.abs().ceil(),
        "constant": torch.full((N,), 0.7),
    }
    awkward = {
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
    tiny = {"subnormal": normal * 1e-41}  # no format promises anything here
    nonfinite = {
        "two NaN": holed,
        "two infinite": holed.nan_to_num(-torch.inf),
        "all NaN": torch.full((N,), torch.nan),
        "all infinite": torch.full((N,), torch.inf),
    }
    return ordinary, awkward, tiny, nonfinite


@cache
def _real(n: int) -> Tensor:
    """The first n elements of the gradient of a ResNet-20 that comes with the package."""
    _, grad = next(load_example("resnet20").gradients())
    return grad[:n].float()


def _long() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(LONG, generator=generator)
    return {"normal": normal, "real": _real(LONG), "matrix": normal.view(250, -1)}


def _step(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    before = grad.clone()
    payload = encode(compressor, grad, rng)
    yield "the gradient is not written", _same(grad, before)
    decoded = payload.decode().clone()
    yield "decode is flat, as long as the gradient", decoded.shape == (grad.numel(),)
    yield "decode is floating-point", decoded.is_floating_point()
    yield "the payload counts the gradient's elements", payload.numel == grad.numel()
    yield "it sends at most every element", 0 <= payload.count <= payload.numel
    grad.fill_(12.5)
    yield "the payload owns its values", _same(payload.decode(), decoded)
    out = torch.zeros_like(decoded)
    payload.add_to(out)
    yield "add_to is decode", _equal(out, decoded)
    out = torch.zeros_like(decoded, dtype=torch.float64)
    payload.add_to(out, 0.5)
    yield "add_to takes a weight", _equal(out, 0.5 * decoded.double())


def _bytes(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    payload = encode(compressor, grad, rng)
    data = payload.to_bytes()
    yield "nbytes is the length of the bytes", payload.nbytes == len(data)
    try:
        received = from_bytes(data)
    except PayloadError as error:
        yield f"from_bytes reads the bytes, got {error}", False
        return
    yield "the bytes alone decode to the same", _same(received.decode(), payload.decode())
    yield "the bytes tell what was sent", received.count == payload.count
    yield "they can be sent on", received.to_bytes() == data


def _randomness(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    with _marked_generators() as untouched:
        data = encode(compressor, grad, rng).to_bytes()
        yield "global generators are untouched", untouched()
    yield "the same rng gives the same bytes", encode(compressor, grad, rng).to_bytes() == data
    if not compressor.contract.random:
        payload, _ = compressor.encode(grad, compressor.init(grad))
        yield "what is not random needs no rng", payload.to_bytes() == data


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


def _fresh_process(compressor: Compressor, grads: dict[str, Tensor], rng: Rng) -> Facts:
    payloads = [encode(compressor, grad, rng) for grad in grads.values()]
    child = subprocess.run(
        [sys.executable, "-c", DECODE],
        input="\n".join(payload.to_bytes().hex() for payload in payloads),
        capture_output=True,
        text=True,
        check=False,
    )
    here = [hashlib.sha256(p.decode().numpy().tobytes()).hexdigest() for p in payloads]
    yield "a fresh process decodes the same", child.stdout.split() == here


def _separate_states(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    other = grad.reshape(-1).flip(0) * 3
    alone = [_two_steps(compressor, [each], rng)[0] for each in (grad, other)]
    yield "tensors do not share a state", _two_steps(compressor, [grad, other], rng) == alone


def _two_steps(compressor: Compressor, grads: list[Tensor], rng: Rng) -> list[list[bytes]]:
    states = [compressor.init(grad) for grad in grads]
    sent: list[list[bytes]] = [[] for _ in grads]
    for step in range(2):
        for i, grad in enumerate(grads):
            payload, states[i] = compressor.encode(grad, states[i], replace(rng, step=step))
            sent[i].append(payload.to_bytes())
    return sent


def _feedback(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    if isinstance(compressor, Memory) and not isinstance(compressor, ErrorFeedback):
        return  # it conserves something else
    memory = compressor if isinstance(compressor, ErrorFeedback) else ErrorFeedback(compressor)
    grads = [(grad * (step + 1)).double().roll(step) for step in range(4)]
    state = memory.init(grads[0])
    sent = torch.zeros(grad.numel(), dtype=torch.float64)
    forgotten = torch.zeros_like(sent)
    for step, each in enumerate(grads):
        forgotten += (1 - memory.gamma) * state.residual.reshape(-1)
        payload, state = memory.encode(each, state, replace(rng, step=step))
        payload.add_to(sent)
    total = torch.stack(grads).sum(0).reshape(-1)
    yield (
        "what was sent, forgotten and left over adds up to the gradients",
        _close(sent + forgotten + state.residual.reshape(-1), total, 1e-12),
    )


def _exchange(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    grads = [grad.roll(worker) * (worker + 1) for worker in range(WORKERS)]
    steps = simulate(
        [
            compressor.exchange(
                each, compressor.init(each), replace(rng, worker=worker, workers=WORKERS)
            )
            for worker, each in enumerate(grads)
        ]
    )
    updates, sent = [step.update for step in steps], [step.sent.decode() for step in steps]
    yield "all workers get the same update", all(_same(each, updates[0]) for each in updates)
    yield (
        "the update is like the gradient",
        updates[0].shape == grad.shape and updates[0].dtype == grad.dtype,
    )
    precision = max(torch.finfo(each.dtype).eps for each in (grad, sent[0]))
    mean = torch.stack(sent).double().mean(0)
    if compressor.contract.update == "majority":
        mean = mean.sign()
    yield (
        "the update is the mean of what was sent",
        _close(updates[0].reshape(-1).double(), mean, 4 * precision),
    )


def _same(actual: Tensor, expected: Tensor) -> bool:
    """Equality bit by bit, so that NaN equals itself."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    if not actual.numel():
        return True
    pairs = (each.reshape(-1).contiguous().view(torch.uint8) for each in (actual, expected))
    return torch.equal(*pairs)


def _equal(actual: Tensor, expected: Tensor) -> bool:
    """Equality of numbers: 0 equals -0, and NaN equals itself."""
    return bool(((actual == expected) | (actual.isnan() & expected.isnan())).all())


def _close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool(((actual - expected).abs() <= tolerance * expected.abs().max()).all())
