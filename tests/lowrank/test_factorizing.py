"""Which layers are replaced, by how many parameters, and what is refused; published counts."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradstats.lowrank import balanced, factorize, warm_start

FOLDER = Path(__file__).parents[2] / "analyses/10_pufferfish"


@pytest.fixture(scope="module")
def models():
    if not FOLDER.exists():
        pytest.skip("not in a source tree")
    sys.path.insert(0, str(FOLDER))
    import models

    yield models
    sys.path.remove(str(FOLDER))
    del sys.modules["models"]


def numel(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "keep", "before", "after"),
    [
        ("VGG", "VGG_KEEP", 20_560_330, 8_370_634),
        ("ResNet18", "RESNET18_KEEP", 11_173_834, 3_336_138),
        ("ResNet50", "RESNET50_KEEP", 25_557_032, 15_202_344),
        ("Transformer", "TRANSFORMER_KEEP", 48_978_432, 26_696_192),
    ],
)
def test_published_numbers_of_parameters(models, name, keep, before, after):
    model = getattr(models, name)()
    assert numel(model) == before
    found = factorize(model, **getattr(models, keep))
    assert (found.before, found.after, numel(found.model)) == (before, after, after)


def test_the_published_lstm_has_one_bias_a_gate(models):
    """torch's has two; of low rank there is one."""
    model = models.Words()
    second = sum(p.numel() for name, p in model.named_parameters() if "bias_hh" in name)
    assert numel(model) - second == 85_962_278
    found = factorize(model)
    assert found.after == 67_962_278
    kept = {change.name: change.kept for change in found.changes}
    assert kept == {
        "embedding": "kept: an embedding",
        "lstm": "",
        "decoder": "kept: tied with embedding",
    }


def test_an_extra_normalisation_is_a_variant_of_its_own(models):
    """The published variant has 15,204,648, with none in the shortcut, whose rank is 256."""
    found = factorize(models.ResNet50(), **models.RESNET50_KEEP, extra_norm=True)
    assert found.after == 15_204_648 + 2 * 256


@pytest.mark.parametrize(
    ("name", "keep", "full", "low"),
    [("VGG", "VGG_KEEP", 398.7e6, 289.3e6), ("ResNet18", "RESNET18_KEEP", 555.4e6, 216.2e6)],
)
def test_published_numbers_of_multiplications(models, name, keep, full, low):
    model, x = getattr(models, name)(), torch.zeros(1, 3, 32, 32)
    assert models.macs(model.eval(), x) == pytest.approx(full, rel=1e-3)
    found = factorize(model, **getattr(models, keep))
    assert models.macs(found.model.eval(), x) == pytest.approx(low, rel=1e-3)


@pytest.mark.parametrize(
    "name", [pytest.param("VGG", marks=pytest.mark.soak), "ResNet18", "Words"]
)
@pytest.mark.slow
def test_a_warm_start_of_full_rank_is_the_model_itself(models, name):
    """At a rank that loses nothing: every gate and convolution of rank 2 to begin with."""
    torch.manual_seed(0)
    model = {"VGG": models.VGG, "ResNet18": lambda: models.ResNet18(8)}.get(
        name, lambda: models.Words(50, 24, 0.0)
    )()
    x = torch.randint(0, 50, (5, 3)) if name == "Words" else torch.randn(2, 3, 32, 32)
    model = model.double().eval()
    x = x if name == "Words" else x.double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 4:
                second, first = balanced(parameter.flatten(1), 2)
                parameter.copy_((second @ first).view_as(parameter))
            if parameter.dim() == 2 and parameter.shape[0] == 4 * parameter.shape[1]:
                gates = [balanced(gate, 2) for gate in parameter.chunk(4)]
                parameter.copy_(torch.cat([second @ first for second, first in gates]))
        expected = model(x)
        found = factorize(
            model,
            warm=True,
            keep=["*classifier*"] if name == "VGG" else ["fc"][: name == "ResNet18"],
        )
        assert sum(change.rank > 0 for change in found.changes) > (0 if name == "Words" else 5)
        ours = found.model(x)
    for one, other in zip(
        *((o if isinstance(o, tuple) else (o,)) for o in (ours, expected)), strict=True
    ):
        for a, b in zip(
            *((e if isinstance(e, tuple) else (e,)) for e in (one, other)), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def test_the_product_of_balanced_factors_is_the_best_of_its_rank():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).double()
    second, first = balanced(weight, 7)
    s = torch.linalg.svdvals(weight)
    lost = (weight - second @ first).square().sum()
    torch.testing.assert_close(lost, s[7:].square().sum(), rtol=1e-9, atol=0)
    torch.testing.assert_close(second.T @ second, first @ first.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decomposed_in_float32_and_cast_back(dtype):
    model = nn.Sequential(nn.Linear(32, 32)).to(dtype)
    weight = model[0].weight.detach().float()
    found = factorize(model, warm=True)
    assert {parameter.dtype for parameter in found.model.parameters()} == {dtype}
    product = found.model[0].second.weight.float() @ found.model[0].first.weight.float()
    second, first = balanced(weight, 8)
    torch.testing.assert_close(product, second @ first, rtol=0.05, atol=0.02)


def test_everything_else_stays_what_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3))
    model(torch.randn(4, 3, 9, 9))
    norm, state = model[1], copy.deepcopy(model[1].state_dict())
    calls = []
    model[2].register_forward_hook(lambda *given: calls.append(given[0]))
    model[2].eval()
    model[0].requires_grad_(False)
    found = factorize(model, warm=True)
    assert found.model is model
    assert model[1] is norm
    assert all(torch.equal(state[name], norm.state_dict()[name]) for name in state)
    model(torch.randn(1, 3, 9, 9))
    assert calls == [model[2]]
    assert not model[2].training
    assert not any(parameter.requires_grad for parameter in model[0].parameters())
    assert [name for name, _ in model.named_children()] == ["0", "1", "2"]


