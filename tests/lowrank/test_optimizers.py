"""The optimizer that goes on after a switch to low rank: any class, or nothing has changed."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from gradstats.lowrank import VanillaWarmUp, warm_start

#: Every optimizer of this torch, new ones included.
OPTIMIZERS = sorted(
    (
        kind
        for kind in vars(torch.optim).values()
        if inspect.isclass(kind)
        and issubclass(kind, torch.optim.Optimizer)
        and kind is not torch.optim.Optimizer
    ),
    key=lambda kind: kind.__name__,
)


def model_of(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 32, bias=bias), nn.ReLU(), nn.Linear(32, 16, bias=bias), nn.Tanh()
    )


def snapshot(model, optimizer):
    """What must be the same after a failure: objects, values and settings."""
    return (
        {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()},
        [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
        [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        copy.deepcopy(optimizer.state_dict()),
        [id(module) for module in model.modules()],
    )


def same(one, other):
    names = one[0].keys() == other[0].keys()
    objects = all(one[0][n][0] == other[0][n][0] for n in one[0])
    values = all(torch.equal(one[0][n][1], other[0][n][1]) for n in one[0])
    return names and objects and values and one[1:3] == other[1:3] and one[4] == other[4]


def trained(model, optimizer):
    """One step: the loss before it, and whether every parameter moved."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def closure():
        optimizer.zero_grad()
        loss = model(torch.linspace(-1, 1, 32).repeat(4, 1)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


def settings_of(group):
    return {key: value for key, value in group.items() if key != "params"}


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_every_optimizer_of_torch_goes_on_with_its_settings(kind):
    model = model_of(bias=kind is not getattr(torch.optim, "Muon", None))
    optimizer = kind(model.parameters(), lr=0.0123)
    expected = settings_of(optimizer.param_groups[0])
    found, fresh = warm_start(model, optimizer)
    assert type(fresh) is kind
    assert fresh is not optimizer
    (group,) = fresh.param_groups
    assert settings_of(group) == expected
    assert [id(p) for p in group["params"]] == [id(p) for p in found.model.parameters()]
    if kind is not torch.optim.SparseAdam:  # of sparse gradients only
        assert trained(found.model, fresh) == {name for name, _ in model.named_parameters()}


OPTIONS = [
    (kind, option)
    for kind in OPTIMIZERS
    for option in ("fused", "foreach", "capturable", "maximize", "differentiable")
    if option in inspect.signature(kind).parameters
]


@pytest.mark.parametrize(("kind", "option"), OPTIONS)
def test_options_of_the_step_are_kept(kind, option):
    model = model_of()
    optimizer = kind(model.parameters(), lr=0.01, **{option: True})
    found, fresh = warm_start(model, optimizer)
    assert fresh.param_groups[0][option] is True
    assert vars(fresh).get("_step_supports_amp_scaling") == vars(optimizer).get(
        "_step_supports_amp_scaling"
    )
    steps = option in ("fused", "foreach", "maximize")  # the others need a GPU, or no leaf
    if steps and kind is not torch.optim.SparseAdam:
        assert trained(found.model, fresh) == {name for name, _ in model.named_parameters()}


def test_the_switch_of_the_readme_with_adamw():
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.2)
    found, fresh = warm_start(model, optimizer, rank_ratio=0.25)
    assert [change.rank for change in found.changes] == [8, 4]
    assert fresh.param_groups[0]["decoupled_weight_decay"] is True
    assert fresh.param_groups[0]["weight_decay"] == 0.2
    model = model_of()
    warm_up = VanillaWarmUp(model, torch.optim.AdamW(model.parameters()), epochs=1)
    assert [type(warm_up(epoch)[1]) for epoch in range(3)] == [torch.optim.AdamW] * 3


class Extra(torch.optim.Optimizer):
    """More in `defaults` than the constructor takes, and an argument under another name."""

    def __init__(self, params, rate=0.1, *, warm=3):
        self.rate, self._warm = rate, warm
        super().__init__(params, {"lr": rate, "extra": "yes", "count": 7})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * parameter.grad)


class Passing(torch.optim.AdamW):
    """Passes what it does not know."""

    def __init__(self, params, *args, scale=1.0, **kwargs):
        super().__init__(params, *args, **kwargs)
        self.scale = scale
        for group in self.param_groups:
            group.setdefault("own", scale)


