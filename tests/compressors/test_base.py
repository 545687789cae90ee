"""The short forms of a compressor: what their authors write, and what they are given."""

from dataclasses import dataclass, replace

import pytest
import torch

from gradstats.compressors import (
    COMPRESSORS,
    MEMORIES,
    POLICIES,
    AllReduce,
    Compressor,
    Contract,
    Joint,
    Memory,
    Rng,
    Stateless,
    Step,
    TopK,
    check_choice,
    check_whole,
    compressor,
    compressors,
)
from gradstats.compressors.methods.mx import MX
from gradstats.compressors.rounds import Worker, alone
from gradstats.exchange import simulate
from gradstats.payloads import Dense

PLAIN = Contract("all_reduce")


@dataclass(frozen=True)
class Spy(Stateless):
    """Returns what it is given, so that a test can look at it."""

    name = "spy"
    contract = PLAIN

    def message(self, flat, rng=None):
        return Dense(flat)


@dataclass(frozen=True)
class Halves(Joint):
    """Two rounds: the largest magnitude of all workers, then the mean of the scaled gradients."""

    name = "halves"
    contract = replace(PLAIN, rounds=2, has_memory=True)

    def exchange(self, grad, state, rng=None):
        flat = self.flattened(grad)
        largest = yield AllReduce(flat.abs().amax().reshape(1), "max")
        mean = yield AllReduce(flat / largest, "mean")
        sent = Dense(flat / largest)
        return Step((mean * largest).view(grad.shape), sent, float(largest))


@pytest.mark.parametrize(
    "grad",
    [
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(6.0)[::2],
        torch.tensor(3.0),
        torch.zeros(0),
        torch.arange(4.0, requires_grad=True),
    ],
    ids=["transposed", "strided", "no dimension", "empty", "with autograd"],
)
def test_a_message_is_made_from_a_flat_contiguous_detached_gradient(grad):
    payload, state = Spy().encode(grad, "kept")
    flat = payload.values
    assert flat.dim() == 1
    assert flat.is_contiguous()
    assert not flat.requires_grad
    assert flat.tolist() == grad.detach().reshape(-1).tolist()
    assert state == "kept"


def test_most_methods_keep_no_state():
    members = [each for name in COMPRESSORS for each in compressors(name, [0.01])]
    grad = torch.ones(4, 4)
    for member in members:
        if isinstance(member, Stateless) and not isinstance(member, Joint):
            assert member.init(grad) is None
            assert not member.contract.has_memory
    classes = {type(member) for member in members}
    assert sum(issubclass(each, Stateless) for each in classes) >= 35


def test_one_worker_sends_what_its_exchange_sends():
    grad = torch.tensor([[1.0, -4.0]])
    payload, state = Halves().encode(grad, None)
    assert payload.decode().tolist() == [0.25, -1.0]
    assert state == 4.0
    both = simulate([Halves().exchange(each, None) for each in (grad, grad / 2)])
    assert [step.update.tolist() for step in both] == [[[0.75, -3.0]]] * 2


def test_a_worker_goes_from_collective_to_collective():
    worker = Worker(Halves().exchange(torch.tensor([1.0, -4.0]), None))
    assert worker.request.op == "max"
    worker.advance(torch.tensor([8.0]))
    assert worker.request.tensor.tolist() == [0.125, -0.5]
    worker.advance(torch.tensor([0.5, 0.5]))
    assert worker.request is None
    assert worker.value.update.tolist() == [4.0, 4.0]
    ended = (value for value in ())
    assert alone(ended) is None


@pytest.mark.parametrize("missing", ["name", "contract", "message"])
def test_a_class_that_lacks_a_part_cannot_be_made(missing):
    parts = {"name": "x", "contract": PLAIN, "message": Spy.message}
    whole = type("Whole", (Stateless,), parts)
    assert isinstance(dataclass(frozen=True)(whole)(), Compressor)
    del parts[missing]
    with pytest.raises(TypeError, match=f"abstract method '?{missing}"):
        type("Lacking", (Stateless,), parts)()


def test_name_and_contract_may_be_properties_of_the_settings():
    for spec in ("mxfp4", "sidco-e(0.1)", "qsgd(bits=2)"):
        member = compressor(spec)
        assert spec.startswith(member.name)
        assert isinstance(member.contract, Contract)


def test_a_memory_without_its_two_methods_names_the_missing_one():
    @dataclass(frozen=True)
    class Empty(Memory):
        compressor: Compressor
        name = "empty"

    with pytest.raises(NotImplementedError, match="Empty must define before"):
        Empty(TopK(0.5)).encode(torch.ones(2), None)
    with pytest.raises(NotImplementedError, match="Empty must define after"):
        Empty(TopK(0.5)).after(Dense(torch.ones(2)), torch.ones(2), None)


@pytest.mark.parametrize("name", ["ef", "lowpass", "velocity"])
def test_on_one_worker_encoding_and_exchanging_leave_the_same(name):
    member = MEMORIES[name](TopK(0.25))
    grads = torch.randn(4, 24, generator=torch.Generator().manual_seed(2))
    one, other = member.init(grads[0]), member.init(grads[0])
    for step, grad in enumerate(grads):
        payload, one = member.encode(grad, one, Rng(step=step))
        before = other.residual.clone()
        exchanged = alone(member.exchange(grad, held := other, Rng(step=step)))
        assert torch.equal(held.residual, before), "an exchange leaves its state as it was"
        other = exchanged.state
        assert payload.to_bytes() == exchanged.sent.to_bytes()
        assert torch.equal(one.residual, other.residual)


def test_error_feedback_encodes_in_place():
    """A new residual per step would cost five times the memory traffic."""
    member = MEMORIES["ef"](TopK(0.25), gamma=0.5)
    state = member.init(torch.ones(8))
    where = state.residual.data_ptr()
    for _ in range(2):
        _, state = member.encode(torch.arange(8.0), state)
        assert state.residual.data_ptr() == where


def test_every_policy_and_memory_has_a_name_of_the_grammar():
    inside = {"adaquant": "qsgd"}
    for name in {**MEMORIES, **POLICIES}:
        spec = f"{name}({inside.get(name, 'topk(0.1)')})"
        assert compressor(spec).name == name


def test_settings_are_refused_with_their_rule_and_value():
    check_whole("bin", 7, 1)
    check_choice("norm", "l2", ("l2", "max"))
    for value in (0, 2.0, "3", None):
        with pytest.raises(ValueError, match=rf"bin must be a whole number from 1, got {value!r}"):
            check_whole("bin", value, 1)
    with pytest.raises(ValueError, match="bits must be a whole number from 1 to 8, got 9"):
        check_whole("bits", 9, 1, 8)
    with pytest.raises(ValueError, match="format must be one of mxfp4, mxfp8, got 'mxfp6'"):
        MX("mxfp6")
