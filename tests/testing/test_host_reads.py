"""Reads from a device are counted on ordinary tensors, and what does not wait is not."""

import copy

import numpy as np
import pytest
import torch

from gradstats.testing import counting_host_reads


def rises(grad):
    return torch.arange(grad.numel(), device=grad.device)


READS = {
    "float": lambda g: float(g[0]),
    "int": lambda g: int(g.sum()),
    "item": lambda g: g.max().item(),
    "bool": lambda g: bool((g > 0).any()),
    "if": lambda g: 1 if g.isnan().any() else 2,
    "format": lambda g: f"{g[0]:.2f}",
    "a max of Python": lambda g: max(g[0], g[1]),
    "an index": lambda g: [1, 2, 3, 4, 5, 6][rises(g)[1]],
    "tolist": lambda g: g.tolist(),
    "numpy": lambda g: g.numpy(),
    "np.asarray": lambda g: np.asarray(g),
    "cpu": lambda g: g.cpu(),
    "to the host": lambda g: g.to("cpu"),
    "into memory of the host": lambda g: torch.zeros(4).copy_(g),
    "nonzero": lambda g: g.nonzero(),
    "where": lambda g: torch.where(g > 0),
    "a mask": lambda g: g[g > 0],
    "masked_select": lambda g: g.masked_select(g > 0),
    "writing under a mask": lambda g: g.__setitem__(g > 0, g[0]),
    "a number under a mask": lambda g: g.__setitem__(g > 0, 0.0),
    "unique": lambda g: g.unique(),
    "unique_consecutive": lambda g: g.unique_consecutive(),
    "bincount": lambda g: torch.bincount(rises(g)),
    "repeats": lambda g: g.repeat_interleave(rises(g)),
    "equal": lambda g: torch.equal(g, g),
    "singular values": lambda g: torch.linalg.svd(g.view(2, 2)),
    "a view's": lambda g: float(g.detach().reshape(2, 2).t()[1, 0]),
    "a deep copy's": lambda g: float(copy.deepcopy(g)[1]),
    "a new tensor's": lambda g: float(g.new_zeros(3)[0]),
    "a factory's": lambda g: float(torch.zeros(1, device=g.device)),
    "a factory's by name": lambda g: float(torch.zeros(1, device="cuda") + g[:1]),
    "what a function of torch began": lambda g: float(torch.block_diag(g, g)[1, 0]),
    "to where a host's is": lambda g: g.to(torch.zeros(3)),
    "to the host by its device": lambda g: torch.as_tensor(g, device=torch.zeros(3).device),
}
UPLOADS = {
    "a list of indices": lambda g: g[[1, 2]],
    "writing at a list of indices": lambda g: g.__setitem__([1, 2], 0.0),
    "indices of the host": lambda g: g[torch.tensor([1, 2])],
    "a mask of the host": lambda g: g[torch.tensor([True, False, True, False])],
    "to where another is": lambda g: torch.zeros(3).to(g),
    "to a device by its name": lambda g: torch.zeros(3).to("cuda"),
    "to the first device": lambda g: torch.zeros(3).cuda(),
    "numbers to a device by its name": lambda g: torch.tensor([1.0, 2.0], device="cuda"),
    "numbers": lambda g: torch.tensor([1.0, 2.0], device=g.device),
    "numbers like it": lambda g: g.new_tensor([1.0, 2.0]),
    "an array": lambda g: g + torch.from_numpy(np.zeros(4)).to(g.device),
    "as_tensor": lambda g: torch.as_tensor(np.zeros(4), device=g.device),
    "a tensor": lambda g: torch.zeros(3).to(g.device, torch.float64),
    "into the gradient": lambda g: g.copy_(torch.zeros(4)),
}
FREE = {
    "arithmetic": lambda g: ((g + 1).view(2, 2) @ g.view(2, 2)).sum() * 2,
    "sorting": lambda g: (g.sort(), g.topk(2), g.abs().max(), g.view(2, 2).median(0)),
    "a size": lambda g: torch.zeros(len(g) + g.shape[0], device=g.device).add_(1.0),
    "indices": lambda g: g[rises(g)[:2]].index_add_(0, rises(g)[:1], g[:1]),
    "where": lambda g: torch.where(g > 0, g, 0).masked_fill_(g > 1, 0.0),
    "repeats of one number": lambda g: g.repeat_interleave(3),
    "repeats of known sum": lambda g: g.repeat_interleave(rises(g), output_size=6),
    "nonzero_static": lambda g: torch.nonzero_static(g, size=4),
    "one element": lambda g: (g.__setitem__(0, g[1]), g.__setitem__(1, 1.0), g[2:].fill_(g[0])),
    "where it is": lambda g: g.to(g.device, torch.float64),
    "a dtype": lambda g: g.to(torch.float16).view(torch.uint8),
    "a deep copy": lambda g: copy.deepcopy([g, g]),
    "the host's": lambda g: (float(torch.ones(3).max()), torch.ones(3)[torch.ones(3) > 0]),
    "the host's by its name": lambda g: float(torch.zeros_like(g, device="cpu").sum()),
    "a number of the host": lambda g: g * torch.tensor(0.5) + torch.ones(3).max(),
    "a length of the host": lambda g: torch.full_like(g, len(torch.ones(3))).cuda().to(g),
    "a threshold": lambda g: g > torch.tensor(0.5, dtype=torch.float64).item(),
}


