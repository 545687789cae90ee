"""Gradients longer than what float32 can count: 2^25 elements and a few."""

import pytest
import torch

from gradstats.compressors import SUPPORTED, Rng, compressors, from_bytes

N = (1 << 25) + 3


@pytest.fixture(scope="module")
def grad():
    values = torch.randn(N, generator=torch.Generator().manual_seed(0)) ** 3
    values[-1] = 1e3  # at a place that float32 does not have
    return values


@pytest.mark.soak
@pytest.mark.parametrize("name", SUPPORTED)
def test_no_place_is_rounded_and_no_count_wraps(name, grad, record_property):
    (member,) = compressors(name, [0.001])
    payload, _ = member.encode(grad, member.init(grad), Rng())
    data = payload.to_bytes()
    received = from_bytes(data)
    record_property("elements", N)
    assert received.numel == N
    decoded = received.decode()
    assert torch.equal(decoded, payload.decode())
    if name != "randomk":
        assert float(decoded[-1]) == pytest.approx(1e3, rel=0.6) or name in ("sign", "eden", "co3")
        assert float(decoded[-2]) != pytest.approx(1e3, rel=0.1)
    if member.contract.delta and not member.contract.in_expectation:
        error = (decoded - grad).double().square().sum() / grad.double().square().sum()
        assert float(error) <= 1 - member.contract.delta(payload) + 1e-6
    if member.contract.bits:
        assert 8 * len(data) == pytest.approx(member.contract.bits(payload), rel=0.05, abs=512)
