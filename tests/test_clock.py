"""What a timing is made of, by a clock that only the work itself moves."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from gradstats.compressors import AllReduce, Compressor, Contract, Step
from gradstats.payloads.base import Dense
from gradstats.replaying import timing
from gradstats.replaying.timing import REPETITIONS, WARM_UP, time_compressor

GRAD = torch.ones(4)


@pytest.fixture
def clock(monkeypatch):
    """Seconds pass only where a test says so."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


class Gathered(Compressor):
    """Takes what it is given of the clock, encoding by encoding."""

    name = "gathered"
    contract = Contract("all_gather")

    def __init__(self, clock, encodings):
        object.__setattr__(self, "clock", clock)
        object.__setattr__(self, "encodings", iter(encodings))

    def encode(self, grad, state, rng=None):
        self.clock.now += next(self.encodings)
        return Dense(grad.clone()), state


@pytest.fixture
def decodings(clock, monkeypatch):
    """Decoding takes what is put here, time by time."""
    seconds = []

    class Received:
        def __init__(self, data):
            assert len(data) > 4 * len(GRAD), "what is received is not the bytes"

        def to(self, device):
            return self

        def add_to(self, out):
            clock.now += seconds.pop(0)

    monkeypatch.setattr(timing, "from_bytes", Received)
    return seconds


def test_warm_up_is_not_in_the_medians(clock, decodings):
    """Three slow rounds, then rounds of which one is slow: by mean, least or first it is other."""
    measured = [0.010, 0.020, 0.090, 0.030, 0.025, 0.035, 0.015, 0.026, 0.024]
    decodings += [0.05] * WARM_UP + [seconds / 10 for seconds in measured]
    times = time_compressor(Gathered(clock, [0.05] * WARM_UP + measured), GRAD)
    assert len(measured) == REPETITIONS
    assert times["encode_seconds"] == pytest.approx(0.025)
    assert times["decode_seconds"] == pytest.approx(0.0025)
    assert decodings == []


def test_what_takes_long_is_timed_twice_after_its_warm_up(clock, decodings):
    """A compiler at work in the warm-up, then 2 s and 4 s by turns: the limit is a second."""
    decodings += [0.0] * 9
    encodings = itertools.chain([100.0] * WARM_UP, itertools.cycle([2.0, 4.0]))
    times = time_compressor(Gathered(clock, encodings), GRAD)
    assert times["encode_seconds"] == pytest.approx(2.0)  # the median of 2, 4 and 2
    assert len(decodings) == 9 - WARM_UP - 3


class Reduced(Compressor):
    """Two rounds of all-reduce: 1 s before the first, 2 s between them, 4 s after the second."""

    name = "reduced"
    contract = Contract("all_reduce", rounds=2)

    def __init__(self, clock):
        object.__setattr__(self, "clock", clock)

    def encode(self, grad, state, rng=None):
        raise AssertionError("an exchange is timed by its rounds")

    def exchange(self, grad, state, rng=None):
        self.clock.now += 1.0
        mean = yield AllReduce(grad, "mean")
        self.clock.now += 2.0
        mean = yield AllReduce(mean, "mean")
        self.clock.now += 4.0
        return Step(mean, Dense(grad.clone()), state)


def test_all_rounds_before_the_last_all_reduce_are_encoding(clock):
    times = time_compressor(Reduced(clock), GRAD)
    assert times == {"encode_seconds": 3.0, "decode_seconds": 4.0}
