"""Are the results of the GPU those of the CPU?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from where import Checks, LeftOut, Where

from gradstats import kernels
from gradstats.compressors import SUPPORTED, Compressor, Rng, compressor, compressors, from_bytes
from gradstats.kernels import (
    coding,
    coding_eager,
    counting_eager,
    forms,
    rotating,
    rotating_eager,
    selecting_eager,
)
from gradstats.kernels.coding_eager import Rounding
from gradstats.rng import Stream

SIZES = (0, 1, 31, 33, 65_537, 10**6 + 1)
QUICK_SIZES = (0, 1, 300)
LARGE = 2**25  # from here on one setting of each kernel
BEYOND = LARGE + 3  # more elements than float32 counts in steps of one
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
LEVELS = (3, 16, 256)
KEY = (0x12345678, 0x9ABCDEF0)
STEPS, QUICK_STEPS = 3, 2  # a state takes part from the second on
COMPOSITIONS = (
    "exact-threshold(0.01) | mxfp4 | ans",
    "randomk(0.01) | qsgd(bits=4)",
    "topk(0.01) | sign | golomb",
    "qsgd(bits=4) | ans",
    "eden | ans",
)
# sums of floats in another order than on the CPU, and how far what is sent may then be off
REORDERED = {
    "sidco-e": ("the mean of magnitudes", 1e-3),
    "sidco-gp": ("two moments of magnitudes", 1e-3),
    "sidco-p": ("the mean of magnitudes and of their logarithms", 1e-3),
    "sign": ("the mean of magnitudes", 1e-6),
    "qsgd": ("norms", 1e-2),
    "eden": ("norms and scalar products", 1e-2),
    "co3": ("moments of the fit", 1e-2),
    "powersgd": ("matrix products and QR", 1e-4),
}


def checks(where: Where) -> Checks:
    """Random numbers, supported compressors, kernels by dtype, then very long vectors."""
    loops = loops_of(where)
    yield "philox", partial(same_random_numbers, where)
    yield "rotate", partial(same_rotation, where)
    for name in SUPPORTED:
        yield f"compressor {name}", partial(same_payloads, where, name)
    for spec in COMPOSITIONS:
        yield f"compressor {spec}", partial(same_payloads, where, spec)
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for kernel, compare in KERNELS.items():
            yield f"{kernel}, {name}", partial(kernel_check, where, loops, compare, dtype)
    for kernel, compare in () if where.quick else KERNELS.items():
        name = f"{kernel}, {BEYOND:,} elements"
        yield name, partial(kernel_check, where, loops, compare, torch.float32, (BEYOND,))


def loops_of(where: Where) -> Any:
    """The loops to check: what the library takes on a GPU; on a CPU triton's, interpreted."""
    if where.on_gpu or not forms.HAVE_TRITON:
        return SimpleNamespace(
            form="triton" if forms.HAVE_TRITON else "torch",
            count=kernels.count,
            compact=kernels.compact,
            largest=kernels.largest,
            quantize=coding._form(torch.empty(0, device=where.device)).quantize,
            add_dequantized=coding.add_dequantized,
        )
    from gradstats.kernels import coding_cuda, counting_cuda, selecting_cuda

    return SimpleNamespace(
        form="triton, interpreted",
        count=counting_cuda.count,
        compact=selecting_cuda.compact,
        largest=selecting_cuda.largest,
        quantize=coding_cuda.quantize,
        add_dequantized=coding_cuda.add_dequantized,
    )


def kernel_check(
    where: Where,
    loops: Any,
    compare: Callable[..., float],
    dtype: torch.dtype,
    sizes: Sequence[int] = SIZES,
) -> dict[str, Any]:
    """Every size and content; the worst relative difference where sums may differ."""
    worst, cases, largest = 0.0, 0, 0
    for n in QUICK_SIZES if where.quick else sizes:
        largest = n
        for content, values in vectors(n, dtype):
            if where.seconds < 0:
                raise LeftOut(f"out of time after {cases} cases, all of them right")
            try:
                worst = max(worst, compare(loops, values, where.device))
            except AssertionError as error:
                raise AssertionError(f"n = {n}, {content}: {error}") from error
            cases += 1
    return {"form": loops.form, "cases": cases, "largest n": largest, "difference": worst}


