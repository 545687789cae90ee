"""Messages stay on their device: the hook waits for it no more often than a method declares."""

import pytest

from gradstats.compressors import compressor
from tests.exchange.launching import launch
from tests.exchange.reading import SPECS

pytestmark = pytest.mark.slow
WORKERS = 2
ALWAYS = 3  # is the bucket finite, the numbers of all workers, is the result sound


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reads")
    return launch("tests.exchange.reading", "of_the_hook", WORKERS, folder)


def allowed(spec):
    """The declared reads, and those of heads that differ and of lengths in later rounds.

    A two-shot exchange encodes a chunk for every worker and a sum, a ring one for every hop and a
    sum; on one worker, for which `host_reads` is declared, that is two codes, and one. Payloads of
    two factors read when they are decoded, those of all workers.
    """
    contract = compressor(spec).contract
    declared = contract.host_reads
    heads = 0 if contract.fixed_length and "nvfp4" not in spec else 1  # it sends a scale as number
    factors = (WORKERS - 1) * ("matrix" in contract.needs)
    if contract.collective == "two_shot":  # the second shot's lengths are known, or one read more
        return ALWAYS + declared * (WORKERS + 1) / 2 + heads + heads + 1
    if contract.collective == "ring":
        return ALWAYS + declared * WORKERS + heads + 2
    return ALWAYS + declared + factors + heads


@pytest.mark.parametrize("spec", SPECS)
def test_the_hook_waits_no_more_often_than_declared(counted, spec):
    for reads, _, sites in (worker[spec] for worker in counted):
        assert reads <= allowed(spec), sites


@pytest.mark.parametrize(
    ("spec", "reads"),
    [
        ("none", 1),  # whether it is finite is one of the numbers of all workers
        ("bf16", 1),
        ("sign", 3),
        ("qsgd", 3),
        ("mxfp8", 4),
        ("fp8", 4),
        ("affine(4)", 4),
        ("topk(0.05) | bitmap", 3),
        ("twoshot(mxfp8)", 7),
    ],
)
def test_what_the_docs_count(counted, spec, reads):
    for worker in counted:
        assert worker[spec][0] == reads, worker[spec][2]


def test_only_numbers_are_copied_to_the_device(counted):
    """Those of the round, and the head of every message."""
    for worker in counted:
        for spec in ("mxfp8", "qsgd", "topk(0.05) | bitmap", "sign"):
            _, uploads, sites = worker[spec]
            assert uploads == 2, sites