def counts(block, **settings):
    grad = torch.tensor([3.0, 0.0, -4.0, 5.0])
    with counting_host_reads(grad, **settings) as counted:
        block(grad)
    return counted.reads, counted.uploads


@pytest.mark.parametrize("name", READS)
def test_what_reads_from_the_device_is_counted_once(name):
    assert counts(READS[name]) == (1, 0)


@pytest.mark.parametrize("name", UPLOADS)
def test_copies_to_the_device_are_counted_apart(name):
    assert counts(UPLOADS[name]) == (0, 1)


@pytest.mark.parametrize("name", FREE)
def test_what_stays_on_the_device_or_the_host_is_free(name):
    assert counts(FREE[name]) == (0, 0)


@pytest.mark.parametrize("name", [*READS, *UPLOADS])
def test_the_first_one_can_be_refused(name):
    with pytest.raises(RuntimeError, match=r"cannot wait for the device: \w+ in .+:\d+"):
        counts((READS | UPLOADS)[name], refuse=True)


TABLE = torch.ones(4)
MIXED = {
    "a sum": ("add", lambda g: g + torch.zeros(4)),
    "a table": ("mul", lambda g: TABLE * g),
    "a concatenation": ("cat", lambda g: torch.cat([g, TABLE])),
    "a stack of numbers": ("stack", lambda g: torch.stack([g[0], torch.tensor(1.0)])),
    "a table under indices": ("index", lambda g: TABLE[rises(g)]),
    "values at indices": ("index_put_", lambda g: g.__setitem__([0, 1], TABLE[:2])),
    "in place": ("add_", lambda g: TABLE.clone().add_(g[0])),
    "a gather": ("gather", lambda g: g.gather(0, torch.tensor([1, 2]))),
    "what a host's device made": (
        "add",
        lambda g: g + torch.zeros(4, device=TABLE.device),
    ),
    "a mask": ("where", lambda g: torch.where(TABLE > 0, g, 0.0)),
}


@pytest.mark.parametrize("name", MIXED)
def test_tensors_of_two_devices_do_not_meet(name):
    operator, block = MIXED[name]
    rule = "cannot combine tensors of the host and the device"
    with pytest.raises(RuntimeError, match=rf"{rule}: \w+ in test_host_reads.py:\d+") as error:
        counts(block)
    assert operator in str(error.value) or operator == "stack"


def test_a_device_is_another_one_than_the_hosts():
    grad, table = torch.ones(3), torch.ones(3)
    with counting_host_reads(grad):
        assert grad.device != table.device
        assert grad.device == (grad * 2).device == torch.zeros(1, device=grad.device).device
        assert table.to(grad.device).device == grad.device
    assert grad.device == table.device


def test_a_table_of_an_earlier_block_is_still_on_the_device():
    grad, tables = torch.ones(3), {}
    for uploads in (1, 0):
        with counting_host_reads(grad) as counted:
            if grad.device not in tables:
                tables[grad.device] = TABLE[:3].to(grad.device)
            float((tables[grad.device] * grad)[0])
        assert (counted.reads, counted.uploads) == (1, uploads)


def test_a_table_that_was_uploaded_is_on_the_device():
    grad = torch.ones(3)
    with counting_host_reads(grad) as counted:
        table = torch.ones(3).to(grad.device)
        float((table * 2)[0])
    assert (counted.reads, counted.uploads) == (1, 1)


def test_results_are_those_of_ordinary_calls():
    grad = torch.tensor([3.0, 0.0, -4.0, 5.0])
    with counting_host_reads(grad):
        array, listed, first = grad.numpy(), grad.tolist(), grad.cpu()
        copied = copy.deepcopy({"a": grad, "b": grad})
    assert array.tolist() == listed == first.tolist() == [3.0, 0.0, -4.0, 5.0]
    assert copied["a"] is copied["b"]
    assert torch.equal(copied["a"], grad)
    with counting_host_reads(grad) as counted:
        pass
    assert not counted.sites


def test_a_site_names_the_line():
    grad = torch.ones(3)
    with counting_host_reads(grad) as counted:
        float(grad.sum())
    (site,) = counted.sites
    assert site.startswith("_local_scalar_dense in test_host_reads.py:")
