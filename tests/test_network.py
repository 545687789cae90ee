"""The cost models against rings that pass their messages one by one."""

import math

import pytest

from gradstats.network import Network

NBYTES = 3e6


def ring(network, rounds, message):
    return sum(network.latency + message / network.bandwidth for _ in range(rounds))


@pytest.mark.parametrize("workers", [1, 2, 8, 1024])
def test_collectives_cost_what_a_ring_takes(workers):
    network = Network(workers=workers, bandwidth=1e9, latency=1e-5)
    chunk = NBYTES / workers
    reduce_scatter = gather_chunks = ring(network, workers - 1, chunk)
    assert network.all_reduce(NBYTES) == pytest.approx(reduce_scatter + gather_chunks)
    assert network.all_gather(NBYTES) == pytest.approx(ring(network, workers - 1, NBYTES))
    small, large = NBYTES / 10, 0.9 * NBYTES  # two rounds, of which the second waits for the first
    assert network.all_reduce(NBYTES, rounds=2) == pytest.approx(
        network.all_reduce(small) + network.all_reduce(large)
    )
    assert network.all_gather(NBYTES, rounds=2) == pytest.approx(
        network.all_gather(small) + network.all_gather(large)
    )


@pytest.mark.parametrize("workers", [1, 2, 8, 1024])
def test_two_shots_send_chunks_to_all_and_gather_chunks(workers):
    """Each of the n-1 messages of a shot has a chunk; a ring that encodes anew has as many."""
    network = Network(workers=workers, bandwidth=1e9, latency=1e-5)
    first, second = NBYTES, NBYTES / 3
    shots = (
        ring(network, workers - 1, first / workers),
        ring(network, workers - 1, second / workers),
    )
    assert network.two_shot(first + second) == pytest.approx(sum(shots))


def test_a_worker_alone_talks_to_nobody():
    assert Network(workers=1).two_shot(NBYTES) == 0
    assert Network(workers=1).all_reduce(NBYTES) == Network(workers=1).all_gather(NBYTES) == 0


def test_an_all_reduce_of_large_messages_moves_twice_their_bytes_whatever_the_workers():
    costs = [Network(workers=n, bandwidth=1e9, latency=0).all_reduce(1e9) for n in (10, 10**6)]
    assert costs == pytest.approx([1.8, 2.0], rel=1e-5)


def test_nothing_to_send_still_costs_latency_and_no_bandwidth_costs_everything():
    assert Network(workers=3, latency=1.0).all_reduce(0) == 4
    assert Network(workers=3, latency=1.0).all_gather(0) == 2
    fast = Network(workers=3, bandwidth=math.inf, latency=0.0)
    assert fast.all_reduce(NBYTES) == fast.all_gather(NBYTES) == 0


def test_a_network_says_its_links_in_bits():
    assert str(Network(workers=4, bandwidth=25e9 / 8)) == "4 workers on 25 Gbit/s links"
