"""What lies in a bucket, and its digest."""

import pytest
import torch
from torch import nn

from gradstats.ddp_hooks import compress_hook
from gradstats.exchange.buckets import CHUNK, digest_of, members_of, units_of
from gradstats.exchange.parameter_names import Names
from gradstats.kernels.moving import are_finite
from gradstats.ratios import DenseRule


def laid_out(kind):
    """A parameter, and the bucket in which a reducer would put a gradient of it."""
    shape, generator = (3, 4), torch.Generator().manual_seed(1)
    grad = torch.randn(shape, generator=generator)
    parameter = torch.zeros(shape)
    if kind == "complex":
        grad = torch.randn(shape, generator=generator, dtype=torch.complex64)
        return nn.Parameter(torch.zeros_like(grad)), grad, torch.view_as_real(grad).reshape(-1)
    if kind == "column-major":
        parameter = parameter.t().contiguous().t()
        return nn.Parameter(parameter), grad, grad.t().reshape(-1)
    if kind == "strided":
        parameter = torch.zeros(3, 8)[:, ::2]
    if kind == "one row":
        return nn.Parameter(torch.zeros(1, 12)), grad.view(1, 12), grad.reshape(-1)
    if kind == "no dimension":
        return nn.Parameter(torch.zeros(())), grad[0, 0], grad[0, :1]
    return nn.Parameter(parameter), grad, grad.reshape(-1)


KINDS = ["row-major", "column-major", "strided", "complex", "one row", "no dimension"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_is_the_gradient_in_the_shape_of_its_parameter(kind):
    parameter, grad, buffer = laid_out(kind)
    (member,) = members_of(buffer, [parameter], Names(), DenseRule(4))
    expected = (torch.view_as_real(grad) if grad.is_complex() else grad).clone()
    assert torch.equal(member.grad, expected)
    assert member.large == (grad.dim() > 1)
    (unit,) = units_of([member], together=False)
    unit.write(2 * unit.whole)
    assert torch.equal(member.grad, 2 * expected)
    assert member.grad.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


def test_members_have_the_order_of_the_model_and_units_that_of_members():
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (3, 3))]
    names = Names({f"p{place}": each for place, each in enumerate(parameters)})
    buffer = torch.arange(19.0)
    members = members_of(buffer, parameters[1:] + parameters[:1], names, DenseRule(6))
    assert [member.key for member in members] == ["p2", "p1", "p0"]
    together, small = units_of(members, together=True, scaled=True)
    assert all([*together.read(2.0), *small.read(2.0)])
    assert together.keys == ("p2", "p0")
    assert not together.dense
    assert torch.equal(together.whole, torch.cat([buffer[4:13], buffer[13:]]) / 2)
    assert small.keys == ("p1",)
    assert small.dense
    assert torch.equal(buffer, torch.arange(19.0)), "the bucket is not divided"


@pytest.mark.parametrize("extra", [-1, 1, 5])
def test_parameters_must_add_up_to_the_bucket(extra):
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))]
    with pytest.raises(ValueError, match=r"of a bucket must add up to its .* got 10"):
        members_of(torch.zeros(10 + extra), parameters, Names(), DenseRule(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_digest_tells_places_and_bits_apart(dtype):
    buffer = torch.randn(1000, generator=torch.Generator().manual_seed(2)).to(dtype)
    whole = digest_of(buffer)
    assert 0 <= whole < 1 << 63
    assert digest_of(buffer.clone()) == whole
    for change in (lambda b: b.flip(0), lambda b: -b, lambda b: b.roll(1)):
        assert digest_of(change(buffer)) != whole
    for place in (0, 1, 500, 999):
        other = buffer.clone()
        other[place] = torch.nextafter(other[place].double(), torch.tensor(9.0)).to(dtype)
        other[place] += torch.finfo(dtype).eps * other[place].abs()
        assert digest_of(other) != whole
    kept = torch.zeros(1000, dtype=dtype)
    one, another = kept.clone(), kept.clone()
    one[3], another[700] = 1.5, 1.5  # the same values at other places
    assert digest_of(one) != digest_of(another)


def test_a_digest_is_that_of_all_words():
    buffer = torch.zeros(CHUNK + 5)
    whole = digest_of(buffer)
    for place in (CHUNK - 1, CHUNK, CHUNK + 4):
        other = buffer.clone()
        other[place] = 1e-30
        assert digest_of(other) != whole
    words = torch.tensor([3, -2, 7], dtype=torch.int32)
    expected = sum(word * multiplier(i) for i, word in enumerate(words.tolist())) % (1 << 63)
    assert digest_of(words.view(torch.float32)) == expected


def multiplier(place):
    """Of a word, in whole numbers of any length."""
    number = (place * 0x2545F4914F6CDD1D + (1 << 63)) % (1 << 64) - (1 << 63)
    return (number ^ (number >> 32)) | 1


@pytest.mark.parametrize("numel", [1 << 18, 1 << 20])
@pytest.mark.parametrize("values", ["random", "positive"])
def test_a_digest_tells_a_factor_of_all_elements(numel, values):
    """As of a worker that has another loss scale, or divides by another number of workers."""
    buffer = torch.randn(numel, generator=torch.Generator().manual_seed(3))
    buffer = buffer.abs() if values == "positive" else buffer
    scaled = [buffer * sign * 2.0**k for k in (-3, 0, 1, 2, 8, 16) for sign in (1, -1)]
    assert len({digest_of(each) for each in scaled}) == len(scaled)


def test_nothing_is_finite():
    assert are_finite([])
    assert are_finite([torch.zeros(0), torch.ones(3)])
    for value in (torch.nan, torch.inf, -torch.inf):
        assert not are_finite([torch.ones(3), torch.tensor([1.0, value])])


def test_the_reducer_in_python_is_called_by_its_name():
    with pytest.raises(TypeError, match=r"reducer in Python.*optimize_ddp"):
        compress_hook(None, (torch.zeros(3), nn.Parameter(torch.zeros(3))))
