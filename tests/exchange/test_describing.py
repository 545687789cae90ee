"""A hook's state and its traffic in one line, at every moment of their lives."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gradstats.ddp_hooks import CompressorState, compress_hook
from gradstats.exchange.counts import Traffic
from gradstats.exchange.describing import describe_state
from tests.exchange.nets import net, train

SPEC = "ef(topk(0.05))"


@pytest.fixture
def alone(tmp_path):
    """A process group of one worker."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_state_without_a_group_prints_its_compressor():
    text = f"CompressorState('{SPEC}', no process group yet, no step yet)"
    assert repr(CompressorState(None, SPEC)) == text


def test_a_state_of_one_worker_sends_nothing(alone):
    model = DistributedDataParallel(net())
    state = CompressorState(None, SPEC, named_parameters=model.named_parameters())
    assert repr(state) == f"CompressorState('{SPEC}', 1 worker, no step yet)"
    assert repr(state.traffic) == "Traffic(nothing sent, no collectives)"
    model.register_comm_hook(state, compress_hook)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 0, range(3))
    assert repr(state) == f"CompressorState('{SPEC}', 1 worker, 3 steps, nothing sent)"
    again = CompressorState(None, SPEC, named_parameters=net().named_parameters())
    again.load_state_dict(state.state_dict())
    assert repr(again) == f"CompressorState('{SPEC}', 1 worker, 3 steps)"
    for copied in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert repr(copied) == f"CompressorState('{SPEC}', 1 worker, 3 steps)"


def test_the_share_of_dense_is_bytes_over_bytes():
    traffic = Traffic()
    traffic.would_send(46_500_000, 2)
    traffic.count("all_gather", 1_550_000, 1_550_000.0)
    sent = "1,204 steps, 1.6 MB sent per worker, 1/30 of dense"
    text = f"CompressorState('ef(topk(0.01))', 2 workers, {sent}"
    assert describe_state("ef(topk(0.01))", 2, (1204, 0), traffic) == f"{text})"
    assert describe_state("ef(topk(0.01))", 2, (1204, 600), traffic) == f"{text} since step 600)"
    assert repr(traffic) == "Traffic(1.6 MB sent, 1/30 of dense, 1 all_gather)"


@pytest.mark.parametrize(
    ("sent", "text"), [(50, "1/2.0"), (100, "1/1.0"), (150, "1.5 times dense"), (0.01, "1/10,000")]
)
def test_shares_from_tiny_to_more_than_dense(sent, text):
    traffic = Traffic()
    traffic.would_send(100, 2)
    traffic.count("broadcast", 1, sent)
    assert text in repr(traffic)


def test_a_replay_has_no_dense_bytes_to_compare_with():
    traffic = Traffic()
    traffic.count("all_gather", 2_000, 2_000.0)
    assert repr(traffic) == "Traffic(2.0 kB sent, 1 all_gather)"
