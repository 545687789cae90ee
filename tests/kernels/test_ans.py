"""Interleaved asymmetric numeral systems: both forms write the same bytes, and read them."""

import numpy as np
import pytest
import torch

from gradstats.kernels import ans, ans_eager
from gradstats.kernels.ans_eager import RUN
from gradstats.kernels.forms import use

FORMS = ["auto", "eager"]


def frequencies(levels, steepness=0.7):
    """Of sum 2^16, each at least 1, falling."""
    share = np.exp(-steepness * np.arange(levels))
    whole = 1 + np.floor(share / share.sum() * ((1 << 16) - levels)).astype(np.int64)
    whole[0] += (1 << 16) - whole.sum()
    return whole


def drawn(freq, n, seed=0):
    slots = np.random.default_rng(seed).integers(0, 1 << 16, n)
    return np.searchsorted(np.cumsum(freq), slots, side="right")


def symbols_of(levels, n, *, paired):
    """Symbols, uint8 or uint16, and the frequencies of their units, which fit roughly."""
    units = levels**2 if paired else levels
    chosen = drawn(frequencies(levels), n) if paired else drawn(frequencies(units), n)
    return chosen.astype(np.uint8 if levels <= 256 else np.uint16), frequencies(units, 0.05)


@pytest.mark.parametrize("levels", [2, 11, 16])
@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 999, 20_001])
def test_two_symbols_are_one_unit(levels, n):
    check_both_forms(*symbols_of(levels, n, paired=True), levels)


@pytest.mark.parametrize("levels", [2, 17, 256, 257, 3000])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 999, 20_001])
def test_a_symbol_is_a_unit(levels, n):
    check_both_forms(*symbols_of(levels, n, paired=False), 0)


@pytest.mark.parametrize("n", [RUN - 1, RUN, RUN + 1, 2 * RUN + 17])
def test_runs_begin_and_end_anywhere(n):
    check_both_forms(*symbols_of(11, n, paired=True), 11)


def check_both_forms(symbols, freq, levels):
    seen = []
    for form in FORMS:
        with use(form):
            seen.append(ans.encode(symbols, freq, levels))
    assert seen[0] == seen[1]
    for form in FORMS:
        with use(form):
            decoded = ans.decode(seen[0], len(symbols), freq, levels)
        assert decoded.dtype == symbols.dtype
        assert np.array_equal(decoded, symbols)


@pytest.mark.parametrize("n", [0, 1, 100, 5000, 100_000])
def test_one_state_by_hand(n):
    """Python's integers, one unit after the other, from the last to the first."""
    freq = frequencies(5)
    symbols = drawn(freq, n).astype(np.uint8)
    tables, state, words = ans_eager.tables(freq), 1 << 16, []
    for symbol in symbols[::-1].tolist():
        f, before = int(freq[symbol]), int(freq[:symbol].sum())
        if state >= f << 16:
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // f << 16) + before + state % f
    ((states, coded),) = ans_eager.encode(symbols, tables, 0, 1) if n else [([state], [])]
    assert list(states) == [state]
    assert list(coded) == words[::-1]


@pytest.mark.parametrize("f", [1, 2, 3, 7, 255, 256, 257, 10_007, 32_768, 46_341, 65_534, 65_535])
def test_quotients_are_exact(f):
    """At every state near a multiple of f, where a quotient could be one off."""
    freq = np.array([f, (1 << 16) - f])
    tables = ans_eager.tables(freq)
    near = np.unique(np.linspace(0, (1 << 16) - 1, 5000).astype(np.uint64))
    x = (near[:, None] * np.uint64(f) + np.array([0, 1, f - 1], np.uint64)).ravel()
    x = x[x < np.uint64(f << 16)]
    quotients = ((x + tables.increments[0]) * tables.inverses[0]) >> np.uint64(47)
    assert np.array_equal(quotients, x // np.uint64(f))


@pytest.mark.parametrize("levels", [2, 256, 257, 1 << 16])
@pytest.mark.parametrize("n", [0, 1, 5, RUN + 3])
def test_symbols_are_counted(n, levels):
    symbols = np.random.default_rng(n).integers(0, levels, n)
    expected = torch.bincount(torch.from_numpy(symbols), minlength=levels)
    for dtype in (np.uint8, np.int32) if levels <= 256 else (np.int32,):
        for form in FORMS:
            with use(form):
                counts = ans.count(symbols.astype(dtype), levels)
            assert counts.dtype == np.int64
            assert counts.tolist() == expected.tolist()


def test_threads_change_no_byte():
    symbols, freq = symbols_of(11, 5 * RUN + 3, paired=True)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            data = ans.encode(symbols, freq, 11)
            seen.append((data, ans.decode(data, len(symbols), freq, 11).tobytes()))
    finally:
        torch.set_num_threads(before)
    assert seen[0] == seen[1] == seen[2]


def test_rare_symbols_cost_next_to_nothing():
    """Few bytes per run: one state for it, so that eight are not flushed."""
    freq = np.array([(1 << 16) - 1, 1])
    data = ans.encode(np.zeros(2 * RUN, np.uint8), freq)
    assert len(data) < 2 * (4 + 2 + 2) + 4
    assert not ans.decode(data, 2 * RUN, freq).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [999, 30_000])
def test_other_bytes_are_refused(form, n):
    symbols, freq = symbols_of(11, n, paired=True)
    data = ans.encode(symbols, freq, 11)
    assert (data[0] == 8) == (n == 30_000)
    bad = [b"", data[:1], data[:4], data[:-1], data[:-2], data[2:], data + b"\0", data + b"\0\0"]
    bad += [bytes([each]) + data[1:] for each in (0, 2, 7, 9, 255)]
    bad += [bytes([data[0]]) + bytes(len(data) - 1)]  # states below the least
    bad += [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in (1, 9, -1)]
    with use(form):
        for each in bad:
            with pytest.raises(ValueError, match="coded symbols must"):
                ans.decode(each, n, freq, 11)
        for wrong in (0, n - 2, n + 2, n + RUN):
            with pytest.raises(ValueError, match="coded symbols must"):
                ans.decode(data, wrong, freq, 11)


@pytest.mark.parametrize("form", FORMS)
def test_a_symbol_behind_the_last_is_refused(form):
    symbols, freq = symbols_of(11, 1000, paired=True)
    symbols[-1] = 3
    data = ans.encode(symbols, freq, 11)
    with use(form), pytest.raises(ValueError, match="must end after 999"):
        ans.decode(data, 999, freq, 11)


def test_lengths_of_runs_are_checked():
    symbols, freq = symbols_of(11, 2 * RUN + 5, paired=True)
    data = bytearray(ans.encode(symbols, freq, 11))
    length = int.from_bytes(data[1:5], "little")
    for wrong in (0, length - 1, length + 1, (1 << 32) - 1):
        data[1:5] = wrong.to_bytes(4, "little")
        with pytest.raises(ValueError, match="coded symbols must"):
            ans.decode(bytes(data), len(symbols), freq, 11)
