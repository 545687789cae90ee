"""The matrices of the rows are those that factorize makes: modules are built, made and counted."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import gradstats
from gradstats.lowrank import factorize
from gradstats.lowrank.tables import replaced_in
from gradstats.replaying.factorised import factorised_rows
from gradstats.runs import copying
from gradstats.store import GradientStore, parameter_table

RATIOS = (0.25, 0.5)


class Scaled(nn.Linear):
    """A forward of its own."""

    def forward(self, x):
        return 3 * super().forward(x)


class Linear(nn.Linear):
    """A class of the same name as torch's."""

    def forward(self, x):
        return super().forward(x).relu()


def tied():
    model = nn.ModuleDict({"table": nn.Embedding(50, 32), "fc": nn.Linear(32, 32)})
    model["out"] = nn.Linear(32, 50, bias=False)
    model["out"].weight = model["table"].weight
    return model


def tied_linear():
    model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(3)))
    model[1].weight = model[0].weight
    return model


def shared(bias):
    layer = nn.Linear(32, 32, bias=bias)
    return nn.Sequential(layer, nn.ReLU(), layer)


def pruned():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def spectral():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    nn.utils.spectral_norm(model[0])
    return model


def overridden():
    model = nn.Sequential(nn.Linear(32, 32))
    model[0].forward = nn.Linear(32, 32).forward
    return model


#: Models that a store's table of names, shapes and classes says all about.
PLAIN = {
    "linear": lambda: nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 10, bias=False)),
    "column": lambda: nn.Sequential(nn.Linear(40, 1), nn.Linear(1, 40)),
    "conv": lambda: nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 1, bias=False)),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 1)),
    "lstm, narrow": lambda: nn.ModuleDict({"lstm": nn.LSTM(16, 64)}),
    "lstm, wide": lambda: nn.ModuleDict({"lstm": nn.LSTM(64, 16)}),
    "lstm, square": lambda: nn.ModuleDict({"lstm": nn.LSTM(32, 32)}),
    "lstm, layers": lambda: nn.ModuleDict({"lstm": nn.LSTM(12, 20, 2, bidirectional=True)}),
    "lstm, no bias": lambda: nn.ModuleDict({"lstm": nn.LSTM(16, 64, bias=False)}),
    "lstm, projected": lambda: nn.ModuleDict({"lstm": nn.LSTM(16, 64, proj_size=8)}),
    "the lstm itself": lambda: nn.LSTM(16, 64),
    "gru, narrow": lambda: nn.ModuleDict({"gru": nn.GRU(16, 64)}),
    "gru, square": lambda: nn.ModuleDict({"gru": nn.GRU(32, 32)}),
    "gru, layers": lambda: nn.ModuleDict({"gru": nn.GRU(12, 20, 2, bidirectional=True)}),
    "gru, no bias": lambda: nn.ModuleDict({"gru": nn.GRU(16, 64, bias=False)}),
    "conv1d": lambda: nn.Sequential(nn.Conv1d(8, 16, 3), nn.Conv1d(16, 16, 1, bias=False)),
    "depthwise, 1d": lambda: nn.Sequential(nn.Conv1d(64, 64, 3, groups=64), nn.Conv1d(64, 64, 1)),
    "attention": lambda: nn.ModuleDict({"attention": nn.MultiheadAttention(32, 4)}),
    "attention itself": lambda: nn.MultiheadAttention(32, 4),
    "attention, other": lambda: nn.ModuleDict(
        {"attention": nn.MultiheadAttention(32, 4, kdim=12, vdim=20)}
    ),
    "attention, more": lambda: nn.ModuleDict(
        {"attention": nn.MultiheadAttention(32, 4, add_bias_kv=True)}
    ),
    "transformer": lambda: nn.TransformerEncoderLayer(32, 4, 64),
    "embedding": lambda: nn.ModuleDict({"table": nn.Embedding(50, 32), "fc": nn.Linear(32, 32)}),
    "norms": lambda: nn.Sequential(nn.LayerNorm([16, 16]), nn.Linear(16, 16), nn.BatchNorm2d(4)),
    "subclass": lambda: nn.Sequential(Scaled(32, 32), nn.Linear(32, 32)),
    "out_proj of its own": lambda: nn.ModuleDict(
        {"out_proj": nn.modules.linear.NonDynamicallyQuantizableLinear(32, 32)}
    ),
    "parametrized": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(32, 32))),
    "pruned": pruned,
    "spectral": spectral,
    "tied": tied,
    "shared": lambda: shared(True),
}
#: Models of which a recording has to say what their layers are.
RECORDED = {
    "grouped, 1d": lambda: nn.Sequential(
        nn.Conv1d(32, 64, 3, groups=4), nn.Conv1d(64, 32, 3, groups=8)
    ),
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(32, 64, 3, groups=4), nn.Conv2d(64, 32, 3, groups=8)
    ),
    "one channel": lambda: nn.Sequential(nn.Conv2d(1, 32, 5), nn.Conv2d(32, 32, 3)),
    "same name": lambda: nn.Sequential(Linear(32, 32), nn.Linear(32, 32)),
    "overridden": overridden,
    "tied, no bias": tied_linear,
    "shared, no bias": lambda: shared(False),
    "no attention to keys only": lambda: nn.ModuleDict(
        {"attention": nn.MultiheadAttention(32, 4, add_zero_attn=True)}
    ),
}
#: Layers without a rule, which factorize refuses unless they are kept.
REFUSED = {
    "rnn": lambda: nn.Sequential(nn.RNN(32, 32)),
    "conv3d": lambda: nn.Sequential(nn.Conv3d(8, 16, 3)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(16, 32, 3)),
    "bilinear": lambda: nn.Sequential(nn.Bilinear(16, 16, 16)),
}


