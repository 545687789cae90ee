"""A process group and simulated workers exchange the same: every compressor, one launch a size."""

import pytest
import torch

from gradstats.compressors import compressor
from gradstats.ddp_hooks import CompressorState
from gradstats.exchange.collectives import Group
from tests.exchange.exchanges import SHAPES, SPECS, in_simulation
from tests.exchange.launching import launch
from tests.exchange.nets import Bucket

pytestmark = pytest.mark.slow

SUMS = ("all_reduce", "reduce_scatter")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # sums in 16 bits


@pytest.fixture(scope="module", params=[1, 2, 4])
def launched(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    return launch("tests.exchange.exchanges", "over_group", request.param, folder)


@pytest.fixture(autouse=True)
def one_thread():
    """As the workers have: decompositions of matrices depend on it in the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("spec", SPECS)
def test_a_process_group_does_what_simulated_workers_do(launched, spec):
    """Gathers and selected sets to the bit; sums of floats, whose order differs, to 1e-6."""
    simulated = in_simulation(spec, len(launched))
    precision = torch.finfo(HALVES[spec]).eps if spec in HALVES else 1e-6
    for worker, found in enumerate(launched):
        (rows, traffic), (expected, ledger) = found[spec], simulated[worker]
        for here, there in zip(rows, expected, strict=True):
            for name, (update, sent), (other, others) in zip(SHAPES, here, there, strict=True):
                if compressor(spec).contract.collective == "all_gather":
                    assert sent == others, name
                if not any(ledger.volumes[kind].calls for kind in SUMS):
                    assert torch.equal(update, other), name
                limit = precision * float(other.abs().max())
                torch.testing.assert_close(update, other, rtol=precision, atol=limit)
        for kind, volume in ledger.volumes.items():
            if kind != "control":
                assert traffic.volumes[kind] == volume, kind
        assert traffic.sum_bits == ledger.sum_bits


@pytest.mark.parametrize("spec", ["qsgd-shared", "terngrad-shared", "thc"])
def test_sums_of_integers_are_the_same_to_the_bit(launched, spec):
    for found, (expected, _) in zip(launched, in_simulation(spec, len(launched)), strict=True):
        for here, there in zip(found[spec][0], expected, strict=True):
            for (update, sent), (other, others) in zip(here, there, strict=True):
                assert sent == others
                assert torch.equal(update, other)


@pytest.mark.parametrize("spec", ["randomk(0.05)", "clt-k(0.05)", "ef(clt-k(0.05))"])
def test_places_that_workers_have_in_common_are_the_same(launched, spec):
    for found, (expected, _) in zip(launched, in_simulation(spec, len(launched)), strict=True):
        for here, there in zip(found[spec][0], expected, strict=True):
            for (update, _), (other, _) in zip(here, there, strict=True):
                assert torch.equal(update.nonzero(), other.nonzero())


@pytest.mark.parametrize("spec", SPECS)
def test_all_workers_have_the_same_update_to_the_bit(launched, spec):
    first, *others = (found[spec][0] for found in launched)
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            for (update, _), (same, _) in zip(ours, theirs, strict=True):
                assert torch.equal(update, same)


FUSED = ["powersgd", "topk(0.05)", "qsgd-shared", "clt-k(0.05)"]
FUSED += ["twoshot(mxfp8)", "twoshot(none)", "ring(none)"]


@pytest.mark.parametrize("spec", FUSED)
def test_the_collectives_of_a_bucket_are_fused(launched, spec):
    """A step of three parameters makes as many collectives as one of a single one."""
    calls = {
        "powersgd": {"all_reduce": 2},  # the bias goes with the first
        "topk(0.05)": {"all_gather": 1},
        "qsgd-shared": {"all_reduce": 2},
        "clt-k(0.05)": {"broadcast": 1, "all_reduce": 1},
        "twoshot(mxfp8)": {"all_to_all": 1, "all_gather": 1},
        "twoshot(none)": {"reduce_scatter": 1, "all_gather": 1},
        "ring(none)": {"all_to_all": len(launched) - 1, "all_gather": 1},
    }[spec]
    for found in launched:
        volumes = found[spec][1].volumes
        made = {kind: volumes[kind].calls / 2 for kind in volumes if kind != "control"}
        assert {kind: n for kind, n in made.items() if n} == {k: n for k, n in calls.items() if n}


def test_without_torch_distributed_there_is_no_group():
    with pytest.raises(RuntimeError, match="must be initialized first"):
        Group()
    state = CompressorState(None, "topk(0.01)")
    assert state.traffic.nbytes == 0
    assert state.settings["workers"] is None
    with pytest.raises(RuntimeError, match="must be initialized first"):
        state.reduce(Bucket((3, 4)))
