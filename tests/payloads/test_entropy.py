"""Coded symbols come back, take what the entropy says, and garbage is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from gradstats.compressors import from_bytes
from gradstats.payloads import entropy
from gradstats.payloads.symbol_codes import SerialANS, SerialModelANS

# payloads and symbols as version 0.1 wrote them, with one state for all symbols
SERIAL = json.loads(Path(__file__).with_name("serial_symbols.json").read_text())

LAWS = {
    "two": [0.3, 0.7],
    "skewed": [0.999, 0.0005, 0.0005],
    "one": [1.0, 0.0],
    "eleven": np.exp(-np.abs(np.arange(-5, 6))),
    "many": np.arange(1, 248),
    "more than a byte": np.ones(1000),
}


def drawn(law, n, seed=0):
    share = np.asarray(law, np.float64)
    return np.random.default_rng(seed).choice(len(share), n, p=share / share.sum())


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("n", [0, 1, 1000, 100_000])
def test_symbols_come_back_and_take_their_entropy(name, n):
    freq, symbols = entropy.frequencies(LAWS[name]), drawn(LAWS[name], n)
    data = entropy.encode_symbols(symbols, freq)
    assert entropy.decode_symbols(data, n, freq).tolist() == symbols.tolist()
    bits = -np.log2(freq[symbols] / 65536).sum()
    counts = np.bincount(symbols, minlength=len(freq))
    assert entropy.cross_entropy_bits(counts, freq) == pytest.approx(bits)
    assert bits - 32 <= 8 * len(data) <= 1.005 * bits + 8 * 16  # the state holds up to a word


@pytest.mark.parametrize("name", LAWS)
def test_frequencies_are_whole_and_near(name):
    share = np.asarray(LAWS[name], np.float64)
    freq = entropy.frequencies(share)
    assert freq.sum() == 65536
    assert freq.min() >= 1
    assert np.abs(freq / 65536 - share / share.sum()).max() <= (1 + len(share)) / 65536


def test_garbage_is_refused_or_gives_symbols():
    rng, freq = np.random.default_rng(1), entropy.frequencies(LAWS["eleven"])
    data, refused = entropy.encode_symbols(drawn(LAWS["eleven"], 300), freq), 0
    for _ in range(2000):
        mutant = bytearray(data)
        mutant[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        mutant = bytes(mutant[: int(rng.integers(len(mutant) + 1))]) + rng.bytes(
            int(rng.integers(3))
        )
        try:
            found = entropy.decode_symbols(mutant, 300, freq)
        except ValueError:
            refused += 1
            continue
        assert found.shape == (300,)
        assert found.max() < 11
    assert refused > 1900


@pytest.mark.parametrize("name", [name for name in SERIAL if "payload" in SERIAL[name]])
def test_payloads_of_version_0_1_decode_as_before(name):
    pytest.importorskip("constriction")
    data = bytes.fromhex(SERIAL[name]["payload"])
    payload = from_bytes(data)
    assert isinstance(payload.coder, SerialANS | SerialModelANS)
    decoded = payload.decode()
    assert decoded.numpy().tobytes().hex() == SERIAL[name]["decoded"]
    out = decoded.clone()
    payload.add_to(out)
    assert out.tolist() == (2 * decoded).tolist()
    assert payload.to_bytes() == data


@pytest.mark.parametrize("name", [name for name in SERIAL if "symbols" in SERIAL[name]])
def test_symbols_of_version_0_1_decode_as_before(name):
    pytest.importorskip("constriction")
    frequencies, symbols = (
        np.frombuffer(bytes.fromhex(SERIAL[name][key]), "<u2").astype(np.int64)
        for key in ("frequencies", "symbols")
    )
    data = bytes.fromhex(SERIAL[name]["data"])
    assert entropy.decode_serial(data, 200, frequencies).tolist() == symbols.tolist()
    for bad in (data[:-1], data[:-4], data + bytes(4), data + b"\1\0\0\0"):
        with pytest.raises(ValueError, match="coded symbols"):
            entropy.decode_serial(bad, 200, frequencies)
    new = entropy.encode_symbols(symbols, frequencies)
    assert len(new) <= len(data) + 4


def test_bytes_are_compressed_and_bounded():
    data = bytes(10_000)
    packed = entropy.compress_bytes(data)
    assert len(packed) < 100
    assert entropy.decompress_bytes(packed, 10_000) == data
    for wrong in (0, 9_999, 10_001):
        with pytest.raises(ValueError, match="must be"):
            entropy.decompress_bytes(packed, wrong)
    for broken in (b"", packed[:-1], b"x" + packed[1:], packed[:6] + b"\xff" + packed[7:]):
        with pytest.raises(ValueError, match=r"cannot decompress|must be"):
            entropy.decompress_bytes(broken, 10_000)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_byte_planes(width):
    data = bytes(range(8 * width))
    planes = entropy.byte_planes(data, width)
    assert planes == b"".join(data[i::width] for i in range(width))
    assert entropy.from_byte_planes(planes, width) == data