def counted(path, ratio):
    (floats,) = set(factorised_rows(gradstats.open(path), rank_ratio=ratio)["floats"])
    return floats


def after(make, ratio, keep=()):
    return factorize(make(), ratio, keep=keep).after


def captured(model, path):
    """One step of a training without a forward pass."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cap = gradstats.capture(
        model, optimizer, path, full=gradstats.every(1), track=None, quiet=True
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    cap.close()
    return path


@pytest.mark.parametrize("name", [*PLAIN, *RECORDED])
def test_a_captured_run_counts_what_factorize_leaves(name, tmp_path):
    make = {**PLAIN, **RECORDED}[name]
    path = captured(make(), tmp_path / "run.zarr")
    for ratio in RATIOS:
        assert counted(path, ratio) == after(make, ratio), ratio


@pytest.mark.parametrize("name", REFUSED)
def test_layers_without_a_rule_are_kept(name, tmp_path):
    path = captured(REFUSED[name](), tmp_path / "run.zarr")
    for ratio in RATIOS:
        assert counted(path, ratio) == after(REFUSED[name], ratio, ["0"])


def table_of(model, *, typed):
    """As an earlier version wrote it: names, shapes, classes and other names; or imported."""
    names, kinds = {}, {}
    for owner, module in model.named_modules(remove_duplicate=False):
        for name, p in module.named_parameters(owner, recurse=False):
            names.setdefault(id(p), []).append(name)
            kinds.setdefault(id(p), type(module).__name__)
    parameters = list(model.parameters())
    return parameter_table(
        [(names[id(p)][0], p.shape, p.dtype) for p in parameters],
        module_types={names[id(p)][0]: kinds[id(p)] for p in parameters} if typed else None,
        aliases={names[id(p)][0]: names[id(p)][1:] for p in parameters} if typed else None,
    )


def left(table, ratio):
    """Parameters of the model in factors."""
    return sum(p.numel for p in table) - sum(layer.saved for layer in replaced_in(table, ratio))


@pytest.mark.parametrize("name", PLAIN)
def test_a_run_of_an_earlier_version_counts_what_factorize_leaves(name):
    table = table_of(PLAIN[name](), typed=True)
    for ratio in (0.1, 0.25, 0.29, 0.5, 1.0):
        assert left(table, ratio) == after(PLAIN[name], ratio), ratio


BY_NAME = ("linear", "column", "conv", "conv1d", "depthwise", "lstm", "gru")
NAMED = [name for name in PLAIN if name.split(",")[0] in BY_NAME]


@pytest.mark.parametrize("name", [*NAMED, "attention", "attention, other"])
def test_an_imported_run_knows_layers_by_the_names_of_their_parameters(name):
    table = table_of(PLAIN[name](), typed=False)
    for ratio in (0.1, 0.25, 0.29, 0.5, 1.0):
        assert left(table, ratio) == after(PLAIN[name], ratio), ratio


def test_the_published_examples():
    """Counts by hand: 576 depthwise stay; 16 (64 + 64) + 128; 4dr + 12hr + 4h at r = 4."""
    assert after(PLAIN["depthwise"], 0.25) == 576 + 16 * 128 + 128 == 2752
    assert after(PLAIN["lstm, narrow"], 0.25) == 4 * 16 * 4 + 12 * 64 * 4 + 4 * 64 == 3584


def test_the_table_says_how_many_matrices_a_parameter_has(tmp_path):
    model = nn.ModuleDict({
        "conv": nn.Conv2d(32, 64, 3, groups=4),
        "lstm": nn.LSTM(8, 8),
        "attention": nn.MultiheadAttention(16, 4),
        "own": Scaled(16, 16),
        "table": nn.Embedding(5, 5),
    })  # fmt: skip
    run = gradstats.open(captured(model, tmp_path / "run.zarr"))
    assert {p.name: p.matrices for p in run.table if len(p.shape) > 1} == {
        "conv.weight": 4,
        "lstm.weight_ih_l0": 4,
        "lstm.weight_hh_l0": 4,
        "attention.in_proj_weight": 3,
        "attention.out_proj.weight": 1,
        "own.weight": 0,
        "table.weight": 0,
    }


def test_a_run_of_a_factorised_model_has_nothing_more_to_replace(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(32, 32, 3), nn.LSTM(32, 32))
    found = factorize(model)
    path = captured(found.model, tmp_path / "run.zarr")
    assert counted(path, 0.25) == found.after


def test_hooks_of_a_training_do_not_count(tmp_path):
    model = nn.Sequential(nn.Linear(32, 32))
    model[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    assert counted(captured(model, tmp_path / "run.zarr"), 0.25) == 8 * 64 + 32


def by_hand(grad, weight, rank, tolerance=1e-6):
    """Bound, cosine and captured share in numpy, with the directions that the weight has."""
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    rank = min(rank, int((s > tolerance * s[0]).sum()))
    u, s, v = u[:, :rank], s[:rank], vt[:rank].T
    d = grad @ v @ np.diag(s) @ v.T + u @ np.diag(s) @ u.T @ grad
    p = grad - (np.eye(len(u)) - u @ u.T) @ grad @ (np.eye(len(v)) - v @ v.T)
    length = np.linalg.norm(d) * np.linalg.norm(grad)
    return (d * grad).sum() / length if length else math.nan, (p**2).sum() / (grad**2).sum()


def implied(tmp_path, grad, weight, ratio=0.25):
    with GradientStore.create(tmp_path / "run.zarr") as store:
        store.append(0, {"w": torch.from_numpy(grad)}, weights={"w": torch.from_numpy(weight)})
    table = factorised_rows(gradstats.open(tmp_path / "run.zarr"), rank_ratio=ratio)
    (row,) = table[table["kind"] == "counterfactual"].to_dict("records")
    return row


def of_rank(rank, shape, kind, rng):
    m, n = shape
    if kind == "product":
        product = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
        return product.astype("f4")
    found = np.zeros(shape, "f4")
    if kind == "rows":
        found[:rank] = rng.standard_normal((rank, n))
    if kind == "columns":
        found[:, :rank] = rng.standard_normal((m, rank))
    if kind == "identity":
        found[range(rank), range(rank)] = 1
    if kind == "one":
        found[:] = 1
    return found


@pytest.mark.parametrize("kind", ["product", "rows", "columns", "identity", "one"])
@pytest.mark.parametrize("shape", [(40, 30), (24, 64)])
@pytest.mark.parametrize(("rank", "ratio"), [(1, 0.5), (5, 0.25)])
def test_a_weight_of_lower_rank_has_so_many_directions(kind, shape, rank, ratio, tmp_path):
    rng = np.random.default_rng(rank)
    grad = rng.standard_normal(shape)
    weight = of_rank(rank, shape, kind, rng)
    row = implied(tmp_path, grad.astype("f4"), weight, ratio)
    cosine, captured = by_hand(
        grad.astype("f4").astype(float), weight.astype(float), int(ratio * min(shape))
    )
    assert row["captured"] == pytest.approx(captured, rel=1e-6)
    assert row["cosine"] == pytest.approx(cosine, rel=1e-6)


def test_a_weight_of_zeros_can_follow_nothing(tmp_path):
    row = implied(tmp_path, np.random.default_rng(0).standard_normal((32, 32)), np.zeros((32, 32)))
    assert row["captured"] == pytest.approx(0, abs=1e-12)
    assert math.isnan(row["cosine"])
    assert row["status"] == "ok"


def test_a_weight_that_is_not_finite_is_a_row_with_a_reason(tmp_path):
    weight = np.ones((32, 32))
    weight[3, 4] = np.inf
    row = implied(tmp_path, np.ones((32, 32)), weight)
    assert row["status"] == "skipped: a weight is NaN or inf"
    assert math.isnan(row["captured"])


@pytest.mark.parametrize("unit", [1e200, 1e-200])
def test_extreme_gradients_have_the_rows_of_ordinary_ones(unit, tmp_path):
    rng = np.random.default_rng(0)
    grad, weight = rng.standard_normal((32, 32)), rng.standard_normal((32, 32))
    row = implied(tmp_path, grad * unit, weight)
    cosine, captured = by_hand(grad, weight, 8)
    assert row["captured"] == pytest.approx(captured, rel=1e-6)
    assert row["cosine"] == pytest.approx(cosine, rel=1e-6)


def test_a_run_of_an_earlier_version_goes_on_and_a_copy_knows_as_much(tmp_path):
    """What low rank makes of a parameter is no difference between two tables."""
    model = nn.Sequential(nn.Conv2d(32, 64, 3, groups=4))
    named = [(name, p.shape, p.dtype) for name, p in model.named_parameters()]
    old, new = (parameter_table(named, matrices=known) for known in (None, {"0.weight": 4}))
    assert old == new
    captured(model, tmp_path / "run.zarr")
    smaller = copying.Smaller(dtype="bfloat16")
    copying.copy(tmp_path / "run.zarr", tmp_path / "copy.zarr", smaller)
    for path in ("run.zarr", "copy.zarr"):
        table = {p.name: p.matrices for p in gradstats.open(tmp_path / path).table}
        assert table == {"0.weight": 4, "0.bias": None}
