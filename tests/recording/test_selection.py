import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from gradstats.recording.selection import (
    clean_name,
    select,
    unwrap_model,
    unwrap_optimizer,
)


class Wrapper(nn.Module):
    """Shaped as DistributedDataParallel and DataParallel are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def names(model, patterns="*", optimizer=None):
    return [one.name for one in select(model, [optimizer or sgd(model)], patterns)]


PLAIN = ["body.weight", "body.bias"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        Wrapper,
        nn.DataParallel,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: Wrapper(torch.compile(m, backend="eager")),
        lambda m: torch.compile(Wrapper(m), backend="eager"),
    ],
)
def test_names_are_the_same_under_wrappers(wrap):
    model = nn.Module()
    model.body = nn.Linear(3, 2)
    assert names(wrap(model)) == PLAIN
    assert unwrap_model(wrap(model)) is model


def test_a_compiled_part_keeps_its_name():
    model = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2), backend="eager"))
    assert names(model) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert clean_name("a._checkpoint_wrapped_module.b") == "a.b"


def test_a_part_called_module_keeps_its_name():
    model = nn.Module()
    model.module, model.other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert names(model, "module*") == ["module.weight", "module.bias"]


def test_reparametrised_parameters_have_their_torch_names():
    model = weight_norm(nn.Linear(3, 2))
    assert sorted(names(model)) == sorted(name for name, _ in model.named_parameters())


def test_tied_parameters_appear_once_with_their_aliases():
    model = Tied()
    chosen = {one.name: one for one in select(model, [sgd(model)], "*")}
    assert list(chosen) == ["embedding.weight", "body.weight", "body.bias"]
    assert chosen["embedding.weight"].aliases == ("head.weight",)
    assert chosen["embedding.weight"].module_type == "Embedding"
    assert names(model, "head.*") == ["embedding.weight"]


def test_globs_select_in_model_order():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert names(model, "*.bias") == ["0.bias", "1.bias"]
    assert names(model, ["1.*", "0.weight"]) == ["0.weight", "1.weight", "1.bias"]


def test_only_what_the_optimizer_holds_is_selected():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = sgd(model[1])
    assert names(model, optimizer=optimizer) == ["1.weight", "1.bias"]
    model[1].bias.requires_grad_(False)
    assert names(model, optimizer=optimizer) == ["1.weight", "1.bias"]


def test_wrapped_optimizers_are_unwrapped():
    class Outer:
        def __init__(self, optimizer: object) -> None:
            self.optimizer = optimizer

    inner = sgd(nn.Linear(2, 2))
    assert unwrap_optimizer(Outer(Outer(inner))) is inner
    assert unwrap_optimizer(torch.optim.lr_scheduler.StepLR(inner, 5)) is inner
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer.*got Linear"):
        unwrap_optimizer(nn.Linear(2, 2))


def frozen() -> nn.Module:
    return nn.Linear(2, 2).requires_grad_(False)


LINEAR = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "optimizer", "patterns", "message"),
    [
        (nn.ReLU(), sgd(LINEAR), "*", "must have parameters, got ReLU without any"),
        (
            frozen(),
            sgd(LINEAR),
            "*",
            "holds none of its 2 parameters",
        ),
        (LINEAR, sgd(LINEAR), "conv*", r"got 'conv\*'; names: weight, bias"),
        (LINEAR, sgd(LINEAR), [], "must match a name of the model"),
        (c := nn.Linear(2, 2, dtype=torch.complex64), sgd(c), "*", "real floating point.*complex"),
        (m := nn.Linear(2, 2, device="meta"), sgd(m), "*", "one device that holds data.*meta"),
    ],
)
def test_nothing_to_record_is_an_error_that_says_why(model, optimizer, patterns, message):
    with pytest.raises(ValueError, match=message):
        select(model, [optimizer], patterns)


def test_a_frozen_model_is_an_error():
    model = frozen()
    with pytest.raises(ValueError, match="holds 2 of its 2 parameters and none of them requires"):
        select(model, [sgd(model)], "*")
