"""Messages between workers: the bytes of payloads, laid out for a device, and checked there."""

import numpy as np
import pytest
import torch

from gradstats.compressors import SUPPORTED, PayloadError, Rng, compressor, compressors
from gradstats.payloads.base import Constant, Dense
from gradstats.payloads.bundle import Bundle
from gradstats.payloads.messages import CHECK, LANES, Message, checksum, read
from tests.payloads.hostile import SPECS
from tests.payloads.test_payloads import PAYLOADS


def sent(payload, seed=7, more=0):
    message = Message(payload)
    room = torch.full((message.nbytes + more,), 255, dtype=torch.uint8)
    message.write(room, torch.frombuffer(bytearray(message.head), dtype=torch.uint8), seed)
    return message, room


def encoded(spec, grad):
    member = compressor(spec)
    return member.encode(grad, member.init(grad), Rng(seed=3))[0]


ALL = sorted({*SPECS, *(str(each) for spec in SUPPORTED for each in compressors(spec, [0.05]))})


@pytest.mark.parametrize("spec", ALL)
@pytest.mark.parametrize("shape", [(37, 24), (1, 1)])
def test_a_message_is_the_payload(spec, shape):
    payload = encoded(spec, torch.randn(shape, generator=torch.Generator().manual_seed(1)) ** 3)
    message, room = sent(payload, more=11)
    assert message.nbytes == payload.nbytes == len(payload.to_bytes())
    assert not room[message.nbytes :].any()
    received, intact = read(room, message.head, 7)
    assert intact
    assert received.to_bytes() == payload.to_bytes()
    assert received.decode().equal(payload.decode())


@pytest.mark.parametrize("name", PAYLOADS)
def test_every_payload_travels(name):
    message, room = sent(PAYLOADS[name])
    received, intact = read(room, message.head, 7)
    assert intact
    assert received.to_bytes() == PAYLOADS[name].to_bytes()
    added = torch.zeros(received.numel)
    received.add_to(added, 0.5)
    torch.testing.assert_close(added, 0.5 * PAYLOADS[name].decode().float(), equal_nan=True)


def test_its_bytes_are_those_of_the_payload():
    """Length of the numbers, the numbers, the tensors, a checksum."""
    message, room = sent(Dense(torch.tensor([1.5, -2.0])))
    numbers = bytes([0, 0, 2])  # a dense payload of float32, two elements
    expected = (3).to_bytes(4, "little") + numbers + np.array([1.5, -2], "<f4").tobytes()
    assert room.numpy().tobytes()[:-CHECK] == expected
    assert message.head == expected[:7]


def by_hand(data, seed):
    """The checksum with integers of any length."""
    padded = data[len(data) // 8 * 8 :].ljust(8, b"\0")
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data) // 8 * 8, 8)]
    total = sum((2 * (i % 512) + 1) * word for i, word in enumerate(words))
    total += 1025 * int.from_bytes(padded, "little")
    total += ((seed << 32) + len(data)) % (1 << 63)
    return (total * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "little")[3:]


@pytest.mark.parametrize("nbytes", [0, 1, 7, 8, 9, 8 * LANES - 1, 8 * LANES, 8 * LANES * 3 + 77])
def test_the_checksum_is_its_formula(nbytes):
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    for seed in (0, 5, 1 << 40):
        found = checksum(torch.from_numpy(data), seed).numpy().tobytes()
        assert found == by_hand(data.tobytes(), seed)


def test_every_bit_counts():
    """A bit that flips moves c by (2i + 1) 2^b φ, of which the upper 40 bits must not be 0."""
    weights = [2 * lane + 1 for lane in range(LANES + 1)]
    moved = [
        w * 0x9E3779B97F4A7C15 % (1 << 64) << b & (1 << 64) - 1 for w in weights for b in range(64)
    ]
    assert all(1 << 24 <= move <= (1 << 64) - (1 << 24) for move in moved)


def test_what_has_changed_on_the_way_is_seen():
    payload = encoded("mxfp8", torch.randn(3000))
    message, room = sent(payload)
    changed = np.random.default_rng(0).integers(0, message.nbytes - CHECK, 300)
    for place in (*range(len(message.head)), *changed):
        for bit in (1, 128):
            room[place] ^= bit
            assert not read(room, message.head, 7)[1]
            room[place] ^= bit
    assert read(room, message.head, 7)[1]
    swapped = room.clone()
    start = -(-len(message.head) // 8) * 8
    swapped[start : start + 8], swapped[start + 8 : start + 16] = (
        room[start + 8 : start + 16].clone(),
        room[start : start + 8].clone(),
    )
    assert not read(swapped, message.head, 7)[1]


@pytest.mark.parametrize("spec", ["mxfp8", "topk(0.1) | packed", "eden", "randomk(0.1) | sign"])
def test_a_head_that_has_changed_is_refused_or_seen(spec):
    message, room = sent(encoded(spec, torch.randn(500)))
    for place in range(len(message.head)):
        for bit in (1, 16, 128):
            head = bytearray(message.head)
            head[place] ^= bit
            room[: len(head)] = torch.frombuffer(head, dtype=torch.uint8)
            try:
                _, intact = read(room, bytes(head), 7)
            except PayloadError:
                continue
            assert not intact, (place, bit)


def test_a_message_of_another_step_or_worker_is_no_intact_one():
    message, room = sent(Dense(torch.zeros(5)), seed=7)
    assert read(room, message.head, 7)[1]
    assert not read(room, message.head, 8)[1]
    lost = torch.zeros_like(room)
    assert not read(lost, message.head, 7)[1]


@pytest.mark.parametrize("short", [1, 5, 9])
def test_a_size_that_does_not_fit_is_refused(short):
    message, room = sent(Dense(torch.arange(6.0)))
    with pytest.raises(PayloadError, match="bytes of tensors are due"):
        read(room[:-short], message.head, 7)


def test_a_head_that_claims_more_is_refused():
    message, room = sent(Dense(torch.arange(6.0)))
    with pytest.raises(PayloadError, match="due"):
        read(room, message.head[:4] + bytes([0, 0, 99]), 7)
    with pytest.raises(PayloadError):
        read(room, message.head[:4] + bytes([200, 0, 6]), 7)


def test_bundles_of_odd_lengths_and_dtypes():
    parts = [Dense(torch.randn(n).to(dtype)) for n in (0, 1, 3) for dtype in DTYPES]
    bundle = Bundle((*parts, Constant(torch.ones(1).expand(1), 9)))
    message, room = sent(bundle)
    received, intact = read(room, message.head, 7)
    assert intact
    assert received.to_bytes() == bundle.to_bytes()


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
