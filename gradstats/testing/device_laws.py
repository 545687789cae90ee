"""The law on how often a method makes the host wait for the gradient's device."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gradstats.compressors import Compressor, Rng
from gradstats.kernels import use
from gradstats.payloads.messages import Message
from gradstats.testing.comparing import Evidence, equals
from gradstats.testing.host_reads import HostReads, counting_host_reads
from gradstats.testing.laws import Facts, encode


def limits_reads(compressor: Compressor) -> bool:
    """Whether the contract limits the reads from the device."""
    return compressor.contract.host_reads is not None


def has_fixed_length(compressor: Compressor) -> bool:
    """Whether the contract promises that lengths follow from the number of elements."""
    return compressor.contract.fixed_length


def fixed_length(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """Other values and random numbers have payloads of the same length, and heads of messages."""
    length = _lengths(compressor, grad, rng)
    for what, other in (("zeros", 0 * grad), ("ones", torch.ones_like(grad)), ("cubes", grad**3)):
        for steps in (0, 1, 2, 3):
            another = replace(rng, step=rng.step + steps, worker=steps % rng.workers)
            yield f"{what} are as long", equals(_lengths(compressor, other, another), length)


def _lengths(compressor: Compressor, grad: Tensor, rng: Rng) -> tuple[int, int]:
    message = Message(encode(compressor, grad, rng))
    return message.nbytes, len(message.head)


def host_reads(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    """Encoding and decoding read no more often than declared, and copy no more up."""
    most = compressor.contract.host_reads
    if most is None:
        return
    with use("eager"):
        counted = count_reads(compressor, grad, rng)
        if counted.uploads > most:  # tables are copied to the device once
            counted = count_reads(compressor, grad, rng)
    sites = "; ".join(counted.sites)
    for what, number in (("reads from", counted.reads), ("copies to", counted.uploads)):
        values = f"got {number}, at most {most}: {sites}"
        yield f"encode and decode wait for {what} the device", Evidence(number <= most, values)


def count_reads(compressor: Compressor, grad: Tensor, rng: Rng) -> HostReads:
    """What one step from a fresh state reads, with the payload's length and its sum."""
    out = torch.zeros(grad.numel(), dtype=torch.promote_types(grad.dtype, torch.float32))
    with counting_host_reads(grad, out) as counted:
        state = compressor.init(grad)
        before = replace(counted, sites=[*counted.sites])
        payload, _ = compressor.encode(grad, state, rng)
        _ = payload.nbytes
        payload.add_to(out, 0.5)
    sites = counted.sites[len(before.sites) :]
    return HostReads(counted.reads - before.reads, counted.uploads - before.uploads, sites)
