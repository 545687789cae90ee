"""Keys of parameters: names, numbers, and when a checkpoint is refused."""

import pytest
import torch
from torch import nn

from gradstats.exchange.parameter_names import Names


def parameters(*shapes, dtype=torch.float32):
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]


def named(model):
    return {name: Names(model.named_parameters()).key(p) for name, p in model.named_parameters()}


def test_wrappers_take_nothing_off_a_name_that_is_the_models_own():
    inner = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    wrapped = nn.ModuleDict({"module": inner})
    assert list(named(wrapped).values()) == [name for name, _ in inner.named_parameters()]
    twice = nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": inner})})
    assert list(named(twice).values()) == list(named(inner).values())
    mixed = nn.ModuleDict({"module": nn.Linear(2, 3), "head": nn.Linear(3, 2)})
    assert list(named(mixed).values()) == [name for name, _ in mixed.named_parameters()]


def test_tied_parameters_have_one_name():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    names = Names(model.named_parameters(remove_duplicate=False))
    assert names.key(model["b"].weight) == "a.weight"
    assert names.order == ["a.weight", "a.bias", "b.bias"]


def test_numbers_go_from_the_last_parameter_seen_first():
    one, two, three = parameters(2, 3, 4)
    names = Names()
    names.see([two, three])
    names.see([one])
    names.see([one, two, three])
    assert [names.key(each) for each in (three, two, one)] == [0, 1, 2]


def test_the_order_of_names_is_that_of_the_model():
    one, two = parameters(2, 3)
    names = Names({"one": one, "two": two})
    assert names.place(two) < names.place(one)
    with pytest.raises(ValueError, match=r"must have every parameter.*none for one of shape \(4,"):
        names.see(parameters(4))


@pytest.mark.parametrize("wrong", [["a"], [("a", "b")], [(torch.zeros(1), "a")]])
def test_what_are_no_names_is_refused(wrong):
    with pytest.raises(ValueError, match="named_parameters must be pairs of a name and"):
        Names(wrong)


def checkpoint(*described):
    return [[key, list(shape), dtype] for key, shape, dtype in described]


def test_a_checkpoint_without_names_fits_a_model_with_names_where_all_shapes_differ():
    one, two = parameters((2, 3), (3, 4))
    names = Names({"one": one, "two": two})
    saved = checkpoint((0, (3, 4), "float32"), (1, (2, 3), "float32"))
    keys, unfit = names.match(saved, [0, 1], strict=True)
    assert keys == {0: "two", 1: "one"}
    assert unfit == ([], [])
    with pytest.raises(ValueError, match="others or in another order"):
        names.match(saved[::-1], [0, 1], strict=True)


def test_equal_shapes_without_memories_are_no_doubt():
    """Biases that go dense have no memory that could be another's."""
    saved = checkpoint((0, (4,), "float32"), (1, (4, 4), "float32"), (2, (4,), "float32"))
    names = Names()
    assert names.match(saved, [1], strict=True)[0] == {0: 0, 1: 1, 2: 2}
    with pytest.raises(ValueError, match="2 are float32 of"):
        Names().match(saved, [0, 1, 2], strict=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_or_order_is_seen_at_the_first_bucket(dtype):
    saved = checkpoint((0, (4,), "float32"), (1, (4, 4), "float32"))
    names = Names()
    names.recall(saved)
    with pytest.raises(ValueError, match=r"its number 0 is 0 .float32 of .4.., got 0"):
        names.see(parameters((4,), dtype=dtype))
    again = Names()
    again.recall(saved)
    with pytest.raises(ValueError, match="named_parameters=model"):
        again.see(parameters((4,), (4, 4)))


def test_a_checkpoint_goes_on_before_anything_was_seen():
    saved = checkpoint((0, (4,), "float32"), (1, (4, 4), "float32"))
    names = Names()
    names.recall(saved)
    assert checkpoint(*names.described()) == saved


def test_a_part_of_a_checkpoint_takes_names():
    saved = checkpoint(("one", (2, 3), "float32"), ("gone", (3, 4), "float32"))
    one, new = parameters((2, 3), (5, 5))
    names = Names({"one": one, "new": new})
    with pytest.raises(ValueError, match=r"lacks new .* it has gone .*strict=False"):
        names.match(saved, ["one"], strict=True)
    keys, unfit = names.match(saved, ["one"], strict=False)
    assert keys == {"one": "one"}
    assert unfit.missing_keys == ["new (float32 of [5, 5])"]
    assert unfit.unexpected_keys == ["gone (float32 of [3, 4])"]
    with pytest.raises(ValueError, match="cannot load a checkpoint by name without names"):
        Names().match(saved, ["one"], strict=True)
    with pytest.raises(ValueError, match="a part of a checkpoint without names"):
        Names().match(checkpoint((0, (2,), "float32")), [0], strict=False)


def test_a_frozen_parameter_is_not_trained():
    one, two = parameters(2, 3)
    two.requires_grad_(False)
    names = Names({"one": one, "two": two})
    assert [key for key, _, _ in names.described()] == ["one"]


def test_a_checkpoint_from_before_the_first_step_has_nothing_to_load():
    for names in (Names(), Names({"one": parameters(2)[0]})):
        assert names.match([], [], strict=True) == ({}, ([], []))
