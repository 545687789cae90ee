"""Simulated workers behave as one process group would."""

import pytest
import torch

from gradstats.compressors import (
    AllGather,
    AllReduce,
    Broadcast,
    ErrorFeedback,
    Rng,
    Step,
    compressor,
)
from gradstats.exchange import fused, simulate
from gradstats.payloads.base import Dense


def ask(*requests):
    """An exchange that makes the requests and returns what it was sent."""
    received = []
    for request in requests:
        received.append((yield request))
    return Step(torch.zeros(0), Dense(torch.zeros(0)), received)


def results(*exchanges):
    return [step.state for step in simulate(exchanges)]


def vector(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


def test_every_worker_gets_the_same_result_of_every_round():
    first, second = vector(1.0, 2.0), vector(3.0, -4.0)
    for op, expected in (("sum", [4, -2]), ("mean", [2, -1]), ("max", [3, 2])):
        for (result,) in results(ask(AllReduce(first, op)), ask(AllReduce(second, op))):
            assert result.tolist() == expected
    assert first.tolist() == [1, 2]


def test_gathered_payloads_may_differ_in_length_and_keep_worker_order():
    short, long = Dense(vector(1.0)), Dense(vector(1.0, 2.0))
    for (result,) in results(ask(AllGather(short)), ask(AllGather(long))):
        assert [payload.to_bytes() for payload in result] == [short.to_bytes(), long.to_bytes()]


def test_broadcast_takes_the_roots_payload():
    own, roots = Dense(vector(1.0)), Dense(vector(2.0))
    for (result,) in results(ask(Broadcast(own, 1)), ask(Broadcast(roots, 1))):
        assert result.to_bytes() == roots.to_bytes()


def test_rounds_stay_in_step():
    def rounds(start):
        total = yield AllReduce(vector(start), "sum")
        total = yield AllReduce(total + start, "sum")
        return Step(total, Dense(total), None)

    assert [float(step.update) for step in simulate([rounds(1.0), rounds(2.0)])] == [9.0, 9.0]


def test_a_mean_in_bfloat16_sums_in_bfloat16():
    """256 + 1 = 256 in bfloat16: the error that a process group makes is made here too."""
    workers = [vector(256.0, dtype=torch.bfloat16)] + [vector(1.0, dtype=torch.bfloat16)] * 3
    for (result,) in results(*(ask(AllReduce(worker, "mean")) for worker in workers)):
        assert result.dtype == torch.bfloat16
        assert float(result) == 64.0  # 259 / 4 if summed exactly
    steps = simulate([compressor("bf16").exchange(worker.float(), None) for worker in workers])
    assert float(steps[0].update) == 64.0


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([ask(AllReduce(vector(1.0))), ask(AllGather(Dense(vector(1.0))))], "AllGather"),
        ([ask(AllReduce(vector(1.0), "sum")), ask(AllReduce(vector(1.0), "max"))], "max"),
        ([ask(AllReduce(vector(1.0))), ask(AllReduce(vector(1.0, 2.0)))], r"\[2\]"),
        (
            [ask(AllReduce(vector(1.0))), ask(AllReduce(vector(1.0, dtype=torch.float64)))],
            "float64",
        ),
        (
            [ask(Broadcast(Dense(vector(1.0)), root)) for root in (0, 1)],
            "root=1",
        ),
        ([ask(AllReduce(vector(1.0))), ask()], "done"),
    ],
)
def test_workers_that_disagree_are_told_so(requests, message):
    with pytest.raises(RuntimeError, match="must ask for the same collective") as caught:
        simulate(requests)
    assert caught.match(message)


