"""Bytes are either read exactly or refused."""

import zlib

import numpy as np
import pytest
import torch

from gradstats.compressors import PayloadError, Rng, from_bytes
from gradstats.compressors.payloads import HEADER, MAGIC, VERSION, Dense, Masked, Sparse

DENSE, SPARSE, MASKED = 0, 1, 2
FLOAT32, BFLOAT16 = 0, 3
VALUES = torch.tensor([1.5, -2.0, torch.nan])
PAYLOADS = {
    "dense": Dense(VALUES, 3),
    "dense bfloat16": Dense(VALUES.bfloat16(), 3),
    "sparse": Sparse(VALUES, 9, torch.tensor([8, 0, 4])),
    "sparse float64": Sparse(VALUES.double(), 9, torch.tensor([8, 0, 4])),
    "masked": Masked(VALUES, 9, Rng(seed=3).shared),
    "empty": Sparse(VALUES[:0], 0, torch.zeros(0, dtype=torch.int64)),
}


def forge(
    kind=SPARSE, dtype=FLOAT32, numel=9, count=None, *, indices=(), values=(), version=VERSION
):
    """Bytes with a valid checksum, whatever they claim."""
    body = np.asarray(values, "<f4").tobytes() + np.asarray(indices, "<i4").tobytes()
    claimed = len(values) if count is None else count
    head = (MAGIC, version, kind, dtype, 0, numel, claimed, 0, 0)
    checksum = zlib.crc32(body, zlib.crc32(HEADER.pack(*head, 0)))
    return HEADER.pack(*head, checksum) + body


@pytest.mark.parametrize("name", PAYLOADS)
def test_round_trip_is_bit_exact(name):
    payload = PAYLOADS[name]
    received = from_bytes(payload.to_bytes())
    assert type(received) is type(payload)
    assert (received.numel, received.count) == (payload.numel, payload.count)
    assert received.to_bytes() == payload.to_bytes()
    assert len(payload.to_bytes()) == payload.nbytes
    assert torch.equal(received.decode().isnan(), payload.decode().isnan())


def test_the_forger_forges_what_the_encoder_writes():
    """Otherwise every refusal below could be for the wrong reason."""
    real = Sparse(torch.tensor([1.5, -2.0]), 9, torch.tensor([8, 0]))
    assert forge(indices=[8, 0], values=[1.5, -2.0]) == real.to_bytes()


@pytest.mark.parametrize("name", PAYLOADS)
def test_every_truncation_is_refused(name):
    data = PAYLOADS[name].to_bytes()
    for length in range(len(data)):
        with pytest.raises(PayloadError):
            from_bytes(data[:length])
    with pytest.raises(PayloadError):
        from_bytes(data + b"\0")


@pytest.mark.parametrize("name", PAYLOADS)
def test_every_flipped_bit_is_refused(name):
    data = PAYLOADS[name].to_bytes()
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(PayloadError):
            from_bytes(bytes(flipped))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, header has 36"),
        (b"PNG " + forge()[4:], "must start with"),
        (forge(version=VERSION + 1), "version"),
        (forge(kind=4), "kind 4"),
        (forge(kind=3, count=2), "0 parts of 2"),
        (forge(dtype=4), "dtype 4"),
        (forge(numel=1 << 62), "at most"),
        (forge(kind=DENSE, numel=1 << 62, count=1 << 62), "at most"),
        (forge(kind=DENSE, numel=1 << 31, count=1 << 31), "0 bytes for 2147483648 of"),
        (forge(kind=MASKED, numel=1 << 31, count=1 << 30), "0 bytes"),
        (forge(count=5), "0 bytes for 5 of"),
        (forge(kind=DENSE, numel=9, values=[1.0]), "for 1 of 9"),
        (forge(numel=1, indices=[0, 0], values=[1.0, 1.0]), "2 of 1 elements"),
        (forge(indices=[4, 4], values=[1.0, 2.0]), "with repetitions"),
        (forge(indices=[9], values=[1.0]), r"\[0, 9\), got 9"),
        (forge(indices=[-1], values=[1.0]), "got -1"),
        (forge(dtype=BFLOAT16, indices=[1], values=[1.0]), "bytes for 1 of"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_bytes_that_contradict_themselves_are_refused(data, message):
    with pytest.raises(PayloadError, match=message):
        from_bytes(data)


def test_the_receiver_may_bound_the_length():
    data = PAYLOADS["sparse"].to_bytes()
    assert from_bytes(data, max_numel=9).numel == 9
    with pytest.raises(PayloadError, match="at most 8"):
        from_bytes(data, max_numel=8)


def test_reading_allocates_for_what_arrived_not_for_what_is_claimed():
    received = from_bytes(forge(numel=1 << 31, indices=[7], values=[2.0]))
    assert (received.numel, received.values.numel(), received.indices.numel()) == (1 << 31, 1, 1)


def test_what_was_received_does_not_depend_on_the_buffer():
    buffer = bytearray(PAYLOADS["sparse"].to_bytes())
    received = from_bytes(bytes(buffer))
    before = received.to_bytes()
    buffer[:] = bytes(len(buffer))
    received.values.mul_(1)  # writable, without a warning
    assert received.to_bytes() == before


def test_payload_error_is_a_value_error():
    assert issubclass(PayloadError, ValueError)