def vectors(n: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Vectors of n elements on the CPU, by what is in them."""
    rng = np.random.default_rng(n)
    spread = torch.from_numpy(rng.laplace(size=n) * 10.0 ** rng.integers(-3, 3, n)).to(dtype)
    yield "ordinary", spread
    if n < 2 or n > LARGE:
        return
    odd = spread.clone()
    info = torch.finfo(dtype)
    kinds = [0.0, -0.0, torch.nan, torch.inf, -torch.inf, info.max, info.tiny, info.tiny / 2]
    some = torch.tensor(kinds, dtype=torch.float64).repeat(-(-n // 24))[: n // 3].to(dtype)
    odd[: len(some)] = some
    yield "with NaN, inf, zeros and denormals", odd[torch.randperm(n, generator=seeded(n))]
    yield "ties", torch.from_numpy(rng.integers(-2, 3, n)).to(dtype)
    yield "zeros", torch.zeros(n, dtype=dtype)
    yield "misaligned", torch.cat([spread[:1], spread])[1:]


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def there(values: Tensor, device: torch.device) -> Tensor:
    """On the device, misaligned where it was."""
    if not values.storage_offset():
        return values.to(device)
    return torch.cat([values[:1], values]).to(device)[1:]


def same_bits(one: Tensor, other: Tensor, what: str) -> None:
    """Raise AssertionError unless every bit is equal; NaN are told apart by theirs."""
    one, other = one.cpu(), other.cpu()
    if one.is_floating_point():
        one, other = (each.view(INTEGERS[each.dtype.itemsize]) for each in (one, other))
    if one.shape != other.shape:
        raise AssertionError(f"{what}: {tuple(one.shape)} where the CPU has {tuple(other.shape)}")
    different = int((one != other).sum())
    if different:
        raise AssertionError(f"{what}: {different} of {one.numel()} differ")


def compare_count(loops: Any, values: Tensor, device: torch.device) -> float:
    """Counts are equal; sums of float64 differ by their order."""
    ours, cpu = loops.count(there(values, device)), counting_eager.count(values)
    for name in ("bins", "positive", "negative"):
        if not np.array_equal(getattr(ours, name), getattr(cpu, name)):
            raise AssertionError(f"{name} differ")
    for name in ("positive_zeros", "negative_zeros", "nan", "positive_inf", "negative_inf"):
        if getattr(ours, name) != getattr(cpu, name):
            raise AssertionError(f"{name}: {getattr(ours, name)}, not {getattr(cpu, name)}")
    size = max(cpu.total_abs, 1e-300)
    worst = max(abs(ours.total - cpu.total), abs(ours.total_abs - cpu.total_abs)) / size
    worst = max(worst, abs(ours.total_sq - cpu.total_sq) / max(cpu.total_sq, 1e-300))
    if not worst <= 1e-12 or ours.max_abs != cpu.max_abs:
        raise AssertionError(f"sums differ by {worst:.1e}, max|g| is {ours.max_abs}")
    return worst


def compare_compact(loops: Any, values: Tensor, device: torch.device) -> float:
    """Indices and values."""
    for threshold in (0.0, 0.7, 1e30):
        ours, cpu = (
            loops.compact(there(values, device), threshold),
            selecting_eager.compact(values, threshold),
        )
        for one, other, what in zip(ours, cpu, ("indices", "values"), strict=True):
            same_bits(one, other, f"{what} above {threshold}")
    return 0.0


def compare_largest(loops: Any, values: Tensor, device: torch.device) -> float:
    """Indices and values; of equal magnitudes the first."""
    n = len(values)
    for k in {1, max(n // 100, 1), n} if n < LARGE else {n // 100}:
        ours, cpu = loops.largest(there(values, device), k), selecting_eager.largest(values, k)
        for one, other, what in zip(ours, cpu, ("indices", "values"), strict=True):
            same_bits(one, other, f"{what} of the {k} largest")
    return 0.0


def settings(n: int) -> Iterator[tuple[int, int, str]]:
    """Levels, bucket and rounding; few of them where that takes long, interpreted or not."""
    if n >= LARGE or n in QUICK_SIZES:
        yield from ((16, 512, "stochastic"), (3, max(n, 1), "nearest"), (256, 32, "nearest-even"))
        return
    for levels in LEVELS:
        for rounding in coding.ROUNDINGS:
            yield from ((levels, bucket, rounding) for bucket in {32, max(n, 1)})


def compare_quantize(loops: Any, values: Tensor, device: torch.device) -> float:
    """Packed bytes."""
    for count, bucket, rounding in settings(len(values)):
        levels = torch.linspace(-1, 1, count)
        inverse = torch.rand(-(-len(values) // bucket), generator=seeded(count)) + 0.1
        ours = loops.quantize(
            there(values, device),
            Rounding(inverse.to(device), bucket, levels.to(device), rounding, KEY),
        )
        cpu = coding_eager.quantize(values, Rounding(inverse, bucket, levels, rounding, KEY))
        same_bits(ours, cpu, f"{count} levels in buckets of {bucket}, {rounding}")
    return 0.0


def compare_add(loops: Any, values: Tensor, device: torch.device) -> float:
    """What is added to a vector: products and sums may be fused."""
    worst = 0.0
    n, dtype = len(values), values.dtype
    for count in LEVELS if n < LARGE else LEVELS[:1]:
        symbols = torch.randint(count, (n,), generator=seeded(n), dtype=torch.int32)
        packed, levels = coding_eager.pack(symbols, count), torch.linspace(-1, 1, count)
        scales = torch.rand(-(-n // 512), generator=seeded(n + 1))
        out, cpu = torch.ones(n, dtype=dtype, device=device), torch.ones(n, dtype=dtype)
        on = [each.to(device) for each in (packed, scales, levels)]
        loops.add_dequantized(on[0], on[1], 512, on[2], out, 0.5)
        coding_eager.add_dequantized(packed, scales, 512, levels, cpu, 0.5)
        off = (out.cpu().double() - cpu.double()).abs().max().item() if n else 0.0
        worst = max(worst, off)
        if off > 2 * torch.finfo(dtype).eps:
            raise AssertionError(f"{count} levels: {off:.1e} off")
    return worst


KERNELS: dict[str, Callable[[Any, Tensor, torch.device], float]] = {
    "count": compare_count,
    "compact": compare_compact,
    "largest": compare_largest,
    "quantise + pack": compare_quantize,
    "unpack + add": compare_add,
}


def same_random_numbers(where: Where) -> dict[str, Any]:
    """Words of Philox and the subsets drawn from them."""
    stream = Stream(KEY)
    for n in QUICK_SIZES if where.quick else SIZES:
        same_bits(stream.uniform(n, where.device), stream.uniform(n), f"{n} uniform numbers")
        if n:
            k = max(n // 100, 1)
            same_bits(stream.subset(k, n, where.device), stream.subset(k, n), f"{k} of {n}")
    return {}


def same_rotation(where: Where) -> dict[str, Any]:
    """The randomised Hadamard transform and its inverse: sums and differences of two."""
    for n in (33, 1_000) if where.quick else (33, 1_000, 65_537):
        values = torch.randn(n, generator=seeded(n))
        for block in (1, 64, 4096):
            ours = rotating.rotate(values.to(where.device), block, KEY)
            cpu = rotating_eager.rotate(values, block, KEY)
            same_bits(ours, cpu, f"{n} in blocks of {block}")
            back = rotating.unrotate(ours, n, block, KEY)
            same_bits(back, rotating_eager.unrotate(cpu, n, block, KEY), f"{n}, back")
    return {}


def gradients(quick: bool) -> Iterator[tuple[str, Tensor]]:
    """Gradients on the CPU, by what is special about them."""
    n = 1_025 if quick else 65_600
    normal = torch.randn(n, generator=seeded(1))
    holed = normal.clone()
    holed[[5, 77]] = torch.nan
    yield "normal", normal
    yield "heavy-tailed", normal**5
    yield "tied", normal.sign() * normal.abs().ceil()
    yield "with NaN", holed
    yield "matrix, not contiguous", normal[: n // 32 * 32].view(32, -1).t()
    yield "float16", normal.half()
    yield "bfloat16", normal.bfloat16()
    yield "one element", normal[:1]
    yield "empty", normal[:0]


def same_payloads(where: Where, name: str) -> dict[str, Any]:
    """Bytes of a few steps, with and without error feedback; how far off where they differ."""
    worst, cases, different = 0.0, 0, 0
    composed = name in COMPOSITIONS
    specs = [compressor(name)] if composed else compressors(name, [0.01])
    specs = [*specs, *([] if composed else compressors(f"ef({name})", [0.01]))]
    for member in specs:
        for content, grad in gradients(where.quick):
            if where.seconds < 0:
                raise LeftOut(f"out of time after {cases} cases, all of them right")
            steps = QUICK_STEPS if where.quick else STEPS
            ours = sent(member, grad.to(where.device), steps)
            with kernels.use("eager"):
                cpu = sent(member, grad, steps)
            for step, (payload, other) in enumerate(zip(ours, cpu, strict=True)):
                cases += 1
                one = payload.to(torch.device("cpu"))
                check_decoding(payload, one)
                if one.to_bytes() == other.to_bytes():
                    continue
                different += 1
                x = grad.reshape(-1) * (step + 1)
                worst = max(worst, apart(one.decode(), other.decode(), x))
                allowed = 1e-2 if composed else REORDERED.get(name, ("", 0.0))[1]
                if not worst <= allowed:
                    raise AssertionError(
                        f"{member}, {content}: other bytes, {worst:.1e} off, {allowed} allowed"
                    )
    reason = {"sums in another order": REORDERED[name][0]} if name in REORDERED else {}
    return {"cases": cases, "other bytes": different, "difference": worst, **reason}


def sent(member: Compressor, grad: Tensor, steps: int) -> list[Any]:
    """The payloads of the first steps."""
    state, payloads = member.init(grad), []
    for step in range(steps):
        payload, state = member.encode(grad * (step + 1), state, Rng(step=step))
        payloads.append(payload)
    return payloads


def check_decoding(payload: Any, same: Any) -> None:
    """Raise AssertionError unless a payload on the device decodes as it does on the CPU."""
    there, here = payload.decode(), same.decode()
    if there.device.type != payload_device(payload):
        raise AssertionError(f"decodes on {there.device}")
    arrived = from_bytes(same.to_bytes()).to(there.device)
    out, sums = torch.ones_like(there), torch.ones_like(here)
    for each in (payload, arrived):
        each.add_to(out, 0.5)
        same.add_to(sums, 0.5)
    for one, other in ((there, here), (out, sums)):
        off = far(one.cpu().double(), other.double())
        if not off <= 4 * torch.finfo(here.dtype).eps:
            raise AssertionError(f"decodes {off:.1e} off its decoding on the CPU")


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference, next to the largest element or 1."""
    if not len(one):
        return 0.0
    size = other.nan_to_num(0, 0, 0).abs().max().clamp(min=1)
    return float((one - other).nan_to_num(0, 0, 0).abs().max() / size)


def payload_device(payload: Any) -> str:
    """Where a payload's tensors are: all on one device."""
    devices = {each.device.type for each in tensors_of(payload)}
    if len(devices) > 1:
        raise AssertionError(f"holds tensors on {devices}")
    return next(iter(devices), "cpu")


def tensors_of(part: Any) -> Iterator[Tensor]:
    """The tensors in a payload and its parts."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from tensors_of(each)
    elif is_dataclass(part):
        for each in fields(part):
            yield from tensors_of(getattr(part, each.name))


def apart(one: Tensor, other: Tensor, grad: Tensor) -> float:
    """How far two decoded gradients are apart: ‖a - b‖/‖x‖, or |‖a - x‖ - ‖b - x‖|/‖x‖ if less.

    A scale that is off by an ulp moves every element that lies halfway between two levels, as
    many do in a tied gradient: both results are then as far from the gradient.
    """
    one, other, x = (each.cpu().double() for each in (one, other, grad))
    finite = x.isfinite()
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    one, other, x = (each.nan_to_num(0, 0, 0) * finite for each in (one, other, x))
    size = x.norm().clamp(min=1e-300)
    as_far = ((one - x).norm() - (other - x).norm()).abs()
    return float(torch.minimum((one - other).norm(), as_far) / size)
