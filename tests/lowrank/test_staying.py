"""What is shared stays shared, what is more than a plain layer stays as it is, and is named."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from gradstats.lowrank import LowRankAttention, LowRankConv2d, LowRankLinear, factorize
from gradstats.lowrank.replacing import HOOKS
from gradstats.lowrank.rules import Matrix, rank_of

LARGE = 64  # sides of layers whose full rank in factors must save something


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def thin(weight, rank=2):
    """Make a weight one of low rank, so that factors lose nothing."""
    with torch.no_grad():
        rows = weight.shape[0]
        product = seeded(rows, rank).to(weight) @ seeded(rank, weight[0].numel(), seed=1).to(
            weight
        )
        weight.copy_((product / rows).view_as(weight))


def kept_of(found):
    return {change.name: change.kept for change in found.changes}


def numel(model):
    return sum(parameter.numel() for parameter in model.parameters())


def alike(model, x, **settings):
    """Factorise at the rank that the weights have; the output must not change."""
    model = model.eval()
    expected = model(x)
    before = numel(model)
    found = factorize(model, warm=True, **settings)
    torch.testing.assert_close(found.model.eval()(x), expected, rtol=0, atol=1e-5)
    assert (found.before, found.after) == (before, numel(found.model))
    return found


def shared_in_sequential():
    layer = nn.Linear(LARGE, LARGE)
    return nn.Sequential(layer, nn.ReLU(), layer)


def shared_thrice():
    layer = nn.Linear(LARGE, LARGE)
    return nn.Sequential(layer, nn.Sequential(layer, nn.Tanh()), nn.Sequential(layer))


def shared_block():
    block = nn.Sequential(nn.Linear(LARGE, LARGE), nn.Tanh(), nn.Linear(LARGE, LARGE))
    return nn.Sequential(block, block)


class Both(nn.Module):
    """One layer under two names of one parent."""

    def __init__(self):
        super().__init__()
        self.one = self.other = nn.Linear(LARGE, LARGE)

    def forward(self, x):
        return self.other(self.one(x).relu())


@pytest.mark.parametrize(
    ("make", "count"),
    [(shared_in_sequential, 1), (shared_thrice, 1), (shared_block, 2), (Both, 1)],
)
def test_a_shared_layer_is_replaced_wherever_it_stands(make, count):
    model = make()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            thin(parameter)
    found = alike(model, seeded(3, LARGE), rank_ratio=0.1)
    assert [change.rank for change in found.changes] == [6] * count
    assert not [
        m for m in model.modules() if type(m) is nn.Linear and m.out_features == m.in_features
    ]
    low = {id(m) for m in model.modules() if isinstance(m, LowRankLinear)}
    assert len(low) == count
    assert found.after == count * (6 * 2 * LARGE + LARGE)
    assert f"{count * (LARGE + 1) * LARGE:,} → {found.after:,} parameters" in str(found)


def test_a_shared_layer_may_be_named_by_any_of_its_names():
    for keep in ("0", "2", "[02]"):
        found = factorize(shared_in_sequential(), keep=[keep])
        assert kept_of(found) == {"0": "kept: asked for"}
    for name in ("0", "2"):
        (change,) = factorize(shared_in_sequential(), ranks={name: 5}).changes
        assert change.rank == 5


def tied(how):
    model = nn.Sequential(*(nn.Linear(LARGE, LARGE) for _ in range(3)))
    if how == "parameter":
        model[1].weight = model[0].weight
    if how == "bias":
        model[1].bias = model[0].bias
    if how == "memory":
        model[1].weight.data = model[0].weight.data
    if how == "transposed memory":
        model[1].weight.data = model[0].weight.data.T
    return model


@pytest.mark.parametrize("how", ["parameter", "bias", "memory", "transposed memory"])
def test_tied_parameters_stay_tied(how):
    found = factorize(tied(how), 0.1)
    assert kept_of(found) == {"0": "kept: tied with 1", "1": "kept: tied with 0", "2": ""}
    assert found.after == sum(change.after for change in found.changes) - {
        "parameter": LARGE**2,
        "bias": LARGE,
    }.get(how, 0)
    model = found.model
    with torch.no_grad():
        (model[0].bias if how == "bias" else model[0].weight).fill_(7.0)
    assert (model[1].bias if how == "bias" else model[1].weight).eq(7.0).all()


class Listed(nn.Module):
    """As older code has it: layers registered one by one and used from a list."""

    def __init__(self, kind):
        super().__init__()
        layers = [nn.Linear(LARGE, LARGE) for _ in range(2)]
        for number, layer in enumerate(layers):
            self.add_module(f"layer{number}", layer)
        self.layers = {"list": layers, "tuple": tuple(layers), "dict": dict(enumerate(layers))}[
            kind
        ]

    def forward(self, x):
        values = self.layers.values() if isinstance(self.layers, dict) else self.layers
        return functools.reduce(lambda y, layer: layer(y), values, x)


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_layers_that_are_used_from_a_list_stay(kind):
    found = alike(Listed(kind), seeded(2, LARGE))
    reason = "kept: layers holds it too, which is not a module"
    assert kept_of(found) == {"layer0": reason, "layer1": reason}


def test_a_parameter_that_the_parent_holds_too_stays():
    model = nn.Sequential(nn.Linear(LARGE, LARGE))
    model.register_parameter("weight", model[0].weight)
    assert kept_of(factorize(model)) == {
        "": "kept: a parameter of a class of its own",
        "0": "kept: tied with the model",
    }


def test_parameters_of_containers_stay():
    model = nn.ModuleDict({"fc": nn.Linear(LARGE, LARGE)})
    model["list"] = nn.ParameterList([nn.Parameter(torch.ones(9, 9)), model["fc"].bias])
    reason = "kept: a parameter of a class of its own"
    assert kept_of(factorize(model)) == {"fc": "kept: tied with list", "list": reason}


def test_the_output_projection_of_attention_may_stand_elsewhere():
    for first in (True, False):
        attention = nn.MultiheadAttention(LARGE, 4)
        pairs = {"attention": attention, "out": attention.out_proj}
        model = nn.ModuleDict(pairs if first else dict(reversed(pairs.items())))
        found = factorize(model)
        assert kept_of(found)["attention"].startswith("kept: tied with")
        assert model["attention"].out_proj is model["out"]


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class Padded(nn.Conv2d):
    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1), value=2.0))


class Reversed(nn.LSTM):
    def forward(self, x, hx=None):
        return super().forward(x.flip(0), hx)


class Doubled(nn.MultiheadAttention):
    def forward(self, *args, **how):
        out, weights = super().forward(*args, **how)
        return 2 * out, weights


class Lora(nn.Linear):
    """Layers of its own inside, which stay with it."""

    def __init__(self, n, m):
        super().__init__(n, m)
        self.down, self.up = nn.Linear(n, 32, bias=False), nn.Linear(32, m, bias=False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


class Linear(nn.Linear):
    """A class of the same name."""

    def forward(self, x):
        return super().forward(x).relu()


def first_of(output):
    return output[0] if isinstance(output, tuple) else output


class Calling(nn.Module):
    """The layer with its output as a tensor."""

    def __init__(self, layer, times=1):
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x):
        return first_of(self.layer(*[x] * self.times))


@pytest.mark.parametrize(
    ("layer", "x", "times", "base"),
    [
        (lambda: Scaled(LARGE, LARGE), (2, LARGE), 1, "Linear"),
        (lambda: Lora(LARGE, LARGE), (2, LARGE), 1, "Linear"),
        (lambda: Linear(LARGE, LARGE), (2, LARGE), 1, "Linear"),
        (
            lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(LARGE, LARGE),
            (2, LARGE),
            1,
            "Linear",
        ),
        (lambda: Padded(16, 16, 3), (1, 16, 8, 8), 1, "Conv2d"),
        (lambda: Reversed(16, 16), (5, 2, 16), 1, "LSTM"),
        (lambda: Doubled(32, 4), (5, 2, 32), 3, "MultiheadAttention"),
    ],
)
def test_subclasses_stay_and_are_named(layer, x, times, base):
    model = Calling(layer(), times)
    found = alike(model, seeded(*x))
    (change,) = found.changes
    kind = type(model.layer)
    assert change.kept == f"kept: a subclass of {base}, {kind.__module__}.{kind.__name__}"
    assert change.before == change.after == numel(model)


def plain():
    return nn.Sequential(nn.Linear(LARGE, LARGE))


def pruned(model):
    prune.l1_unstructured(model[0], "weight", 0.5)


def overridden(model):
    layer = model[0]
    layer.forward = lambda x: 3 * nn.functional.linear(x, layer.weight, layer.bias)


def scaled_by_a_parameter(model):
    model[0].scale = nn.Parameter(torch.full((LARGE,), 3.0))
    model[0].register_forward_hook(lambda layer, _, y: layer.scale * y)


def scaled_by_a_buffer(model):
    model[0].register_buffer("scale", torch.full((LARGE,), 3.0))
    model[0].register_forward_hook(lambda layer, _, y: layer.scale * y)


def with_a_module(model):
    model[0].adapter = nn.Linear(LARGE, LARGE)
    model[0].register_forward_hook(lambda layer, given, y: y + layer.adapter(given[0]))


def of_buffers(model):
    weight = model[0].weight.detach()
    del model[0].weight
    model[0].register_buffer("weight", weight)


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


def deprecated(function, name="weight"):
    def act(model):
        with pytest.warns(FutureWarning):
            function(model[0], name)

    return act


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda m: parametrizations.weight_norm(m[0]), "kept: its weight is parametrized"),
        (lambda m: parametrizations.spectral_norm(m[0]), "kept: its weight is parametrized"),
        (lambda m: parametrizations.orthogonal(m[0]), "kept: its weight is parametrized"),
        (
            lambda m: parametrize.register_parametrization(m[0], "weight", Symmetric()),
            "kept: its weight is parametrized",
        ),
        (deprecated(nn.utils.weight_norm), "kept: weight_g is not of a plain Linear"),
        (lambda m: nn.utils.spectral_norm(m[0]), "kept: weight_orig is not of a plain Linear"),
        (pruned, "kept: weight_orig is not of a plain Linear"),
        (overridden, "kept: forward is replaced on the object"),
        (scaled_by_a_parameter, "kept: scale is not of a plain Linear"),
        (scaled_by_a_buffer, "kept: scale is not of a plain Linear"),
        (with_a_module, "kept: adapter is not of a plain Linear"),
        (of_buffers, "kept: weight is not of a plain Linear"),
    ],
)
def test_what_was_done_to_one_layer_keeps_it(act, reason):
    model = plain()
    act(model)
    model.eval()(seeded(2, LARGE))
    found = alike(model, seeded(2, LARGE))
    assert kept_of(found) == {"0": reason}


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.parametrize(
    ("layer", "x", "name"),
    [
        (lambda: nn.LSTM(16, 16), (5, 2, 16), "weight_hh_l0"),
        (lambda: nn.Conv2d(16, 16, 3), (1, 16, 8, 8), "weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_of_other_layers(norm, layer, x, name):
    model = Calling(layer())
    norm(model.layer, name)
    found = alike(model, seeded(*x))
    (kept,) = kept_of(found).values()
    assert kept.startswith("kept: ")


def test_lazy_layers_stay_until_they_have_seen_a_batch():
    model = nn.Sequential(nn.LazyLinear(LARGE), nn.Tanh(), nn.Linear(LARGE, LARGE))
    found = factorize(model)
    assert kept_of(found)["0"] == "kept: not initialised, pass a batch through the model first"
    assert "0 (LazyLinear)" in str(found)
    model = nn.Sequential(nn.LazyLinear(LARGE))
    model(seeded(2, LARGE))
    assert [change.rank for change in factorize(model).changes] == [16]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_weights_of_other_dtypes_stay(dtype):
    model = plain()
    model[0].weight = nn.Parameter(model[0].weight.detach().to(dtype))
    kept = kept_of(factorize(model))
    assert kept == {"0": f"kept: its weight is {str(dtype)[6:]}"}


def test_quantised_weights_stay():
    model = plain()
    model[0].weight = nn.Parameter(torch.ones(LARGE, LARGE, dtype=torch.int8), False)
    assert kept_of(factorize(model)) == {"0": "kept: its weight is int8"}


def test_normalisations_of_several_dimensions_stay():
    model = nn.Sequential(nn.LayerNorm([8, LARGE]), nn.Linear(LARGE, LARGE))
    assert kept_of(factorize(model)) == {"0": "kept: a normalisation", "1": ""}


def test_a_hook_on_a_parameter_keeps_its_layer():
    for hook in ("register_hook", "register_post_accumulate_grad_hook"):
        for which in ("weight", "bias"):
            model = plain()
            getattr(getattr(model[0], which), hook)(lambda *_: None)
            assert kept_of(factorize(model)) == {"0": f"kept: a hook on its {which}"}


@pytest.mark.parametrize(
    "register",
    [
        "register_state_dict_pre_hook",
        "register_state_dict_post_hook",
        "register_load_state_dict_pre_hook",
        "register_load_state_dict_post_hook",
    ],
)
def test_a_hook_on_the_state_dict_keeps_its_layer(register):
    model = plain()
    getattr(model[0], register)(lambda *_: None)
    assert kept_of(factorize(model)) == {"0": "kept: a hook on its state dict"}


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
def test_a_backward_hook_of_the_old_kind_keeps_its_layer():
    model = plain()
    model[0].register_backward_hook(lambda *_: None)
    assert kept_of(factorize(model)) == {"0": "kept: a backward hook that is not full"}


def test_changes_inside_attention_keep_it():
    cases = {
        "kept: out_proj.forward is replaced on the object": lambda out: setattr(
            out, "forward", out.forward
        ),
        "kept: out_proj.weight_orig is not of a plain NonDynamicallyQuantizableLinear": (
            lambda out: prune.identity(out, "weight")
        ),
        "kept: a hook on out_proj": lambda out: out.register_forward_hook(lambda *_: None),
        "kept: a hook on its out_proj.weight": lambda out: out.weight.register_hook(lambda g: g),
    }
    for reason, act in cases.items():
        model = nn.ModuleDict({"attention": nn.MultiheadAttention(LARGE, 4)})
        act(model["attention"].out_proj)
        assert kept_of(factorize(model)) == {"attention": reason}
    model["attention"].out_proj = Scaled(LARGE, LARGE)
    assert kept_of(factorize(model)) == {"attention": "kept: its out_proj is a Scaled"}


def test_the_weights_of_one_layer_tied_with_each_other_stay():
    lstm = nn.LSTM(16, 16, 2)
    lstm.weight_ih_l1 = lstm.weight_ih_l0
    model = nn.ModuleDict({"lstm": lstm})
    assert kept_of(factorize(model)) == {"lstm": "kept: tied with itself"}


CALLS = [
    ("register_forward_pre_hook", {}),
    ("register_forward_pre_hook", {"with_kwargs": True}),
    ("register_forward_hook", {}),
    ("register_forward_hook", {"with_kwargs": True, "always_call": True}),
    ("register_full_backward_pre_hook", {}),
    ("register_full_backward_hook", {}),
]


@pytest.mark.parametrize(("register", "more"), CALLS)
@pytest.mark.parametrize("prepend", [False, True])
def test_hooks_are_called_as_before(register, more, prepend):
    seen = {}
    for low in (False, True):
        torch.manual_seed(0)
        model, calls = plain(), []
        thin(model[0].weight)
        for name in ("first", "second"):
            hook = functools.partial(
                lambda n, calls, *given: calls.append((n, given)), name, calls
            )
            handle = getattr(model[0], register)(hook, prepend=prepend, **more)
        if low:
            factorize(model, warm=True)
            assert isinstance(model[0], LowRankLinear)
        x = seeded(2, LARGE).requires_grad_()
        model(x).square().sum().backward()
        assert all(given[0] is model[0] for _, given in calls)
        seen[low] = [(n, [g for g in given[1:] if g != {}], len(given)) for n, given in calls]
        handle.remove()
        calls.clear()
        model(x).sum().backward()
        assert len(calls) == 1
    assert [(n, length) for n, _, length in seen[True]] == [
        (n, length) for n, _, length in seen[False]
    ]
    for (_, ours, _), (_, theirs, _) in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_hook_that_is_always_called_is_called_on_an_error():
    model, calls = plain(), []
    model[0].register_forward_hook(lambda *_: calls.append(1), always_call=True)
    factorize(model)
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 3))
    assert calls == [1]


def test_every_kind_of_call_hook_that_torch_has_is_passed_on():
    """A new kind would be an attribute with "hook" in its name."""
    names = {name for name in vars(nn.Linear(2, 2)) if "hook" in name}
    assert {name for name in names if "state_dict" not in name} == set(HOOKS)


FROZEN = [
    (lambda: nn.Linear(LARGE, LARGE), ["weight", "bias"]),
    (lambda: nn.Conv2d(16, 32, 3, groups=2), ["weight", "bias"]),
    (
        lambda: nn.LSTM(24, 24, 2, bidirectional=True),
        ["weight_ih_l0", "weight_hh_l1_reverse", "bias_ih_l0"],
    ),
    (
        lambda: nn.MultiheadAttention(LARGE, 4),
        ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"],
    ),
    (
        lambda: nn.MultiheadAttention(LARGE, 4, kdim=48, vdim=40),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
]
HEIRS = {
    "weight": {"first.weight", "second.weight"},
    "bias": {"second.bias"},
    "weight_ih_l0": {"cells.0.first_ih", "cells.0.second_ih"},
    "weight_hh_l1_reverse": {"cells.3.first_hh", "cells.3.second_hh"},
    "bias_ih_l0": set(),  # the other one of the sum trains
    "in_proj_weight": {
        f"{p}.{f}.weight" for p in ("query", "key", "value") for f in ("first", "second")
    },
    "in_proj_bias": {f"{p}.second.bias" for p in ("query", "key", "value")},
    "out_proj.weight": {"out_proj.first.weight", "out_proj.second.weight"},
    "out_proj.bias": {"out_proj.second.bias"},
    **{
        f"{short}_proj_weight": {f"{long}.first.weight", f"{long}.second.weight"}
        for short, long in (("q", "query"), ("k", "key"), ("v", "value"))
    },
}


@pytest.mark.parametrize(
    ("make", "name"), [(make, name) for make, names in FROZEN for name in names]
)
@pytest.mark.parametrize("warm", [False, True])
def test_what_is_frozen_stays_frozen_and_nothing_else(make, name, warm):
    model = nn.ModuleDict({"layer": make()})
    model["layer"].get_parameter(name).requires_grad_(False)
    found = factorize(model, warm=warm)
    assert found.changes[0].rank > 0
    frozen = {n for n, p in model["layer"].named_parameters() if not p.requires_grad}
    assert frozen == HEIRS[name]


def test_both_biases_of_a_gate_frozen_freeze_their_sum():
    model = nn.ModuleDict({"lstm": nn.LSTM(24, 24)})
    for name in ("bias_ih_l0", "bias_hh_l0"):
        model["lstm"].get_parameter(name).requires_grad_(False)
    factorize(model)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"lstm.cells.0.bias"}


@pytest.mark.parametrize("trains", [set(), {"weight"}, {"bias"}])
def test_a_norm_between_factors_trains_if_its_layer_does(trains):
    model = nn.Sequential(nn.Conv2d(16, 32, 3))
    for name, parameter in model[0].named_parameters():
        parameter.requires_grad_(name in trains)
    factorize(model, extra_norm=True)
    assert model[0].norm.weight.requires_grad is bool(trains)
    assert model[0].norm.bias.requires_grad is bool(trains)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_mode_dtype_and_device_stay(dtype, training, device):
    model = nn.ModuleList(make() for make, _ in FROZEN).to(device, dtype).train(training)
    found = factorize(model, extra_norm=True)
    assert sum(change.rank > 0 for change in found.changes) == len(FROZEN)
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(dtype, device)}
    assert {module.training for module in model.modules()} == {training}


def test_a_layer_cut_down_after_it_was_made_keeps_its_shape():
    """Structured pruning sets smaller weights; in_features says what was."""
    model = nn.Sequential(nn.Linear(LARGE, LARGE), nn.Linear(LARGE, LARGE))
    model[0].weight = nn.Parameter(model[0].weight[:32].detach())
    model[0].bias = nn.Parameter(model[0].bias[:32].detach())
    model[1].weight = nn.Parameter(model[1].weight[:, :32].detach())
    for layer in model:
        thin(layer.weight)
    found = alike(model, seeded(2, LARGE))
    assert [change.rank for change in found.changes] == [8, 8]


def test_the_weight_of_a_convolution_is_the_product():
    for groups in (1, 4):
        layer = nn.Conv2d(16, 32, 3, groups=groups)
        for group in layer.weight.chunk(groups):
            thin(group)
        weight = layer.weight.detach().clone()
        model = nn.Sequential(layer)
        factorize(model, warm=True, ranks={"0": 2})
        assert isinstance(model[0], LowRankConv2d)
        torch.testing.assert_close(model[0].weight, weight, rtol=0, atol=1e-6)
        assert model[0].bias is model[0].second.bias


def test_attention_takes_a_sequence_without_batch():
    full = nn.MultiheadAttention(LARGE, 4).double()
    for weight in (*full.in_proj_weight.chunk(3), full.out_proj.weight):
        thin(weight)
    model = nn.ModuleDict({"layer": copy.deepcopy(full)})
    factorize(model, warm=True)
    assert isinstance(model["layer"], LowRankAttention)
    q, k = (seeded(t, LARGE, seed=t).double() for t in (6, 5))
    options = [
        {},
        {"average_attn_weights": False},
        {"key_padding_mask": torch.tensor([False] * 3 + [True] * 2)},
        {"attn_mask": seeded(6, 5).double()},
        {"attn_mask": seeded(4, 6, 5).double(), "need_weights": False},
    ]
    for more in options:
        ours, theirs = model["layer"](q, k, k, **more), full(q, k, k, **more)
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_rank_of_a_ratio_in_hundredths_is_exact():
    for least in range(1, 600):
        matrices = (Matrix("weight", 0, 1, (least, 1000)),)
        for percent in range(1, 101):
            expected = max(1, percent * least // 100)
            assert rank_of(matrices, percent / 100) == expected
            assert rank_of(matrices, percent * 0.01) == expected
            assert rank_of(matrices, 1 - (1 - percent / 100)) == expected


def test_the_rank_of_a_layer_of_a_hundred():
    model = nn.Sequential(nn.Linear(100, 100))
    assert [change.rank for change in factorize(model, 0.29).changes] == [29]
    model = nn.Sequential(nn.Linear(48, 96))
    assert [change.rank for change in factorize(model, 1 / 3).changes] == [16]


@pytest.mark.parametrize("keep", [[], ["*self_attn"], ["*linear1"]])
def test_layers_inside_torchs_own_containers(keep):
    """In evaluation, without gradients, torch reads the weights of a transformer's layers."""
    model = nn.TransformerEncoderLayer(LARGE, 4, 96, batch_first=True)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            for block in parameter.chunk(len(parameter) // LARGE or 1):
                thin(block)
    expected = model.eval()(seeded(2, 5, LARGE))
    factorize(model, warm=True, keep=keep)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            ours = model(seeded(2, 5, LARGE))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("wrap", [torch.jit.script, torch.fx.symbolic_trace])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_inside_other_wrappers(wrap):
    inner = plain()
    model = nn.Sequential(wrap(inner), nn.Linear(LARGE, LARGE))
    found = factorize(model, ranks={"1": 4})
    assert found.changes[-1].rank == 4
    if wrap is torch.jit.script:
        assert found.changes[0].kept == "kept: a parameter of a class of its own"
        assert model(seeded(2, LARGE)).shape == (2, LARGE)
    else:
        assert found.changes[0].rank == 16


@pytest.mark.parametrize("extra_norm", [False, True])
def test_the_counts_of_a_plan_are_those_of_the_layers_made(extra_norm):
    for make, _ in FROZEN:
        model = nn.ModuleDict({"layer": make()})
        before = numel(model)
        found = factorize(model, extra_norm=extra_norm)
        assert (found.before, found.changes[0].before) == (before, before)
        assert found.changes[0].after == found.after == numel(model)


def test_settings_may_be_numpys_and_keep_one_glob():
    import numpy as np

    found = factorize(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)), keep="0*")
    assert kept_of(found) == {"0": "kept: asked for", "1": ""}
    found = factorize(plain(), ranks={"0": np.int64(3)}, full_rank_layers=np.int64(0))
    assert [change.rank for change in found.changes] == [3]
    for settings in ({"ranks": {"0": True}}, {"full_rank_layers": True}, {"ranks": {"0": 2.0}}):
        with pytest.raises(ValueError, match="whole number"):
            factorize(plain(), **settings)
    assert [c.rank for c in factorize(plain(), np.float32(0.29)).changes] == [18]


