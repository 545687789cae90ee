"""Layers of low rank against the full layers with the product as their weight."""

import copy

import pytest
import torch
from torch import nn

from gradstats.lowrank import LowRankLSTM, factorize, stable_rank
from gradstats.lowrank.convolutions import LowRankConv2d
from gradstats.lowrank.layers import LowRankAttention, LowRankLinear


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_rank(weight, rank):
    """The best approximation in float64, by numpy's own decomposition."""
    import numpy as np

    u, s, vt = np.linalg.svd(weight.detach().double().numpy(), full_matrices=False)
    return torch.from_numpy((u[:, :rank] * s[:rank]) @ vt[:rank])


def warmed(layer, rank):
    """The layer of low rank, and the full one with the best weights of that rank."""
    full, holder = copy.deepcopy(layer).double(), nn.ModuleDict({"layer": layer})
    found = factorize(holder, ranks={"layer": rank}, warm=True)
    assert found.changes[0].rank == rank, found
    return holder["layer"].double(), full


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 4), ()])
def test_a_linear_layer_has_the_best_weights_of_its_rank(bias, shape):
    layer, full = warmed(nn.Linear(20, 30, bias=bias).double(), 4)
    full.weight.data = of_rank(full.weight, 4)
    x = seeded(*shape, 20).double()
    torch.testing.assert_close(layer(x), full(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(layer.weight, full.weight, rtol=0, atol=1e-6)
    assert isinstance(layer, LowRankLinear)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "dilation": 2, "bias": False},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2)},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 3, "groups": 4, "stride": 2, "padding": 1},
    ],
)
def test_a_convolution_has_the_best_weights_of_its_rank_in_each_group(settings):
    layer, full = warmed(nn.Conv2d(16, 24, **settings).double(), 2)
    groups = settings.get("groups", 1)
    pieces = [of_rank(group.flatten(1), 2) for group in full.weight.chunk(groups)]
    full.weight.data = torch.cat(pieces).view_as(full.weight)
    x = seeded(2, 16, 13, 11).double()
    torch.testing.assert_close(layer(x), full(x), rtol=0, atol=1e-6)
    assert isinstance(layer, LowRankConv2d)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_layers": 2},
        {"bidirectional": True, "num_layers": 2},
        {"batch_first": True},
        {"bias": False},
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_an_lstm_is_torchs_with_the_best_gates_of_its_rank(settings, given):
    layer, full = warmed(nn.LSTM(12, 16, **settings).double(), 3)
    with torch.no_grad():
        for weight in full.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.cat([of_rank(gate, 3) for gate in weight.chunk(4)]))
    x = seeded(5, 7, 12).double()
    batch = x.shape[0] if settings.get("batch_first") else x.shape[1]
    count = settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
    start = tuple(seeded(count, batch, 16, seed=s).double() for s in (1, 2)) if given else None
    (out, (h, c)), (expected, (h_full, c_full)) = layer(x, start), full(x, start)
    for ours, theirs in ((out, expected), (h, h_full), (c, c_full)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert isinstance(layer, LowRankLSTM)


def test_an_lstm_takes_a_sequence_without_batch_and_no_packed_one():
    layer, _ = warmed(nn.LSTM(12, 16).double(), 3)
    x = seeded(5, 12).double()
    out, (h, c) = layer(x)
    batched, (hb, cb) = layer(x[:, None])
    assert (out.shape, h.shape, c.shape) == ((5, 16), (1, 16), (1, 16))
    torch.testing.assert_close(out, batched[:, 0])
    torch.testing.assert_close(h, hb[:, 0])
    torch.testing.assert_close(c, cb[:, 0])
    packed = nn.utils.rnn.pack_sequence([x])
    with pytest.raises(TypeError, match="got PackedSequence"):
        layer(packed)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "float", "heads", "padding"])
def test_attention_is_torchs_with_the_best_projections_of_their_rank(batch_first, bias, mask):
    full_layer = nn.MultiheadAttention(32, 4, bias=bias, batch_first=batch_first).double()
    layer, full = warmed(full_layer, 5)
    with torch.no_grad():
        pieces = [of_rank(each, 5) for each in full.in_proj_weight.chunk(3)]
        full.in_proj_weight.copy_(torch.cat(pieces))
        full.out_proj.weight.copy_(of_rank(full.out_proj.weight, 5))
    q, k, v = (seeded(2, 6, 32, seed=s).double() for s in range(3))
    if not batch_first:
        q, k, v = (each.transpose(0, 1) for each in (q, k, v))
    causal = torch.ones(6, 6).triu(1).bool()
    options = {
        "none": {},
        "causal": {"attn_mask": causal, "is_causal": True},
        "float": {"attn_mask": seeded(6, 6).double()},
        "heads": {"attn_mask": seeded(8, 6, 6).double()},
        "padding": {"key_padding_mask": torch.tensor([[False] * 6, [False] * 4 + [True] * 2])},
    }[mask]
    for average in (True, False):
        ours = layer(q, k, v, average_attn_weights=average, **options)
        theirs = full(q, k, v, average_attn_weights=average, **options)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert layer(q, k, v, need_weights=False, **options)[1] is None
    assert isinstance(layer, LowRankAttention)


def test_attention_with_other_keys_and_values():
    layer, full = warmed(nn.MultiheadAttention(32, 4, kdim=20, vdim=24).double(), 5)
    with torch.no_grad():
        for weight in (full.q_proj_weight, full.k_proj_weight, full.v_proj_weight):
            weight.copy_(of_rank(weight, 5))
        full.out_proj.weight.copy_(of_rank(full.out_proj.weight, 5))
    q, k, v = (seeded(6, 2, size).double() for size in (32, 20, 24))
    torch.testing.assert_close(layer(q, k, v)[0], full(q, k, v)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_layer_works_with_it_in_training_and_without_gradients(norm_first):
    layer = nn.TransformerEncoderLayer(
        32, 4, 64, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    found = factorize(layer)
    kinds = [(change.name, change.rank) for change in found.changes]
    assert kinds == [("self_attn", 8), ("linear1", 8), ("linear2", 8)]
    x = seeded(2, 6, 32)
    trained = found.model(x)
    found.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), trained, rtol=1e-4, atol=1e-5)


def test_stable_rank_is_that_of_the_singular_values():
    weight = torch.diag(torch.tensor([4.0, 2.0, 2.0, 1.0]))
    assert stable_rank(weight) == pytest.approx(25 / 16)
    assert stable_rank(torch.zeros(3, 3)) == 0
    assert stable_rank(seeded(8, 4, 3, 3)) == pytest.approx(
        float((torch.linalg.svdvals(seeded(8, 36)) ** 2).sum())
        / float(torch.linalg.svdvals(seeded(8, 36))[0] ** 2),
        rel=1e-5,
    )
