"""Bytes are either read exactly or refused."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from gradstats.compressors import PayloadError, Rng, compressor, from_bytes
from gradstats.compressors.methods.lloyd_max import LloydMax
from gradstats.kernels import coding
from gradstats.payloads.base import Constant, Dense
from gradstats.payloads.bundle import Bundle
from gradstats.payloads.index_codes import CODES
from gradstats.payloads.sparse import Masked, Sparse
from gradstats.payloads.wire import Reader, varint
from gradstats.rng import Stream

VERSION = 2
DENSE, CONSTANT, SPARSE, MASKED, BUNDLE = range(5)
FLOAT32, UINT8 = 0, 4
VALUES = torch.tensor([1.5, -2.0, torch.nan])
PLACES = torch.tensor([0, 4, 8])
GRAD = torch.randn(300, generator=torch.Generator().manual_seed(0))
PAYLOADS = {
    "dense": Dense(VALUES),
    "dense bfloat16": Dense(VALUES.bfloat16()),
    "constant": Constant(VALUES[:1], 7),
    **{f"sparse {code}": Sparse(Dense(VALUES), 9, PLACES, code) for code in CODES},
    "sparse float64": Sparse(Dense(VALUES.double()), 9, PLACES),
    "masked": Masked(Dense(VALUES), 9, Rng(seed=3).shared),
    "empty": Sparse(Dense(VALUES[:0]), 0, PLACES[:0]),
    "bundle": Bundle((Dense(VALUES), Sparse(Dense(VALUES), 9, PLACES))),
    **{
        spec: compressor(spec).encode(GRAD, compressor(spec).init(GRAD), Rng())[0]
        for spec in (
            "qsgd(bits=3, bucket=64)",
            "sign",
            "fp8",
            "mxfp4",
            "nvfp4",
            "eden(2)",
            "co3",
            "co3(fp8)",
            "lossless",
            "topk(0.1) | qsgd(bits=4) | golomb",
            "randomk(0.1) | sign",
            "qsgd(bits=2) | ans",
        )
    },
}


def number(*numbers):
    return b"".join(map(varint, numbers))


def floats(*values):
    return np.asarray(values, "<f4").tobytes()


def sealed(body, magic=b"GSPL", version=VERSION):
    """Bytes with a valid checksum, whatever they claim; by hand, from docs/format.md."""
    return struct.pack("<4sBI", magic, version, zlib.crc32(body, version)) + body


def raw_indices(*indices):
    data = np.asarray(indices, "<i4").tobytes()
    return number(len(data)) + data


def sparse_body(numel=9, indices=(0, 8), values=(1.5, -2.0), count=None):
    count = len(indices) if count is None else count
    head = number(SPARSE, numel, CODES.index("raw"), count) + raw_indices(*indices)
    return head + number(DENSE, FLOAT32, len(values)) + floats(*values)


@pytest.mark.parametrize("name", PAYLOADS)
def test_round_trip_is_bit_exact(name):
    payload = PAYLOADS[name]
    received = from_bytes(payload.to_bytes())
    assert type(received) is type(payload)
    assert (received.numel, received.count) == (payload.numel, payload.count)
    assert received.to_bytes() == payload.to_bytes()
    assert len(payload.to_bytes()) == payload.nbytes
    np.testing.assert_array_equal(received.decode().double(), payload.decode().double())


def test_the_forger_forges_what_the_encoder_writes():
    """Otherwise every refusal below could be for the wrong reason."""
    values = torch.tensor([1.5, -2.0])
    real = Sparse(Dense(values), 9, torch.tensor([0, 8]), "raw")
    assert sealed(sparse_body()) == real.to_bytes()
    assert sealed(number(DENSE, FLOAT32, 2) + floats(1.5, -2.0)) == Dense(values).to_bytes()


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
        (b"", "0 bytes, envelope has 9"),
        (sealed(sparse_body(), magic=b"PNG "), "must start with"),
        (sealed(sparse_body(), version=VERSION + 1), "version"),
        (sealed(number(99)), "kind is 99"),
        (sealed(number(DENSE, UINT8, 1) + b"\0"), "dtype is 4"),
        (sealed(number(DENSE, FLOAT32, 1 << 62)), "at most"),
        (sealed(number(DENSE, FLOAT32, 1 << 31)), "left"),
        (sealed(number(MASKED, 1 << 31, 5, 5, 1 << 30, DENSE, FLOAT32, 1 << 30)), "left"),
        (sealed(sparse_body(count=5)), "cannot decode payload"),
        (sealed(sparse_body(values=[1.0])), "1 values for 2 places"),
        (sealed(sparse_body(numel=1, indices=(0, 0))), "count is 2, at most 1"),
        (sealed(sparse_body(indices=(4, 4))), "cannot decode payload"),
        (sealed(sparse_body(indices=(4, 3))), "cannot decode payload"),
        (sealed(sparse_body(indices=(4, 9))), "cannot decode payload"),
        (sealed(sparse_body(indices=(-1, 3))), "cannot decode payload"),
        (sealed(sparse_body() + b"\0"), "1 bytes too many"),
        (sealed(number(BUNDLE, 1) * 6), "nested"),
        (sealed(number(BUNDLE, 9, DENSE, FLOAT32, 0)), "number of parts is 9"),
        (sealed(number(DENSE) + b"\x80\x00" + number(0)), "dtype"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_bytes_that_contradict_themselves_are_refused(data, message):
    with pytest.raises(PayloadError, match=message):
        from_bytes(data)


def test_the_receiver_may_bound_the_length():
    data = PAYLOADS["sparse raw"].to_bytes()
    assert from_bytes(data, max_numel=9).numel == 9
    with pytest.raises(PayloadError, match="at most 8"):
        from_bytes(data, max_numel=8)
    parts = Bundle((Dense(VALUES), Dense(VALUES))).to_bytes()
    assert from_bytes(parts, max_numel=6).numel == 6
    with pytest.raises(PayloadError, match="at most 2"):
        from_bytes(parts, max_numel=5)


def test_reading_allocates_for_what_arrived_not_for_what_is_claimed():
    received = from_bytes(sealed(sparse_body(numel=1 << 31, indices=(7,), values=(2.0,))))
    assert (received.numel, received.values.numel(), received.indices.numel()) == (1 << 31, 1, 1)


def test_what_was_received_does_not_depend_on_the_buffer():
    buffer = bytearray(PAYLOADS["dense"].to_bytes())
    received = from_bytes(bytes(buffer))
    before = received.to_bytes()
    buffer[:] = bytes(len(buffer))
    received.values.mul_(1)  # writable, without a warning
    assert received.to_bytes() == before


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, (1 << 63) - 1])
def test_varints_are_leb128(value):
    reader = Reader(memoryview(varint(value)), (), 1)
    assert reader.number(1 << 63, "it") == value
    assert len(varint(value)) == max(1, -(-value.bit_length() // 7))


def test_payload_error_is_a_value_error():
    assert issubclass(PayloadError, ValueError)


META = torch.device("meta")  # stands for a GPU: what is left on the CPU does not meet it


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_says_where_it_decodes(name):
    payload = PAYLOADS[name]
    assert payload.device.type == payload.decode().device.type == "cpu"
    assert payload.to(META).device == payload.to(META).to(META).device == META
    assert from_bytes(payload.to_bytes()).device.type == "cpu"


@pytest.mark.parametrize("spec", ["co3", "3lc", "qsgd(bits=2) | ans", "qsgd"])
def test_symbols_are_decoded_where_the_scales_are(spec, monkeypatch):
    """An entropy coder works on the CPU; on a GPU its symbols met scales that lie elsewhere."""
    member = compressor(spec)
    payload = member.encode(GRAD, member.init(GRAD), Rng())[0].to(META)
    met = []
    monkeypatch.setattr(coding, "dequantize", lambda *given: met.extend(given) or GRAD)
    payload.decode()
    assert {each.device for each in met if isinstance(each, torch.Tensor)} == {META}


def test_planes_are_decoded_where_their_gradient_was():
    """The bytes have no device of their own."""
    member = compressor("lossless")
    payload = member.encode(GRAD, None)[0].to(META)
    assert payload.decode().device == META
    assert from_bytes(payload.to_bytes()).decode().equal(GRAD)
    assert from_bytes(payload.to_bytes()).to(META).decode().device == META


def test_drawn_places_lie_where_the_values_are(monkeypatch):
    member = compressor("randomk(0.1) | mxfp4")
    payload = from_bytes(member.encode(GRAD, None, Rng())[0].to_bytes()).to(META)
    asked = []
    monkeypatch.setattr(Stream, "subset", lambda self, k, n, device: asked.append(device))
    _ = payload.indices
    assert asked == [META]


def test_lloyd_max_makes_its_tables_where_the_gradient_is(monkeypatch):
    met = []

    def spy(values, scales, bucket, levels, *, rounding):
        met.extend([values, scales, levels])
        return torch.zeros(len(values), dtype=torch.uint8, device=values.device)

    monkeypatch.setattr(LloydMax, "_fitted", lambda self, flat: (1.0, 1.0))
    monkeypatch.setattr(coding, "to_symbols", spy)
    monkeypatch.setattr(coding, "pack", lambda symbols, levels, trusted: symbols)
    payload = LloydMax().encode(GRAD.to(META), None)[0]
    assert {each.device for each in met} == {payload.device} == {META}


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        ("qsgd", {"bucket": 0}, "bucket must be at least 1, got 0"),
        ("eden", {"bucket": 12}, "must be a power of two up to the 100 elements, got 12"),
        ("eden", {"bucket": 128}, "must be a power of two up to the 100 elements, got 128"),
        ("eden", {"offsets": torch.zeros(1)}, "it has both a rotation and offsets"),
    ],
)
def test_a_bad_bucket_is_refused_with_the_rule_that_it_breaks(spec, changes, message):
    member, grad = compressor(spec), torch.arange(100.0)
    payload = replace(member.encode(grad, member.init(grad), Rng())[0], **changes)
    with pytest.raises(PayloadError, match=message):
        from_bytes(payload.to_bytes())