def test_only_what_is_alike_goes_together():
    """Integers of alphabets of other sizes are packed in other widths: they are sums apart."""
    levels = torch.tensor([1, 2])
    asked = [
        AllReduce(levels, "sum", levels=3),
        AllReduce(levels, "sum", levels=15),
        AllReduce(levels, "sum", levels=3),
        AllReduce(levels, "max", levels=3),
        AllReduce(vector(1.0), "sum"),
        AllReduce(vector(1.0, dtype=torch.float64), "sum"),
    ]
    together, result, seen = fused([ask(each) for each in asked]), None, []
    while True:
        try:
            request = together.send(result)
        except StopIteration as end:
            steps = end.value
            break
        seen.append((request.op, request.tensor.dtype, request.levels, request.tensor.numel()))
        result = request.tensor * 10
    assert seen == [
        ("sum", torch.int64, 3, 4),
        ("sum", torch.int64, 15, 2),
        ("max", torch.int64, 3, 2),
        ("sum", torch.float32, 0, 1),
        ("sum", torch.float64, 0, 1),
    ]
    for step, each in zip(steps, asked, strict=True):
        assert torch.equal(step.state[0], each.tensor * 10)


def test_no_worker_has_nothing_to_do():
    assert simulate([]) == []


def test_sparse_updates_are_the_mean_over_workers_also_where_they_overlap():
    workers = [vector(4.0, 1.0, 0.0), vector(2.0, 0.0, -1.0), vector(0.0, 0.0, -3.0)]
    steps = simulate([compressor("topk(0.34)").exchange(each, None) for each in workers])
    for step in steps:
        assert step.update.tolist() == pytest.approx([2.0, 0.0, -1.0])


def test_one_worker_exchanges_what_it_would_encode():
    grad = torch.linspace(-1, 1, 100)
    for spec in ("none", "topk(0.1)", "ef(randomk(0.1))"):
        member = compressor(spec)
        payload, _ = member.encode(grad, member.init(grad), Rng())
        (step,) = simulate([member.exchange(grad, member.init(grad), Rng())])
        assert torch.equal(step.update, payload.decode())


def test_feedback_remembers_what_this_worker_did_not_send():
    member = ErrorFeedback(compressor("topk(0.5)"))
    workers = [vector(4.0, 1.0), vector(0.0, 2.0)]
    steps = simulate([member.exchange(each, member.init(each)) for each in workers])
    assert [step.state.residual.tolist() for step in steps] == [[0.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("levels", [2, 9, 256, 300, 70_000, 1 << 33])
def test_the_maximum_of_levels_is_taken_element_by_element(levels):
    generator = torch.Generator().manual_seed(levels)
    symbols = torch.randint(levels, (3, 40), generator=generator)
    asked = [ask(AllReduce(each, "max", levels=levels)) for each in symbols]
    for (result,) in results(*asked):
        assert torch.equal(result, symbols.amax(0))


def test_what_one_worker_does_to_a_result_is_its_own_affair():
    def spoiling(op, value):
        tensor = yield AllReduce(vector(value), op)
        payloads = yield AllGather(Dense(vector(value)))
        root = yield Broadcast(Dense(vector(value)), 0)
        seen = (tensor.item(), [each.values.item() for each in payloads], root.values.item())
        tensor.mul_(7)
        for each in (*payloads, root):
            each.values.mul_(7)
        payloads.clear()
        return Step(tensor, Dense(tensor), seen)

    for op, expected in (("sum", 6.0), ("mean", 2.0), ("max", 3.0)):
        seen = results(*(spoiling(op, value) for value in (1.0, 2.0, 3.0)))
        assert seen == [(expected, [1.0, 2.0, 3.0], 1.0)] * 3


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 60_000.0), (torch.bfloat16, 3e38)])
@pytest.mark.parametrize("workers", [2, 3, 7, 8])
def test_a_mean_near_the_range_is_finite(dtype, value, workers):
    """Shares are divided before they are added, and rounded so that the sum of all is finite."""
    largest = torch.tensor(torch.finfo(dtype).max, dtype=dtype)
    for each in (torch.tensor(value, dtype=dtype), largest, -largest):
        asked = [ask(AllReduce(each.view(1), "mean")) for _ in range(workers)]
        for (mean,) in results(*asked):
            off = abs(mean.double() - each.double()) / each.double().abs()
            assert off <= workers * torch.finfo(dtype).eps


def test_a_mean_does_not_hide_what_is_infinite():
    for value in (torch.inf, -torch.inf, torch.nan):
        pair = vector(value, dtype=torch.float16), vector(1.0, dtype=torch.float16)
        for (mean,) in results(*(ask(AllReduce(each, "mean")) for each in pair)):
            assert not mean.isfinite()
