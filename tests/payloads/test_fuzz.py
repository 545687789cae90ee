"""Corrupted payloads never crash, hang or fill the memory; `make soak` runs a million."""

import pytest

from tests.payloads.fuzzing import SPECS, fuzz


@pytest.mark.slow
def test_fifty_thousand_mutants():
    found = fuzz(50_000, seed=1)
    assert found.raw > 20_000
    assert found.resigned > 20_000
    # a fuzzer whose mutants are all refused at the door would test nothing behind it
    assert 0.02 * found.resigned < found.read < 0.98 * found.resigned
    assert set(found.by_spec) == set(SPECS)


@pytest.mark.soak
def test_a_million_mutants(record_property):
    found = fuzz(1_000_000, seed=2)
    record_property("mutants", found.raw + found.resigned)
    record_property("read", found.read)
    assert found.raw + found.resigned > 950_000
