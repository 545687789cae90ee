"""Codes of places against coders written bit by bit, and formulas against what is measured."""

import math

import numpy as np
import pytest

from gradstats.payloads import index_codes
from gradstats.payloads.index_coders import rice_parameter
from gradstats.payloads.index_codes import CODES, decode_indices, encode_indices


def places(k, n, seed=0):
    rng = np.random.default_rng(seed)
    if n > 1 << 24:
        return np.unique(rng.integers(0, n, k))
    return np.sort(rng.choice(n, k, replace=False)).astype(np.int64)


CASES = {
    "nothing of nothing": (places(0, 0), 0),
    "nothing": (places(0, 100), 100),
    "the only one": (places(1, 1), 1),
    "everything": (places(50, 50), 50),
    "one": (np.array([77]), 100),
    "the last": (np.array([99]), 100),
    "half": (places(500, 1000), 1000),
    "few": (places(30, 10_000), 10_000),
    "clustered": (np.concatenate([np.arange(100), 5000 + np.arange(50)]), 100_000),
    "far apart": (np.array([0, 1 << 20, (1 << 31) - 1]), 1 << 31),
    "above 2^31": (np.array([5, (1 << 31) + 3, (1 << 40) - 1]), 1 << 40),
    "all but one": (np.delete(np.arange(200), 100), 200),
}
SMALL = {name: case for name, case in CASES.items() if case[1] <= 100_000}


def bits_of(number, width):
    return [number >> i & 1 for i in range(width)]


def filled(bits):
    whole = bits + [0] * (-len(bits) % 8)
    return bytes(
        sum(bit << i for i, bit in enumerate(whole[j : j + 8])) for j in range(0, len(whole), 8)
    )


def slow(indices, n, code):
    """Each code as its definition says, a bit at a time."""
    indices = [int(each) for each in indices]
    gaps = [b - a - 1 for a, b in zip([-1, *indices], indices, strict=False)]
    if code == "raw":
        return b"".join(each.to_bytes(4 if n <= 1 << 31 else 8, "little") for each in indices)
    if code == "packed":
        width = max(n - 1, 0).bit_length()
        return filled([bit for each in indices for bit in bits_of(each, width)])
    if code == "bitmap":
        return filled([int(i in set(indices)) for i in range(n)])
    if code == "delta":
        return b"".join(leb128(gap) for gap in gaps)
    b = rice(len(indices), n)
    low = [bit for gap in gaps for bit in bits_of(gap, b)]
    return filled(low) + filled([bit for gap in gaps for bit in [1] * (gap >> b) + [0]])


def leb128(number):
    out = []
    while number >= 128:
        out.append(number % 128 + 128)
        number //= 128
    return bytes([*out, number])


def rice(k, n):
    """The published formula, in floating point."""
    if k == 0 or k == n:
        return 0
    golden = (1 + math.sqrt(5)) / 2
    return max(0, 1 + math.floor(math.log2(math.log(golden - 1) / math.log1p(-k / n))))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, code):
    indices, n = CASES[name]
    if code == "bitmap" and n > 1 << 31:
        pytest.skip("a bitmap of 2^40 bits")
    data = encode_indices(indices, n, code)
    assert len(data) == index_codes.encoded_nbytes(indices, n, code)
    decoded = decode_indices(data, len(indices), n, code)
    assert decoded.dtype == np.int64
    assert decoded.tolist() == indices.tolist()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", SMALL)
def test_the_bytes_are_those_of_the_definition(name, code):
    indices, n = SMALL[name]
    assert encode_indices(indices, n, code) == slow(indices, n, code)


@pytest.mark.parametrize("n", [2, 3, 10, 1000, 25_600_000, 1 << 40])
def test_the_rice_parameter_is_that_of_the_formula(n):
    for k in {k for k in (1, 2, n // 1000, n // 100, n // 10, n // 3, n - 1) if 0 < k < n}:
        assert rice_parameter(k, n) == rice(k, n)


@pytest.mark.parametrize(
    ("ratio", "golomb", "entropy"), [(0.1, 4.76, 4.69), (0.01, 8.11, 8.08), (0.001, 11.49, 11.41)]
)
def test_bits_an_index(ratio, golomb, entropy):
    n = 2_000_000
    k = round(ratio * n)
    measured = 8 * index_codes.encoded_nbytes(places(k, n), n, "golomb") / k
    assert index_codes.expected_bits(k, n, "golomb") / k == pytest.approx(golomb, abs=0.006)
    assert measured == pytest.approx(golomb, rel=0.01)
    floor = -(ratio * math.log2(ratio) + (1 - ratio) * math.log2(1 - ratio)) / ratio
    assert floor == pytest.approx(entropy, abs=0.005)
    assert entropy < measured


@pytest.mark.parametrize("code", [*CODES, "auto"])
@pytest.mark.parametrize("ratio", [0.001, 0.03, 0.4, 0.9])
def test_formulas_are_what_random_places_take(code, ratio):
    n = 300_000
    k = round(ratio * n)
    indices = places(k, n, seed=1)
    chosen = index_codes.cheapest(indices, n) if code == "auto" else code
    measured = 8 * index_codes.encoded_nbytes(indices, n, chosen)
    assert index_codes.expected_bits(k, n, code) == pytest.approx(measured, rel=0.02, abs=16)


def test_the_cheapest_is_the_shortest():
    for indices, n in SMALL.values():
        lengths = {code: len(slow(indices, n, code)) for code in CODES}
        assert lengths[index_codes.cheapest(indices, n)] == min(lengths.values())


@pytest.mark.parametrize("code", CODES)
@pytest.mark.slow
def test_mutants_are_refused_or_rise_in_range(code):
    rng = np.random.default_rng(4)
    originals = [(encode_indices(i, n, code), len(i), n) for i, n in SMALL.values()]
    read = 0
    for _ in range(4000):
        data, k, n = originals[rng.integers(len(originals))]
        mutant = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(mutant) + 1))
            mutant[place : place + int(rng.integers(3))] = rng.bytes(int(rng.integers(3)))
        try:
            found = decode_indices(bytes(mutant), k, n, code)
        except ValueError:
            continue
        read += 1
        assert found.shape == (k,)
        assert (np.diff(found) > 0).all()
        assert k == 0 or (found[0] >= 0 and found[-1] < n)
        assert encode_indices(found, n, code) == bytes(mutant)
    assert read


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([3, 3], "must rise strictly, got 3 before 3"),
        ([0, 3, 2, 5], "must rise strictly, got 3 before 2"),
        ([-1, 2], r"must lie in \[0, 10\), got -1 … 2"),
        ([4, 10], r"must lie in \[0, 10\), got 4 … 10"),
    ],
)
@pytest.mark.parametrize("code", CODES)
def test_what_does_not_rise_in_range_is_not_encoded(indices, message, code):
    with pytest.raises(ValueError, match=f"indices {message}"):
        encode_indices(np.array(indices), 10, code)


def test_unknown_codes_are_refused():
    with pytest.raises(ValueError, match="code must be one of raw, packed, bitmap, golomb, delta"):
        encode_indices(np.array([1]), 10, "huffman")
