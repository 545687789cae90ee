"""Buckets that are only averaged: their sums run while backward goes on, and what may happen."""

import pytest
import torch

from tests.exchange.launching import launch
from tests.exchange.nets import STEPS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[1, 2, 3])
def launched(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaging")
    return launch("tests.exchange.averaged", "all_of_it", request.param, folder)


def of_each(launched, scenario):
    return [found[scenario] for found in launched]


def test_the_mean_is_that_of_ddp(launched):
    for found in of_each(launched, "trained"):
        for (spec, views), (ours, theirs, steps, _) in found.items():
            exact = spec == "none" and len(launched) <= 2
            limit = {"none": 1e-6, "bf16": 2e-2, "fp16": 2e-3}[spec]
            assert steps == STEPS
            if exact:
                assert torch.equal(ours, theirs), views
            torch.testing.assert_close(ours, theirs, rtol=limit, atol=limit)


def test_a_static_graph_trains_as_without_a_hook(launched):
    """In its first pass DistributedDataParallel calls no bucket the last."""
    for found in of_each(launched, "of_a_static_graph"):
        for spec, (ours, theirs, steps) in found.items():
            limit = {"bf16": 2e-2, "fp16": 2e-3}.get(spec, 1e-6)
            assert steps == [step + 1 for step in range(STEPS)]
            torch.testing.assert_close(ours, theirs, rtol=limit, atol=limit)


def test_workers_may_have_uneven_inputs(launched):
    """A worker that has none left gets other buckets, of zeros, from DistributedDataParallel."""
    first, *_ = found = of_each(launched, "uneven")
    for spec, (ours, theirs) in first.items():
        limit = {"bf16": 2e-2, "fp16": 2e-3}.get(spec, 1e-6)
        torch.testing.assert_close(ours, theirs, rtol=limit, atol=limit)
        assert all(torch.equal(each[spec][0], ours) for each in found), spec


def test_all_workers_have_the_same_weights(launched):
    first, *others = of_each(launched, "trained")
    for found in others:
        for way, (ours, *_) in found.items():
            assert torch.equal(ours, first[way][0]), way


def test_only_large_parameters_are_sent_in_16_bits(launched):
    large, small = 800 + 1200 + 120, 40 + 30 + 4
    for found in of_each(launched, "trained"):
        for (spec, _), (*_, traffic) in found.items():
            nbytes = 4 if spec == "none" else 2
            sent = traffic.volumes["all_reduce"].nbytes
            assert sent == STEPS * (nbytes * large + 4 * small), spec


def test_all_but_the_last_bucket_are_under_way_when_the_hook_returns(launched):
    for found in of_each(launched, "under_way"):
        for spec, done in found.items():
            assert len(done) > 1, "several buckets"
            before = spec == "topk(0.5)"
            assert done == [before] * (len(done) - 1) + [True], spec


def test_a_nan_is_averaged_as_ddp_does_and_counted(launched):
    for found in of_each(launched, "broken"):
        for (spec, at), (ours, theirs, counted, later, exact, in_all) in found.items():
            assert ours.isnan().sum() == 1, (spec, at)
            assert torch.equal(ours.isnan(), theirs.isnan())
            assert counted == in_all == 1
            limit = {"none": 1e-6, "bf16": 2e-2, "fp16": 2e-3}[spec]
            torch.testing.assert_close(
                ours.nan_to_num(), theirs.nan_to_num(), rtol=limit, atol=limit
            )
            torch.testing.assert_close(later, exact, rtol=limit, atol=limit)


def test_nobody_waits_for_a_worker_that_fails_and_the_group_can_be_used(launched):
    *others, last = of_each(launched, "failing")
    for (error, step, bucket), (texts, total) in last.items():
        assert texts == ["nothing"] * step + [f"{error}: out of luck"]
        assert total == 3 * len(launched)
        for texts, total in (other[error, step, bucket] for other in others):
            assert texts[:-1] == ["nothing"] * step, (step, bucket)
            number = bucket if bucket != "last" else ""
            told = f"worker {len(launched) - 1} failed before bucket {number}"
            assert told in texts[-1]
            assert total == 3 * len(launched)


def test_a_worker_that_failed_is_told_why_whatever_the_group_does(launched):
    *others, last = of_each(launched, "failing_twice")
    assert last == "ArithmeticError: out of luck"
    assert all(f"worker {len(others)} failed before bucket 0 of step 0" in each for each in others)


def test_workers_that_drift_apart_are_told_which_buckets(launched):
    for texts in of_each(launched, "drifting"):
        if len(launched) == 1:
            assert texts == ["nothing"] * 5
            continue
        assert texts[:-1] == ["nothing"] * 3
        assert "bucket 0 of step 2, of parameters" in texts[-1]
        assert "have drifted apart" in texts[-1]
