"""Memory is handed out again when nobody can reach it any more, and never before."""

import gc

import numpy as np
import pytest
import torch

from gradstats.kernels import recycling
from gradstats.kernels.recycling import Pool

N = 100_000
HOLDERS = {
    "tensor": lambda tensor: tensor,
    "view": lambda tensor: tensor.view(torch.uint8)[5:9],
    "detached": lambda tensor: tensor.detach(),
    "parameter": torch.nn.Parameter,
    "array": lambda tensor: tensor.numpy(),
    "tensor of an array": lambda tensor: torch.from_numpy(tensor.numpy()[3:5]),
    "memory": lambda tensor: memoryview(tensor.numpy())[3:5],
    "dlpack": lambda tensor: np.from_dlpack(tensor),
    "storage": lambda tensor: tensor.untyped_storage(),
    "storage of a view": lambda tensor: tensor[7:].untyped_storage(),
    "typed storage": lambda tensor: tensor.storage(),
    "graph": lambda tensor: (torch.zeros(N, requires_grad=True) * tensor).sum(),
    "list": lambda tensor: [{"inside": tensor[:1]}],
}


def taken(pool):
    with pool.open():
        return recycling.empty((N,), torch.float32)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("name", HOLDERS)
def test_what_is_held_in_any_way_is_not_handed_out(name):
    pool = Pool()
    tensor = taken(pool)
    address, holder = tensor.data_ptr(), HOLDERS[name](tensor)
    del tensor
    other = taken(pool)
    assert other.data_ptr() != address
    del holder
    gc.collect()
    assert taken(pool).data_ptr() == address


def test_memory_is_handed_out_once_and_given_back():
    pool = Pool()
    addresses = {tensor.data_ptr() for tensor in [taken(pool) for _ in range(5)]}
    assert len(addresses) == 5
    assert {tensor.data_ptr() for tensor in [taken(pool) for _ in range(5)]} == addresses
    for _ in range(3):
        pool.trim()
        taken(pool)
    assert len(pool._blocks) == 1


def test_outside_a_pool_and_for_little_memory_is_new():
    pool = Pool()
    taken(pool)
    recycling.empty((N,), torch.float32)
    with pool.open():
        recycling.empty((7,), torch.float32)
    assert len(pool._blocks) == 1
