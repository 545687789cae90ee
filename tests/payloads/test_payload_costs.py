"""Reading a payload costs processor time and memory by its bytes, whatever it claims."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from gradstats.compressors import PayloadError, Rng, compressor, from_bytes
from gradstats.payloads.wire import CHECKED
from tests.payloads.hostile import (
    SPECS,
    Allowance,
    honest,
    hostile,
    processor_seconds,
    read,
    signed,
)

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def allowance():
    return Allowance()


@pytest.mark.parametrize("name", hostile())
@pytest.mark.slow
def test_a_hostile_payload_costs_what_its_bytes_cost(name, allowance):
    data = signed(hostile()[name])
    took = processor_seconds(lambda: read(data))
    assert took < allowance.of_reading(len(data)), f"{took / allowance.reading:.0f} honest ones"


@pytest.mark.parametrize("spec", SPECS)
def test_a_large_payload_costs_what_its_bytes_cost(spec, allowance):
    data = honest(spec, 1 << 18)
    took = processor_seconds(lambda: from_bytes(data), times=2)
    assert took < allowance.of_reading(len(data))


READS = """
import json, sys
from tests.payloads.hostile import *
read(honest("qsgd(bits=4) | ans", 1000)), read(honest("lossless", 1000))  # imports
payloads = {name: signed(data) for name, data in hostile().items()}
print(json.dumps(growth_by_name(payloads, read)))
"""
DECODES = """
import json, sys
from tests.payloads.hostile import *
numel = 1 << 18
estimates = signed(body(SKETCH, FLOAT32, numel, 7, 7, 0, 63, 1, ONE * 63))
payloads = {spec: honest(spec, numel) for spec in SPECS} | {"63 rows of estimates": estimates}
print(json.dumps(growth_by_name(payloads, lambda data: from_bytes(data).decode())))
"""


def growth(script):
    """In a fresh process: a peak of memory never falls."""
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_reading_takes_memory_by_the_bytes():
    for name, grown in growth(READS).items():
        nbytes = len(hostile()[name])
        assert grown < 16 * MEGABYTE + 256 * nbytes, f"{name}: {grown / MEGABYTE:.0f} MB"


@pytest.mark.slow
def test_decoding_takes_memory_by_the_elements():
    for name, grown in growth(DECODES).items():
        assert grown < 64 * MEGABYTE, f"{name}: {grown / MEGABYTE:.0f} MB for 2^18 elements"


def broken(spec, numel):
    """The bytes of zeros, with entropy-coded data that do not end where they should."""
    payload, _ = compressor(spec).encode(torch.zeros(numel), None, Rng())
    if spec == "lossless":
        return replace(payload, data=payload.data[:-1]).to_bytes()
    coder = replace(payload.coder, data=payload.coder.data + b"\1\0\0\0")
    return replace(payload, coder=coder).to_bytes()


@pytest.mark.parametrize("spec", ["qsgd(bits=4) | ans", "lossless"])
def test_entropy_coded_elements_are_checked_at_once_up_to_a_number(spec):
    with pytest.raises(PayloadError, match="cannot decode payload"):
        from_bytes(broken(spec, CHECKED))
    too_many = broken(spec, 1 << 21)
    payload = from_bytes(too_many)
    for decode in (payload.decode, lambda: payload.add_to(torch.zeros(payload.numel))):
        with pytest.raises(PayloadError, match="cannot decode payload"):
            decode()