class Inheriting(torch.optim.SGD):
    """No constructor of its own."""


class Collecting(torch.optim.Optimizer):
    """Whatever is given is a setting."""

    def __init__(self, params, **settings):
        super().__init__(params, settings)

    step = Extra.step


class Bare(torch.optim.Optimizer):
    step = Extra.step


class Late(torch.optim.SGD):
    """The parameters are not the first argument."""

    def __init__(self, lr, params):
        super().__init__(params, lr)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Extra(p, 0.3, warm=5),
        lambda p: Passing(p, lr=0.2, weight_decay=0.3, scale=2.0),
        lambda p: Inheriting(p, lr=0.2, momentum=0.5),
        lambda p: Collecting(p, lr=0.2, other=(1, 2)),
        lambda p: Bare(p, {"lr": 0.2, "more": None}),
        lambda p: Late(0.2, p),
    ],
)
def test_optimizers_of_ones_own_with_other_constructors(make):
    model = model_of()
    optimizer = make(model.parameters())
    expected = settings_of(optimizer.param_groups[0])
    found, fresh = warm_start(model, optimizer)
    assert type(fresh) is type(optimizer)
    assert settings_of(fresh.param_groups[0]) == expected
    assert fresh.defaults == optimizer.defaults
    for name in ("rate", "_warm", "scale"):
        assert getattr(fresh, name, None) == getattr(optimizer, name, None)
    assert trained(found.model, fresh) == {name for name, _ in model.named_parameters()}


class Two(torch.optim.Optimizer):
    """Two methods, which each group names; exact about their keys, and sorts parameters."""

    def __init__(self, groups):
        for group in groups:
            extra = {"rate"} if group["first"] else {"lr"}
            if set(group) != {"params", "first", *extra}:
                raise ValueError(f"groups must have other keys, got {sorted(group)}")
            group["params"] = sorted(group["params"], key=lambda p: p.numel())
        super().__init__(groups, {})


class Strict(torch.optim.SGD):
    """Takes no keys in its groups that it adds itself."""

    def __init__(self, params, lr):
        params = list(params)
        if any(isinstance(group, dict) and "seen" in group for group in params):
            raise KeyError("seen")
        super().__init__(params, lr)
        for group in self.param_groups:
            group["seen"] = True


def test_groups_reach_a_constructor_as_it_takes_them():
    model = model_of()
    optimizer = Strict(model.parameters(), 0.5)
    _, fresh = warm_start(model, optimizer)
    assert fresh.param_groups[0]["seen"] is True
    model = model_of()
    groups = [
        {"params": list(model[0].parameters()), "first": True, "rate": 0.5},
        {"params": list(model[2].parameters()), "first": False, "lr": 0.25},
    ]
    found, fresh = warm_start(model, Two(groups))
    assert [settings_of(group) for group in fresh.param_groups] == [
        {"first": True, "rate": 0.5},
        {"first": False, "lr": 0.25},
    ]
    held = [{id(p) for p in group["params"]} for group in fresh.param_groups]
    assert held == [{id(p) for p in found.model[n].parameters()} for n in (0, 2)]


class OfModel(torch.optim.SGD):
    def __init__(self, model, lr):
        super().__init__(model.parameters(), lr)


class Needing(torch.optim.SGD):
    def __init__(self, params, lr, schedule_of):
        super().__init__(params, lr)


class Dropping(torch.optim.SGD):
    """Keeps but a part of what it is given, from the second time on."""

    made = 0

    def __init__(self, params, lr):
        super().__init__(params, lr)
        Dropping.made += 1
        if Dropping.made > 1:
            self.param_groups[0]["params"] = self.param_groups[0]["params"][:1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: OfModel(m, 0.1), "cannot make a new OfModel: AttributeError"),
        (lambda m: Needing(m.parameters(), 0.1, "x"), "Needing: TypeError.*schedule_of"),
        (lambda m: Dropping(m.parameters(), 0.1), "holds other parameters than it was given"),
    ],
)
def test_where_no_optimizer_can_be_made_nothing_has_changed(make, message):
    model = model_of()
    optimizer = make(model)
    schedule = lr_scheduler.StepLR(optimizer, 1)
    before, of_schedule = snapshot(model, optimizer), dict(schedule.state_dict())
    with pytest.raises(ValueError, match=message):
        warm_start(model, optimizer)
    assert same(snapshot(model, optimizer), before)
    assert schedule.state_dict() == of_schedule
    Dropping.made = 1
    warm_up = VanillaWarmUp(model, optimizer, epochs=0)
    with pytest.raises(ValueError, match="make the optimizer anew"):
        warm_up(0)
    assert warm_up.found is None
    assert same(snapshot(model, optimizer), before)


