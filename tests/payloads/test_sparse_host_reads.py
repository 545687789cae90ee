"""How often the host waits for the device to write and read a sparse payload."""

import pytest
import torch

from gradstats import kernels
from gradstats.payloads import Dense, Masked, Sparse
from gradstats.payloads.index_codes import CODES, encode_indices, read_indices
from gradstats.rng import Rng
from gradstats.testing import counting_host_reads


@pytest.fixture(autouse=True)
def _in_torch():
    """The form of other devices than the CPU."""
    with kernels.use("eager"):
        yield


@pytest.mark.parametrize("k", [0, 1, 300, 9_000, 10_000])
@pytest.mark.parametrize("code", [None, *CODES])
def test_lengths_and_bytes_of_a_sparse_payload_take_one_read_together(code, k):
    flat = torch.randn(10_000, generator=torch.Generator().manual_seed(k))
    with counting_host_reads(flat) as host:
        at = Sparse.at(flat, flat.abs().topk(k).indices)
        payload = Sparse(at.kept, at.numel, at.indices, code)
        nbytes = payload.nbytes
        sections = list(payload.sections())
        again = payload.nbytes, list(payload.sections())
    assert host.uploads == 0
    assert host.reads == (k > 0 and code not in ("raw", "packed", "bitmap"))
    assert len(payload.to_bytes()) == nbytes == again[0]
    assert len(sections) == len(again[1])


@pytest.mark.parametrize("k", [0, 1, 300, 10_000])
@pytest.mark.parametrize("code", CODES)
def test_reading_indices_takes_no_read(code, k):
    indices = torch.randperm(10_000, generator=torch.Generator().manual_seed(1))[:k].sort().values
    data = encode_indices(indices, 10_000, code)
    with counting_host_reads(data) as host:
        decoded = read_indices(data, k, 10_000, code)
    assert (host.reads, host.uploads) == (0, 0)
    assert torch.equal(decoded, indices)


@pytest.mark.parametrize("kind", ["sparse", "masked"])
def test_a_receiver_adds_and_removes_without_a_read(kind):
    stream = Rng(seed=3).shared
    indices = stream.subset(50, 1000)
    values = torch.arange(1.0, 51.0)
    payloads = {
        "sparse": Sparse(Dense(values), 1000, indices),
        "masked": Masked(Dense(values), 1000, stream, drawn=indices),
    }
    expected = torch.zeros(1000)
    for index, value in zip(indices.tolist(), values.tolist(), strict=True):
        expected[index] = value
    added, left, momentum = torch.ones(1000), torch.ones(1000), torch.ones(1000)
    with counting_host_reads(values, indices, added, left, momentum) as host:
        payload = payloads[kind]
        decoded = payload.decode()
        payload.add_to(added, 0.5)
        payload.remove_from(left)
        payload.clear(momentum)
    assert (host.reads, host.uploads) == (0, 0)
    assert torch.equal(decoded, expected)
    assert torch.equal(added, 1 + 0.5 * expected)
    assert torch.equal(left, 1 - expected)
    assert torch.equal(momentum, (expected == 0).float())


def test_selecting_reads_a_size_where_values_determine_it():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    with kernels.use("eager"):
        with counting_host_reads(values) as host:
            kernels.largest(values, 50)
        assert (host.reads, host.uploads) == (0, 0)
        with counting_host_reads(values) as host:
            kernels.compact(values, 1.0)
        assert host.reads == 1
