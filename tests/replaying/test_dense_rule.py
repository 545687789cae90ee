"""What goes dense: the communication hook and the replay of the same gradients agree on it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradstats
from gradstats.compressors import Compressor, Contract, DenseRule, PerParameter, compressor
from gradstats.ddp_hooks import CompressorState, compress_hook
from gradstats.network import Network
from gradstats.payloads.sparse import Sparse
from gradstats.replaying.planning import plan
from gradstats.reporting.advice import advice
from tests.replaying.test_ranking import method, ranked_of


@dataclass(frozen=True)
class Nothing(Compressor):
    """Sends no element, so that whatever arrives was sent dense."""

    name: ClassVar[str] = "nothing"
    contract = Contract("all_gather")

    def encode(self, grad, state, rng=None):
        return Sparse.at(grad.reshape(-1), torch.zeros(0, dtype=torch.int64)), state


NOTHING = f"{__name__}:Nothing()"


class Varied(nn.Module):
    """Parameters of all shapes; the gradient of the i-th is i + 1 in every element."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 2048, 1)
        self.depthwise = nn.Conv1d(40, 40, 5, groups=40)
        self.norm = nn.BatchNorm2d(2048)
        self.embedding = nn.Embedding(300, 4)
        self.linear = nn.Linear(33, 31)  # 1,023 elements
        self.square = nn.Linear(32, 32)
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.single = nn.Parameter(torch.ones(1, 1))
        self.long = nn.Parameter(torch.ones(5000))
        self.row = nn.Parameter(torch.ones(1, 5000))

    def forward(self):
        return sum((i + 1) * p.sum() for i, p in enumerate(self.parameters()))


RULES = {
    "": DenseRule(),
    "min_numel=200": DenseRule(200),
    "min_numel=1023": DenseRule(1023),
    "min_dims=1": DenseRule(min_dims=1),
    "min_dims=3": DenseRule(min_dims=3),
    "min_numel=1, min_dims=0": DenseRule(1, 0),
    "min_numel=3000, min_dims=1": DenseRule(3000, 1),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A process group of this process."""
    meeting = tmp_path_factory.mktemp("group") / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def arrived(state):
    """Names of the parameters whose gradient came out of the hook as it went in."""
    model = DistributedDataParallel(Varied())
    model.register_comm_hook(state, compress_hook)
    model().backward()
    return {
        name
        for i, (name, parameter) in enumerate(model.module.named_parameters())
        if _whole(parameter.grad, i + 1)
    }


def _whole(grad, value):
    whole = bool((grad == value).all())
    assert whole or not grad.any(), "a parameter is sent whole or not at all"
    return whole


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    path, model = tmp_path_factory.mktemp("varied") / "run.zarr", Varied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    capture = gradstats.capture(model, optimizer, path, full=gradstats.every(1), track=3000)
    model().backward()
    optimizer.step()
    capture.close()
    return gradstats.open(path)


@pytest.mark.parametrize("written", RULES)
@pytest.mark.parametrize("by", ["parameter", "bucket"])
def test_the_hook_sends_dense_what_the_replay_does(alone, captured, written, by):
    rule = RULES[written]
    numbers = {"min_numel": rule.min_numel, "min_dims": rule.min_dims}
    sent_dense = arrived(CompressorState(None, NOTHING, by, **numbers))
    spec = f"per-parameter({NOTHING}{', ' if written else ''}{written})"
    for kind in ("full", "track"):
        parts = captured.parts(kind, compressor(spec).rule)
        assert {part.name for part in parts if part.dense} == sent_dense
    (job,) = plan(captured, [spec])
    assert {part.name for part in job.compressor.parts if part.dense} == sent_dense
    assert (job.granularity, job.labels["dense"]) == ("parameter", str(rule))
    table = gradstats.replay(captured, [spec])
    squares = {part.name: part.numel * (i + 1) ** 2 for i, part in enumerate(captured.parts())}
    lost = sum(square for name, square in squares.items() if name not in sent_dense)
    expected = math.sqrt(lost / sum(squares.values()))
    assert table["error"].iloc[0] == pytest.approx(expected, rel=1e-6)


def test_the_default_is_one_value(alone, captured):
    """By hand: small or of one dimension, where a convolution of 6,144 elements is neither."""
    compressed = {"convolution.weight", "embedding.weight", "square.weight", "row"}
    every = {name for name, _ in Varied().named_parameters()}
    assert arrived(CompressorState(None, NOTHING)) == every - compressed
    whole, parted = plan(captured, [NOTHING], granularity=["model", "parameter"])
    assert (whole.labels["dense"], parted.labels["dense"]) == ("", str(DenseRule()))
    assert {p.name for p in parted.compressor.parts if not p.dense} == compressed
    assert parted.labels == plan(captured, [f"per-parameter({NOTHING})"])[0].labels


def test_the_hook_takes_a_rule_from_the_grammar(alone):
    state = CompressorState(None, f"ef(per-parameter({NOTHING}, min_numel=3000, min_dims=1))")
    assert (state.by, str(state.compressor)) == ("parameter", "ef(nothing)")
    assert state.dense_rule == DenseRule(3000, 1)
    assert "long" not in arrived(state)
    with pytest.raises(ValueError, match=r"min_numel and min_dims must stand in .*200 elements"):
        CompressorState(None, f"per-parameter({NOTHING}, min_dims=1)", min_numel=200)


def test_checkpoints_agree_on_the_rule(alone):
    saved = CompressorState(None, NOTHING, min_dims=1).state_dict()
    with pytest.raises(ValueError, match="a checkpoint must be of min_dims 2, got one of 1"):
        CompressorState(None, NOTHING).load_state_dict(saved)
    old = CompressorState(None, NOTHING).state_dict()
    del old["settings"]["min_dims"]  # as written before there was a choice
    CompressorState(None, NOTHING).load_state_dict(old)


def test_the_advice_names_what_the_hook_sends_dense():
    network, sparse = Network(8, 1e7, 0.0), method("topk(0.01)", bits=0.5)
    ranked = ranked_of(method("bf16"), sparse, network=network)
    call = 'CompressorState(None, "ef(topk(0.01))")'
    assert f"{call}; parameters of {DenseRule()} are sent dense" in advice(ranked, network)


@pytest.mark.parametrize("around", ["{}", "ef({})", "ef21({})"])
@pytest.mark.parametrize("settings", RULES)
def test_the_grammar_writes_what_it_reads(around, settings):
    comma = ", " if settings else ""
    written = around.format(f"per-parameter(topk(0.01){comma}{settings})")
    made = compressor(written)
    assert str(made) == written
    assert compressor(str(made)) == made


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("per-parameter(topk(0.01), min_numel=0)", "min_numel must be a whole number from 1"),
        ("per-parameter(topk(0.01), min_dims=-1)", "min_dims must be a whole number from 0"),
        ("per-parameter(topk(0.01), 512)", "parts must be a tuple of Part, got 512"),
        ("per-parameter(per-parameter(topk(0.01)))", "not per parameter itself"),
        ("per-parameter(0.01)", "must be a compressor"),
    ],
)
def test_what_cannot_be_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        compressor(spec)


def test_without_parts_no_gradient_is_taken():
    member, grad = PerParameter(compressor("topk(0.1)")), torch.ones(10)
    with pytest.raises(ValueError, match=r"parts must add up to the 10 elements .* 0 parts of 0"):
        member.init(grad)


def test_per_parameter_leaves_the_ratio_open():
    specs = [str(job) for job in gradstats.compressors.compressors("per-parameter(topk)", [0.1])]
    assert specs == ["per-parameter(topk(0.1))"]