def test_an_optimizer_of_matrices_refuses_what_is_none_and_nothing_has_changed():
    """Muon takes matrices only; the factors of a convolution are none."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.LSTM(32, 32, bias=False))
    optimizer = torch.optim.Muon(model.parameters(), lr=0.1)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match="cannot make a new Muon: ValueError"):
        warm_start(model, optimizer)
    assert same(snapshot(model, optimizer), before)


def test_weights_that_are_not_finite_are_named_and_nothing_has_changed():
    model = model_of()
    with torch.no_grad():
        model[2].weight[3, 4] = torch.nan
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modules = list(model.modules())
    with pytest.raises(ValueError, match=r"cannot factorize 2.weight: 1 of its elements"):
        warm_start(model, optimizer)
    assert list(model.modules()) == modules


def test_groups_keep_their_settings_and_what_others_added():
    model = model_of()
    groups = [
        {"params": [model[0].weight], "lr": 0.5, "weight_decay": 0.3, "name": "first"},
        {"params": [model[0].bias, model[2].bias], "lr": 0.25, "weight_decay": 0.0},
        {"params": [model[2].weight], "betas": (0.5, 0.6), "initial_accumulator_value": 9},
        {"params": [], "lr": 7.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.125)
    expected = [settings_of(group) for group in optimizer.param_groups]
    found, fresh = warm_start(model, optimizer)
    assert [settings_of(group) for group in fresh.param_groups] == expected
    names = {id(p): name for name, p in found.model.named_parameters()}
    held = [[names[id(p)] for p in group["params"]] for group in fresh.param_groups]
    first, second = (["first.weight", "second.weight"] for _ in range(2))
    assert held == [
        [f"0.{name}" for name in first],
        ["0.second.bias", "2.second.bias"],
        [f"2.{name}" for name in second],
        [],
    ]


@pytest.mark.parametrize("matrix", ["in_proj_weight", "out_proj.weight"])
def test_the_weights_of_one_layer_may_be_in_two_groups(matrix):
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(32, 4), "lstm": nn.LSTM(32, 32)})
    chosen = {f"attention.{matrix}", "lstm.weight_hh_l0", "lstm.bias_hh_l0"}
    split = [
        {"params": [p for n, p in model.named_parameters() if (n in chosen) is one], "lr": rate}
        for one, rate in ((True, 0.5), (False, 0.25))
    ]
    found, fresh = warm_start(model, torch.optim.SGD(split))
    held = [id(p) for group in fresh.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in found.model.parameters())
    names = {id(p): name for name, p in found.model.named_parameters()}
    first = {names[id(p)] for p in fresh.param_groups[0]["params"]}
    projections = ["out_proj"] if matrix == "out_proj.weight" else ["query", "key", "value"]
    factors = {f"attention.{p}.{f}.weight" for p in projections for f in ("first", "second")}
    lstm = {f"lstm.cells.0.{f}_hh" for f in ("first", "second")}
    assert first - {"lstm.cells.0.bias"} == factors | lstm


def test_an_optimizer_of_named_parameters_knows_the_new_names():
    model = model_of()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    found, fresh = warm_start(model, optimizer)
    assert fresh.param_groups[0]["param_names"] == [n for n, _ in found.model.named_parameters()]
    fresh.load_state_dict(fresh.state_dict())


def test_a_learning_rate_that_is_a_tensor_is_not_shared():
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.5), foreach=False)
    _, fresh = warm_start(model, optimizer)
    optimizer.param_groups[0]["lr"].fill_(3.0)
    assert float(fresh.param_groups[0]["lr"]) == 0.5
    assert isinstance(fresh.param_groups[0]["lr"], torch.Tensor)


def test_groups_that_share_a_tensor_share_the_new_one():
    model = model_of()
    rate, other = torch.tensor(0.5), torch.tensor(0.5)
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    groups[-1]["lr"] = other
    optimizer = torch.optim.Adam(groups, lr=rate, foreach=False)
    _, fresh = warm_start(model, optimizer)
    rates = [group["lr"] for group in fresh.param_groups]
    assert len(rates) > 2
    rates[0].fill_(0.25)
    assert [float(each) for each in rates] == [0.25] * (len(rates) - 1) + [0.5]
    assert float(rate) == 0.5


SCHEDULES = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10),
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.5),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 10),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=20),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.3),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.5), lr_scheduler.CosineAnnealingLR(o, 10)], [3]
    ),
}


def rates(optimizer, schedule, steps=8):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_made_after_the_switch_starts_at_the_rate_of_the_moment(name):
    """The rate grew from 0.01 to 0.1 under a schedule of before: the next one starts at 0.1."""
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    before = lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 + 9 * epoch)
    optimizer.step()
    before.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    _, fresh = warm_start(model, optimizer)
    other = torch.optim.SGD(model_of().parameters(), lr=0.1, momentum=0.9)
    expected = rates(other, SCHEDULES[name](other))
    assert rates(fresh, SCHEDULES[name](fresh)) == pytest.approx(expected, rel=1e-12)


UNDER_WAY = SCHEDULES | {
    "constant": lambda o: lr_scheduler.ConstantLR(o, 0.5, 6),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.ConstantLR(o, 0.5, 6)]
    ),
}


@pytest.mark.parametrize("name", UNDER_WAY)
def test_a_schedule_that_was_under_way_goes_on_as_the_docs_have_it(name):
    model, other = model_of(), torch.optim.SGD(model_of().parameters(), lr=0.1, momentum=0.9)
    schedule = UNDER_WAY[name](other)
    rates(other, schedule, 4)
    momentum = other.param_groups[0]["momentum"]
    expected = rates(other, schedule)
    old_optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    old_schedule = UNDER_WAY[name](old_optimizer)
    rates(old_optimizer, old_schedule, 4)
    settings = [dict(group) for group in old_optimizer.param_groups]

    _, optimizer = warm_start(model, old_optimizer)
    schedule = UNDER_WAY[name](optimizer)
    schedule.load_state_dict(old_schedule.state_dict())
    for group, old in zip(optimizer.param_groups, settings, strict=True):
        group.update({k: v for k, v in old.items() if k not in ("params", "param_names")})

    assert optimizer.param_groups[0]["momentum"] == momentum
    assert rates(optimizer, schedule) == pytest.approx(expected, rel=1e-12)
    assert len(rates(old_optimizer, old_schedule, 2)) == 2  # the old pair still steps


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_goes_around_the_new_optimizer(fused):
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def one_step(model, optimizer):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(4, 32)).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        return {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}

    one_step(model, optimizer)
    found, fresh = warm_start(model, optimizer)
    assert one_step(found.model, fresh) == {name for name, _ in found.model.named_parameters()}


def test_the_norms_between_factors_train():
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, bias=False), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten()
    )
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() == 1], "lr": 0.5},
        ],
        lr=0.1,
    )
    found, fresh = warm_start(model, optimizer, extra_norm=True)
    held = [[id(p) for p in group["params"]] for group in fresh.param_groups]
    assert len(held[0] + held[1]) == len(set(held[0] + held[1]))
    assert set(held[0] + held[1]) == {id(p) for p in found.model.parameters()}
    assert id(found.model[0].norm.weight) in held[0]  # no bias: with the weight
    assert id(found.model[2].norm.weight) in held[1]
    before = {name: p.detach().clone() for name, p in found.model.named_parameters()}
    found.model(
        torch.randn(4, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    ).sum().backward()
    found.model[0].norm.bias.grad.fill_(1.0)
    fresh.step()
    moved = {n for n, p in found.model.named_parameters() if not torch.equal(before[n], p)}
    assert {"0.norm.bias", "2.norm.bias"} <= moved


def test_what_is_no_optimizer_is_refused_and_nothing_has_changed():
    model = model_of()
    for wrong in (None, [torch.optim.SGD(model.parameters(), lr=0.1)]):
        with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got"):
            warm_start(model, wrong)
    assert type(model[0]) is nn.Linear
