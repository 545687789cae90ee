"""GRU and Conv1d in factors: equal to torch's own, with the counts of their formulas."""

import copy

import pytest
import torch
from torch import nn

import gradstats
from gradstats.lowrank import LowRankConv1d, LowRankGRU, balanced, factorize, warm_start
from gradstats.lowrank.filling import fill
from gradstats.lowrank.kinds import KINDS, Weight, kind_of
from gradstats.lowrank.replacing import heirs, low_rank
from gradstats.store import GradientStore

GRUS = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "both ways": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
}
CONVOLUTIONS = {
    "padding": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 5, "stride": 2, "dilation": 2, "bias": False},
    "same": {"kernel_size": 3, "padding": "same"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    "groups": {"kernel_size": 3, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 12, "stride": 2},
}


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def filled(layer, rank):
    """A layer of low rank with the balanced factors of a layer's weights."""
    new = low_rank(layer, rank, extra_norm=False).double()
    fill(new, layer, rank)
    return new


def first_of(output):
    return output[0] if isinstance(output, tuple) else output


def check_gradients(layer, new, x):
    """Gradients of factors follow from the full one's: W = U Vᵀ, so Uᵀ G and G V."""
    for module in (layer, new):
        output = first_of(module(x))
        (output * seeded(*output.shape, seed=7)).sum().backward()
    for one in kind_of(layer).successions(new, layer):
        if not isinstance(one, Weight):
            whole = torch.cat([heir.grad.flatten() for heir in one.heirs])
            for old in one.olds:
                torch.testing.assert_close(whole, old.grad, rtol=0, atol=1e-9)
            continue
        full = [block.flatten(1) for block in one.old.grad.chunk(one.blocks)]
        shape = (one.blocks, -1, full[0].shape[1])
        firsts = torch.cat([f.detach().flatten() for f in one.firsts]).view(shape)
        rank, grads = firsts.shape[1], [f.grad.flatten() for f in one.firsts]
        seconds = torch.cat([s.detach().flatten() for s in one.seconds])
        seconds = seconds.view(one.blocks, -1, rank)
        expected = torch.stack([s.T @ g for s, g in zip(seconds, full, strict=True)])
        torch.testing.assert_close(torch.cat(grads).view(shape), expected, rtol=0, atol=1e-9)
        expected = torch.stack([g @ f.T for f, g in zip(firsts, full, strict=True)])
        grads = torch.cat([s.grad.flatten() for s in one.seconds]).view_as(seconds)
        torch.testing.assert_close(grads, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("settings", GRUS.values(), ids=GRUS)
@pytest.mark.parametrize("given", [False, True])
def test_a_gru_of_full_rank_is_torchs_with_its_gradients(settings, given):
    torch.manual_seed(0)
    layer = nn.GRU(12, 8, **settings).double()
    new, x = filled(layer, 8), seeded(5, 7, 12)
    batch = 5 if settings.get("batch_first") else 7
    count = settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
    start = seeded(count, batch, 8, seed=1) if given else None
    for ours, theirs in zip(new(x, start), layer(x, start), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    check_gradients(layer, new, x)


@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_of_full_rank_is_torchs_with_its_gradients(settings):
    torch.manual_seed(0)
    layer = nn.Conv1d(12, 24, **settings).double()
    rank = min(24, 12 * settings["kernel_size"]) // settings.get("groups", 1)
    new, x = filled(layer, rank), seeded(3, 12, 15)
    torch.testing.assert_close(new(x), layer(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(new.weight, layer.weight, rtol=0, atol=1e-10)
    check_gradients(layer, new, x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Linear(6, 5), (3, 6)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
        (lambda: nn.LSTM(6, 4, 2, bidirectional=True), (3, 2, 6)),
    ],
)
def test_the_other_kinds_have_the_gradients_of_the_chain_rule_too(layer, shape):
    torch.manual_seed(0)
    layer = layer().double()
    rank = {nn.Linear: 5, nn.Conv2d: 3, nn.LSTM: 4}[type(layer)]
    check_gradients(layer, filled(layer, rank), seeded(*shape))


def test_a_gru_below_full_rank_has_the_best_gates():
    torch.manual_seed(0)
    holder = nn.ModuleDict({"gru": nn.GRU(12, 16, 2).double()})
    full = copy.deepcopy(holder["gru"])
    with torch.no_grad():
        for weight in full.parameters():
            if weight.dim() > 1:
                pieces = [balanced(gate, 3) for gate in weight.chunk(3)]
                weight.copy_(torch.cat([second @ first for second, first in pieces]))
    (change,) = factorize(holder, ranks={"gru": 3}, warm=True).changes
    assert (change.kind, change.rank) == ("GRU", 3)
    assert isinstance(holder["gru"], LowRankGRU)
    x = seeded(5, 2, 12)
    torch.testing.assert_close(holder["gru"](x)[0], full(x)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_the_count_of_a_gru_is_its_formula(bias, directions):
    d, h, r = 20, 32, 4
    model = nn.Sequential(nn.GRU(d, h, 2, bias=bias, bidirectional=directions == 2))
    (change,) = factorize(model, ranks={"0": r}).changes
    layers = [3 * n * r + 9 * h * r + 6 * h * bias for n in (d, directions * h)]
    assert change.after == directions * sum(layers)
    assert change.after == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("norm", [False, True])
def test_the_count_of_a_convolution_is_its_formula(groups, norm):
    c, m, k, r = 32, 64, 5, 2
    model = nn.Sequential(nn.Conv1d(c, m, k, groups=groups))
    (change,) = factorize(model, ranks={"0": r}, extra_norm=norm).changes
    assert change.after == groups * r * (c // groups * k + m // groups) + m + 2 * groups * r * norm
    assert change.after == sum(p.numel() for p in model.parameters())
    assert isinstance(model[0], LowRankConv1d)
    assert isinstance(model[0].norm, nn.BatchNorm1d if norm else nn.Identity)


def test_a_gru_takes_a_sequence_without_batch_and_no_packed_one():
    new, x = filled(nn.GRU(12, 8).double(), 3), seeded(5, 12)
    (out, h), (batched, last) = new(x), new(x[:, None])
    assert (out.shape, h.shape) == ((5, 8), (1, 8))
    torch.testing.assert_close(out, batched[:, 0])
    torch.testing.assert_close(h, last[:, 0])
    torch.testing.assert_close(new(x, h)[0], new(x[:, None], h[:, None])[0][:, 0])
    with pytest.raises(TypeError, match="pad sequences, got PackedSequence"):
        new(nn.utils.rnn.pack_sequence([x]))


def test_a_gru_drops_between_its_layers_in_training_alone():
    torch.manual_seed(0)
    layer = nn.GRU(6, 5, 2, dropout=0.5).double()
    new, x = filled(layer, 5), seeded(4, 3, 6)
    torch.testing.assert_close(new.eval()(x)[0], layer.eval()(x)[0], rtol=0, atol=1e-10)
    new.train()
    torch.manual_seed(1)
    dropped = new(x)[0]
    hidden = nn.GRU(6, 5).double()
    hidden.load_state_dict({n: p for n, p in layer.state_dict().items() if n.endswith("_l0")})
    last = nn.GRU(5, 5).double()
    state = {n[:-1] + "0": p for n, p in layer.state_dict().items() if n.endswith("_l1")}
    last.load_state_dict(state)
    torch.manual_seed(1)
    between = nn.functional.dropout(hidden(x)[0], 0.5, True)
    torch.testing.assert_close(dropped, last(between)[0], rtol=0, atol=1e-10)


def layer_of(kind):
    """A small layer of each kind of the table, and the shape of its input."""
    shapes = {
        "Linear": ((16, 16), (3, 16)),
        "Conv1d": ((16, 16, 3), (3, 16, 7)),
        "Conv2d": ((16, 16, 3), (3, 16, 7, 7)),
        "LSTM": ((16, 16), (4, 3, 16)),
        "GRU": ((16, 16), (4, 3, 16)),
        "MultiheadAttention": ((16, 4), (4, 3, 16)),
    }
    torch.manual_seed(0)
    sizes, shape = shapes[kind.name]
    return kind.original(*sizes), shape


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_hands_all_its_parameters_on(kind):
    layer, _ = layer_of(kind)
    new = low_rank(layer, 2, extra_norm=False)
    assert type(new) is kind.low_rank
    passed = heirs(new, layer)
    assert {id(p) for p in passed} == {id(p) for p in layer.parameters()}
    taken = {id(heir) for each in passed.values() for heir in each}
    assert taken == {id(p) for p in new.parameters()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_optimizer_goes_on_with_every_kind(kind):
    layer, shape = layer_of(kind)
    model = nn.ModuleDict({"layer": layer})
    groups = [
        {"params": [p for p in layer.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in layer.parameters() if p.dim() == 1], "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.25, momentum=0.9)
    _, fresh = warm_start(model, optimizer, ranks={"layer": 2})
    new = model["layer"]
    assert type(new) is kind.low_rank
    assert [(g["lr"], g["weight_decay"]) for g in fresh.param_groups] == [(0.25, 0.1), (0.5, 0)]
    names = [{id(p) for p in group["params"]} for group in fresh.param_groups]
    biases = {id(p) for name, p in new.named_parameters() if "bias" in name}
    assert names == [{id(p) for p in new.parameters()} - biases, biases]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    given = (x, x, x) if kind.name == "MultiheadAttention" else (x,)
    first_of(new(*given)).square().sum().backward()
    before = [p.detach().clone() for p in new.parameters()]
    fresh.step()
    moved = [not torch.equal(p, b) for p, b in zip(new.parameters(), before, strict=True)]
    assert all(moved)


def test_a_captured_run_knows_the_matrices_of_both(tmp_path):
    model = nn.ModuleDict({"gru": nn.GRU(8, 8), "conv": nn.Conv1d(8, 8, 3, groups=2)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = tmp_path / "run.zarr"
    with gradstats.capture(model, optimizer, path, full=gradstats.every(1), quiet=True):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    parts = {part.name: part.matrices for part in GradientStore.open(path).parameters}
    weights = {name: count for name, count in parts.items() if "weight" in name}
    assert weights == {"gru.weight_ih_l0": 3, "gru.weight_hh_l0": 3, "conv.weight": 2}
