"""Mutated payloads: raw ones must be refused, re-signed ones refused or read as claimed."""

import resource
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from gradstats.compressors import PayloadError, Rng, compressor, from_bytes
from gradstats.compressors.wire import ENVELOPE, seal

MAX_NUMEL = 4096
SLOWEST = 2.0  # seconds that one mutant may take
MOST_MEMORY = 300e6  # bytes by which the process may grow
SPECS = (
    "none",
    "bf16",
    "topk(0.1)",
    "topk(0.1) | raw",
    "topk(0.1) | packed",
    "topk(0.1) | bitmap",
    "topk(0.1) | golomb",
    "topk(0.1) | delta",
    "randomk(0.1)",
    "topk(0.1) | qsgd(bits=2) | golomb",
    "qsgd(bits=2)",
    "qsgd(bits=3, bucket=100)",
    "qsgd(bits=4) | ans",
    "sign",
    "fp8",
    "mxfp4",
    "mxfp8",
    "nvfp4",
    "eden(1)",
    "eden(3)",
    "co3(fp4)",
    "co3(fp8)",
    "lossless",
    "powersgd",
    "svd(3)",
    "thc",
    "qsgd-shared(bucket=100)",
    "count-sketch",
)


@dataclass
class Outcome:
    """What became of the mutants."""

    raw: int = 0
    resigned: int = 0
    read: int = 0  # of the re-signed ones
    same: int = 0  # mutants that came out unchanged
    by_spec: dict = field(default_factory=dict)


def payloads():
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(n, generator=generator) ** 3 for n in (1, 37, 1000, 4096)]
    for spec in SPECS:
        member = compressor(spec)
        for flat in grads:
            grad = flat.view(-1, 8) if len(flat) % 8 == 0 else flat
            payload, _ = member.encode(grad, member.init(grad), Rng(seed=len(flat)))
            yield spec, payload.to_bytes()


def mutate(data, others, rng):
    """One to three random changes of the kinds that files and networks make, and worse."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        kind, place = rng.integers(7), int(rng.integers(max(len(data), 1)))
        if kind == 0 and data:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1 and data:
            data[place] = int(rng.integers(256))
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            data[place:place] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 4:
            del data[place : place + int(rng.integers(1, 9))]
        elif kind == 5:  # numbers that are too large
            data[place : place + 8] = b"\xff" * int(rng.integers(1, 9))
        else:
            other = others[rng.integers(len(others))][1]
            data[place:] = other[min(place, len(other)) :]
    return bytes(data)


def fuzz(mutants, seed):
    """Run mutants; AssertionError on the first that is neither refused nor what it claims."""
    rng, found = np.random.default_rng(seed), Outcome()
    originals = list(payloads())
    whole = {data for _, data in originals}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(mutants):
        spec, data = originals[rng.integers(len(originals))]
        signed = i % 2
        if signed:
            mutant = seal([mutate(data[ENVELOPE.size :], originals, rng)])
        else:
            mutant = mutate(data, originals, rng)
        if mutant in whole:
            found.same += 1
            continue
        start = time.perf_counter()
        read = try_to_read(mutant, f"mutant {i} of seed {seed}, {spec}: {mutant.hex()}")
        assert time.perf_counter() - start < SLOWEST, f"mutant {i} of seed {seed} took too long"
        assert signed or not read, f"raw mutant {i} of seed {seed} was read: {mutant.hex()}"
        found.raw += not signed
        found.resigned += signed
        found.read += read
        found.by_spec[spec] = found.by_spec.get(spec, 0) + read
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_MEMORY, f"the process grew by {grown / 1e6:.0f} MB"
    return found


def try_to_read(mutant, which):
    try:
        payload = from_bytes(mutant, max_numel=MAX_NUMEL)
    except PayloadError:
        return False
    except BaseException as error:
        raise AssertionError(f"{which} raised {error!r}") from error
    try:
        decoded = payload.decode()
        out = torch.zeros(payload.numel)
        payload.add_to(out)
        payload.to_bytes()
    except BaseException as error:
        raise AssertionError(f"{which} was read, but raised {error!r}") from error
    assert payload.numel <= MAX_NUMEL, which
    assert decoded.shape == (payload.numel,), which
    return True
