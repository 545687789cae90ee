"""Mutated payloads: raw ones must be refused, re-signed ones refused or read as claimed."""

import resource
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from gradstats.compressors import PayloadError, from_bytes
from gradstats.payloads.wire import ENVELOPE, seal
from tests.payloads.hostile import SPECS, Allowance, honest, processor_seconds, read

MAX_NUMEL = 4096
MOST_MEMORY = 300e6  # bytes by which the process may grow


@dataclass
class Outcome:
    """What became of the mutants."""

    raw: int = 0
    resigned: int = 0
    read: int = 0  # of the re-signed ones
    same: int = 0  # mutants that came out unchanged
    by_spec: dict = field(default_factory=dict)


def payloads():
    return [(spec, honest(spec, n)) for spec in SPECS for n in (1, 37, 1000, 4096)]


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
    originals, allowance = payloads(), Allowance()
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
        which = f"mutant {i} of seed {seed}, {spec}: {mutant.hex()}"
        payload = try_to_read(mutant, which, allowance)
        was_read = payload is not None
        assert signed or not was_read, f"raw {which} was read"
        found.raw += not signed
        found.resigned += signed
        found.read += was_read
        found.by_spec[spec] = found.by_spec.get(spec, 0) + was_read
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_MEMORY, f"the process grew by {grown / 1e6:.0f} MB"
    return found


def try_to_read(mutant, which, allowance):
    """The payload, or None where the bytes are refused; never anything else, and never dearly."""
    start = time.process_time()
    try:
        payload = from_bytes(mutant, max_numel=MAX_NUMEL)
    except PayloadError:
        payload = None
    except BaseException as error:
        raise AssertionError(f"{which} raised {error!r}") from error
    if time.process_time() - start > allowance.of_reading(len(mutant)):
        # once may be the collector of garbage
        again = processor_seconds(lambda: read(mutant, MAX_NUMEL))
        assert again < allowance.of_reading(len(mutant)), f"{which} took {again} s to read"
    if payload is None:
        return None
    assert payload.numel <= MAX_NUMEL, which
    try_to_decode(payload, which, allowance)
    return payload


def try_to_decode(payload, which, allowance):
    start = time.process_time()
    try:
        decoded = payload.decode()
        payload.add_to(torch.zeros(payload.numel))
        payload.to_bytes()
    except BaseException as error:
        raise AssertionError(f"{which} was read, but raised {error!r}") from error
    assert decoded.shape == (payload.numel,), which
    if time.process_time() - start > 2 * allowance.of_decoding(payload.numel):
        again = processor_seconds(payload.decode)
        assert again < allowance.of_decoding(payload.numel), f"{which} took {again} s to decode"