class InBuffers(nn.Module):
    """A quantised layer of those that keep their weights in buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.ones(8, 8, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_weights_that_are_no_parameters_are_named():
    nested = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.LSTM(8, 8), nn.ReLU()))
    if torch.backends.quantized.engine == "none":
        pytest.skip("torch has no engine for quantized layers here")
    model = torch.ao.quantization.quantize_dynamic(nested, {nn.Linear, nn.LSTM})
    model.append(InBuffers())
    model.append(nn.BatchNorm2d(8, affine=False))
    model.append(nn.Linear(LARGE, LARGE))
    found = factorize(model, warm=True)
    packed = "kept: its weights are packed, no parameters"
    assert kept_of(found) == {
        "0": packed,
        "1.0": packed,
        "2": "kept: its weights are in buffers, no parameters",
        "4": "",
    }
    assert found.before == LARGE * (LARGE + 1)


class Choosy(nn.Module):
    """Its parameters need an argument."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(32, 32)

    def parameters(self, which, recurse=True):
        return super().parameters(recurse)

    def named_parameters(self, which, *more, **others):
        return super().named_parameters(*more, **others)


def test_a_model_whose_parameters_need_an_argument_is_factorised():
    found = factorize(Choosy())
    assert [change.rank for change in found.changes] == [8]
    assert found.before > found.after
