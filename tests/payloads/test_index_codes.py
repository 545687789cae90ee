"""Codes of places against coders written bit by bit, and formulas against what is measured."""

import math

import numpy as np
import pytest
import torch

from gradstats import kernels
from gradstats.payloads import index_codes
from gradstats.payloads.index_coders import rice_parameter
from gradstats.payloads.index_codes import CODES, decode_indices, encode_indices, read_indices


@pytest.fixture(autouse=True)
def _in_torch():
    """The form of other devices than the CPU."""
    with kernels.use("eager"):
        yield


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
    **{f"of {n}": (places(n // 3 + 1, n, seed=n), n) for n in (2, 3, 4, 63, 64, 65, 1023, 1025)},
    **{f"two of {n}": (np.array([1, n - 1]), n) for n in (127, 128, 129, 130, 16385, 16386)},
    **{
        f"up to 2^{bits}{off:+}": (np.array([0, 7, (1 << bits) + off - 1]), (1 << bits) + off)
        for bits in (31, 32, 56, 60)
        for off in (-1, 0, 1)
        if bits < 60 or off < 1
    },
}
SMALL = {name: case for name, case in CASES.items() if case[1] <= 100_000}


def encoded(indices, n, code):
    return encode_indices(torch.from_numpy(indices), n, code).numpy().tobytes()


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


def of_each_code(cases):
    return [
        pytest.param(*cases[name], code, id=f"{name}, {code}")
        for name in cases
        for code in CODES
        if code != "bitmap" or name in SMALL
    ]


@pytest.mark.parametrize(("indices", "n", "code"), of_each_code(CASES))
def test_the_bytes_are_those_of_the_definition(indices, n, code):
    assert encoded(indices, n, code) == slow(indices, n, code)


@pytest.mark.parametrize(("indices", "n", "code"), of_each_code(CASES))
def test_round_trip(indices, n, code):
    places = torch.from_numpy(indices)
    data = encode_indices(places, n, code)
    assert (data.dtype, data.shape) == (torch.uint8, (len(data),))
    assert len(data) == index_codes.encoded_nbytes(places, n, code)
    assert torch.equal(encode_indices(places, n, code, len(data)), data)
    decoded = decode_indices(data.numpy().tobytes(), len(indices), n, code)
    assert decoded.dtype == np.int64
    assert decoded.tolist() == indices.tolist()
    assert places.tolist() == indices.tolist()  # as it was


@pytest.mark.parametrize("code", CODES)
def test_many_places_are_those_that_were_encoded(code):
    indices, n = places(40_000, 3_000_000), 3_000_000
    data = encode_indices(torch.from_numpy(indices), n, code)
    assert np.array_equal(decode_indices(data.numpy().tobytes(), len(indices), n, code), indices)
    assert np.array_equal(read_indices(data, len(indices), n, code).numpy(), indices)
    with kernels.use("auto"):
        assert np.array_equal(read_indices(data, len(indices), n, code).numpy(), indices)


@pytest.mark.parametrize(("indices", "n", "code"), of_each_code(CASES))
def test_a_message_is_read_wherever_it_begins(indices, n, code):
    data = encode_indices(torch.from_numpy(indices), n, code)
    for before in range(9):
        message = torch.cat([data.new_full((before,), 0xA5), data, data.new_full((3,), 0xA5)])
        decoded = read_indices(message[before : before + len(data)], len(indices), n, code)
        assert (decoded.dtype, decoded.device) == (torch.int64, data.device)
        assert decoded.tolist() == indices.tolist()


@pytest.mark.parametrize(("indices", "n", "code"), of_each_code(CASES))
def test_any_bytes_of_a_length_are_read_as_places_in_range(indices, n, code):
    length = len(encode_indices(torch.from_numpy(indices), n, code))
    rng = np.random.default_rng(length)
    garbage = [bytes(length), b"\x7f" * length, b"\x80" * length, b"\xff" * length]
    for data in (*garbage, *(rng.bytes(length) for _ in range(20))):
        message = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else EMPTY
        decoded = read_indices(message, len(indices), n, code)
        assert (decoded.dtype, decoded.shape) == (torch.int64, indices.shape)
        assert bool(((decoded >= 0) & (decoded < n)).all())


EMPTY = torch.zeros(0, dtype=torch.uint8)


@pytest.mark.parametrize("code", CODES)
def test_messages_too_short_for_their_places_are_refused(code):
    data = encode_indices(torch.tensor([3, 4, 900]), 1000, code)
    least = {"golomb": 4, "delta": 3}.get(code, len(data))  # golomb: 8 bits each, then a 0 each
    for short in (data[: least - 1], EMPTY):
        with pytest.raises(ValueError, match=f"must have {least} bytes"):
            read_indices(short, 3, 1000, code)
    if code in ("raw", "packed", "bitmap"):
        with pytest.raises(ValueError, match=f"must have {least} bytes, got {least + 1}"):
            read_indices(torch.cat([data, data[:1]]), 3, 1000, code)
    with pytest.raises(ValueError, match="k and n must satisfy"):
        read_indices(data, 3, 2, code)


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
    indices = torch.from_numpy(places(k, n))
    measured = 8 * index_codes.encoded_nbytes(indices, n, "golomb") / k
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
    indices = torch.from_numpy(places(k, n, seed=1))
    chosen = index_codes.cheapest(indices, n)[0] if code == "auto" else code
    measured = 8 * index_codes.encoded_nbytes(indices, n, chosen)
    assert index_codes.expected_bits(k, n, code) == pytest.approx(measured, rel=0.02, abs=16)


def test_the_cheapest_is_the_shortest():
    for indices, n in SMALL.values():
        lengths = {code: len(slow(indices, n, code)) for code in CODES}
        first = min(CODES, key=lengths.get)
        assert index_codes.cheapest(torch.from_numpy(indices), n) == (first, lengths[first])


@pytest.mark.parametrize("code", CODES)
@pytest.mark.slow
def test_mutants_are_refused_or_rise_in_range(code):
    rng = np.random.default_rng(4)
    originals = [(encoded(i, n, code), len(i), n) for i, n in SMALL.values()]
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
        assert encoded(found, n, code) == bytes(mutant)
        message = torch.frombuffer(mutant, dtype=torch.uint8) if mutant else EMPTY
        assert read_indices(message, k, n, code).tolist() == found.tolist()
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
@pytest.mark.parametrize("code", ["golomb", "delta"])
def test_what_does_not_rise_in_range_is_not_encoded(indices, message, code):
    wrong = torch.tensor(indices)
    for refused in (encode_indices, index_codes.encoded_nbytes):
        with pytest.raises(ValueError, match=f"indices {message}"):
            refused(wrong, 10, code)
    with pytest.raises(ValueError, match=f"indices {message}"):
        index_codes.cheapest(wrong, 10)


@pytest.mark.parametrize("indices", [[3, 3], [0, 3, 2, 5], [4, 10]])
@pytest.mark.parametrize("code", ["raw", "packed"])
def test_what_does_not_rise_in_range_is_not_decoded(indices, code):
    data = encode_indices(torch.tensor(indices), 10, code).numpy().tobytes()
    with pytest.raises(ValueError, match="indices must"):
        decode_indices(data, len(indices), 10, code)


def test_unknown_codes_are_refused():
    message = "code must be one of raw, packed, bitmap, golomb, delta, got 'huffman'"
    with pytest.raises(ValueError, match=message):
        encode_indices(torch.tensor([1]), 10, "huffman")
    with pytest.raises(ValueError, match=message):
        read_indices(EMPTY, 0, 10, "huffman")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("code", ["raw", "packed", "golomb", "delta"])
def test_the_loops_of_the_host_write_the_same_bytes(case, code):
    indices, n = CASES[case]
    expected = encoded(indices, n, code)
    with kernels.use("auto"):
        assert encoded(indices, n, code) == expected
        assert index_codes.encoded_nbytes(torch.from_numpy(indices), n, code) == len(expected)


@pytest.mark.parametrize("case", [name for name, (indices, _) in CASES.items() if len(indices)])
def test_the_loops_of_the_host_read_golomb_and_nothing_else(case):
    indices, n = CASES[case]
    data = torch.from_numpy(np.frombuffer(encoded(indices, n, "golomb"), np.uint8).copy())
    with kernels.use("auto"):
        read = read_indices(data, len(indices), n, "golomb")
        assert read.tolist() == indices.tolist()
        for bit in range(min(8 * len(data), 400)):
            other = data.clone()
            other[bit >> 3] ^= 1 << (bit & 7)
            read = of_bytes(other, len(indices), n)
            assert read == parsed(other, len(indices), n), bit
        for other in (data[:-1], torch.cat([data, data.new_zeros(1)])):
            assert of_bytes(other, len(indices), n) == parsed(other, len(indices), n)


def of_bytes(data, k, n):
    try:
        return read_indices(data, k, n, "golomb").tolist()
    except ValueError:
        return "refused"


def parsed(data, k, n):
    try:
        return decode_indices(data.numpy().data, k, n, "golomb").tolist()
    except ValueError:
        return "refused"