def test_a_layer_that_stands_at_two_places_is_replaced_at_both():
    layer = nn.Linear(32, 32)
    model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    found = factorize(model)
    assert model["a"] is model["b"][0]
    assert [change.name for change in found.changes] == ["a"]
    assert found.after == 8 * 64 + 32


def test_ranks_that_would_not_save_anything_leave_the_layer_alone():
    """Break-even of 512 by 512 is 256."""
    for rank, changed in ((255, True), (256, False), (400, False)):
        model = nn.Sequential(nn.Linear(512, 512, bias=False))
        (change,) = factorize(model, ranks={"0": rank}).changes
        assert (change.rank == rank) is changed
        assert changed or change.kept == f"kept: rank {rank} would have {rank * 1024:,} parameters"
        assert isinstance(model[0], nn.Linear) is not changed


def test_the_first_layers_may_stay():
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))
    found = factorize(model, full_rank_layers=2, keep=["3"])
    assert [change.rank for change in found.changes] == [0, 0, 8, 0]
    assert [change.kept for change in found.changes] == [
        "kept: one of the first layers",
        "kept: one of the first layers",
        "",
        "kept: asked for",
    ]
    assert "2 (Linear): rank 8, 1,056 → 544" in str(found)


def test_tied_layers_stay():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].weight = model[0].weight
    found = factorize(model)
    kept = [change.kept for change in found.changes]
    assert kept == ["kept: tied with 1", "kept: tied with 0", ""]


def test_parameters_of_a_class_of_ones_own_stay():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(9, 9))
            self.fc = nn.Linear(32, 32)

    found = factorize(Own())
    kept = {change.name: change.kept for change in found.changes}
    assert kept == {"": "kept: a parameter of a class of its own", "fc": ""}


def test_a_parametrized_weight_stays():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)))
    (change,) = [c for c in factorize(model).changes if c.name == "0"]
    assert change.kept == "kept: its weight is parametrized"


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (lambda: nn.Linear(8, 8), {"rank_ratio": 0.0}, r"rank_ratio must lie in \(0, 1\]"),
        (lambda: nn.Linear(8, 8), {"rank_ratio": 1.5}, r"rank_ratio must lie in \(0, 1\]"),
        (lambda: nn.Linear(8, 8), {"full_rank_layers": -1}, "full_rank_layers"),
        (lambda: nn.Sequential(nn.Linear(8, 8)), {"keep": ["fc"]}, "got 'fc'"),
        (lambda: nn.Sequential(nn.Linear(8, 8)), {"ranks": {"*": 2}}, r"got '\*'"),
        (lambda: nn.Sequential(nn.Linear(8, 8)), {"ranks": {"x": 1}}, "got 'x'"),
        (lambda: nn.Sequential(nn.Linear(8, 8)), {"ranks": {"0": 0}}, "whole numbers from 1"),
        (lambda: nn.Sequential(nn.RNN(8, 8)), {}, r"cannot factorize 0 \(RNN\)"),
        (lambda: nn.Sequential(nn.Conv3d(8, 8, 3)), {}, r"cannot factorize 0 \(Conv3d\)"),
        (lambda: nn.Sequential(nn.Bilinear(8, 8, 8)), {}, "name them in keep"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, settings, message):
    with pytest.raises(ValueError, match=message):
        factorize(make(), **settings)


def test_a_layer_without_a_rule_may_be_kept():
    found = factorize(nn.Sequential(nn.RNN(8, 8), nn.Linear(32, 32)), keep=["0"])
    assert [change.kept for change in found.changes] == ["kept: asked for", ""]


def test_a_model_of_low_rank_is_not_made_so_again():
    model = nn.Sequential(nn.Linear(32, 32))
    factorize(model)
    with pytest.raises(ValueError, match="model must be of full rank, got low rank in 0"):
        factorize(model)


def test_a_wrapped_model_is_refused(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="got DistributedDataParallel: pass its module"):
            factorize(DistributedDataParallel(nn.Linear(8, 8)))
    finally:
        dist.destroy_process_group()


def test_the_optimizer_goes_on_with_the_same_settings_and_no_momentum():
    model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 32))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.25, momentum=0.9)
    model(torch.ones(1, 32)).sum().backward()
    optimizer.step()
    found, fresh = warm_start(model, optimizer)
    assert type(fresh) is torch.optim.SGD
    assert not fresh.state
    assert [g["lr"] for g in fresh.param_groups] == [0.25, 0.5]
    assert [g["weight_decay"] for g in fresh.param_groups] == [0.1, 0]
    matrices, vectors = ({id(p) for p in g["params"]} for g in fresh.param_groups)
    assert matrices == {id(p) for p in found.model.parameters() if p.dim() > 1}
    assert vectors == {id(p) for p in found.model.parameters() if p.dim() == 1}
    loss = found.model(torch.ones(1, 32)).square().sum()
    loss.backward()
    fresh.step()
    assert not torch.equal(found.model(torch.ones(1, 32)).square().sum(), loss)


@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_of_low_rank_takes_padding(training):
    """In evaluation torch's encoder packs a padded batch for its own attention."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).train(training)
    x, padding = torch.randn(2, 5, 32), torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    expected = model(x, src_key_padding_mask=padding)
    found = factorize(model, rank_ratio=1.0, warm=True).model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding], atol=1e-4, rtol=1e-4)
