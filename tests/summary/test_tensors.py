"""What people hold a gradient in: the same elements, the same Summary, and no warning."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import zarr

from gradstats import Summary, summarize, summarize_segments
from gradstats.families import Laplace

GRAD = np.random.default_rng(0).laplace(size=(6, 40))


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def field_of_records(array):
    records = np.zeros(array.shape, [("flag", "i1"), ("grad", array.dtype)])
    records["grad"] = array
    return records["grad"]  # strides that are no multiple of the element


def in_zarr(array):
    held = zarr.create_array({}, shape=array.shape, dtype=array.dtype)
    held[:] = array
    return held


FORMS = {
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "negative strides": lambda a: a[::-1, ::-1],
    "read only": read_only,
    "read only and big endian": lambda a: read_only(a.astype(a.dtype.newbyteorder(">"))),
    "broadcast": lambda a: np.broadcast_to(a, a.shape),
    "column major": np.asfortranarray,
    "field of records": field_of_records,
    "xarray": xr.DataArray,
    "pandas": pd.DataFrame,
    "zarr": in_zarr,
    "nothing masked": np.ma.asarray,
    "negative view": lambda a: torch.from_numpy(np.array(-a))._neg_view(),
}


def same(one, other):
    """Equal counts; sums are added in another order."""
    for name in ("dtype", "n", "zeros", "nan", "positive_inf", "negative_inf", "max_abs"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("bins", "positive", "negative"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.total == pytest.approx(other.total, abs=1e-12 * other.total_abs)
    assert one.total_abs == pytest.approx(other.total_abs, rel=1e-12)
    assert one.total_sq == pytest.approx(other.total_sq, rel=1e-12)
    return True


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_array(form, dtype):
    grad = GRAD.astype(dtype)
    assert same(summarize(FORMS[form](grad)), summarize(torch.from_numpy(grad)))


def test_numbers_in_lists_are_float64():
    assert same(summarize(GRAD.tolist()), summarize(GRAD))
    assert same(summarize([[1, 2], [3, -4]]), summarize(np.array([1.0, 2.0, 3.0, -4.0])))
    assert summarize([1e200]).max_abs == 1e200
    assert summarize(()).n == 0


@pytest.mark.parametrize("absent", [0.0, np.nan, 1e300])
def test_masked_elements_are_absent(absent):
    mask = np.abs(GRAD) > 1
    grad = np.ma.array(np.where(mask, absent, GRAD), mask=mask)
    assert same(summarize(grad), summarize(GRAD[~mask]))
    assert summarize(np.ma.array(GRAD, mask=True)).n == 0
    present = GRAD[0][~mask[0]]
    segments = summarize_segments(np.ma.array(GRAD[0], mask=mask[0]), [0, len(present)])
    assert same(segments[0], summarize(present))


def test_none_is_absent():
    assert summarize(None).n == 0
    assert same(summarize([1.0, None, -2.0]), summarize([1.0, -2.0]))
    grads = [torch.ones(3), None, torch.full((2, 2), -5.0)]
    assert same(summarize(grads), summarize(torch.cat([g.reshape(-1) for g in grads[::2]])))
    assert summarize([None, torch.ones(2, dtype=torch.bfloat16)]).dtype == "bfloat16"


def test_gradients_of_a_model_are_one_gradient():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    model(torch.ones(1, 4)).sum().backward()
    model[0].bias.grad = None
    grads = [p.grad for p in model.parameters()]
    assert summarize(grads).n == sum(g.numel() for g in grads if g is not None)
    with pytest.raises(ValueError, match="dtype float32 at sampling fraction 1"):
        summarize([torch.ones(1), torch.ones(1, dtype=torch.float64)])


def test_summaries_have_a_sum():
    parts = [summarize(row) for row in GRAD]
    assert same(sum(parts), summarize(GRAD))
    assert sum(parts[:1]) is parts[0]
    assert same(
        sum([summarize(None), *parts, summarize(np.zeros(0, np.float16))]), summarize(GRAD)
    )
    with pytest.raises(TypeError):
        parts[0] + 1.0
    assert isinstance(summarize(parts), Summary)


def test_other_bytes_are_refused_by_name():
    with pytest.raises(TypeError, match="bfloat16, got int64"):
        summarize(np.arange(3))
    with pytest.raises(TypeError, match="bfloat16, got bool"):
        summarize(np.ones(3, bool))
    for data in (np.ones(2, np.complex64), np.array(["a"])):
        with pytest.raises(TypeError, match="gradient must have a dtype of float32"):
            summarize(data)
    with pytest.raises(TypeError, match=r"bfloat16, got (float128|longdouble)"):
        summarize(np.ones(2, np.longdouble))
    with pytest.raises(TypeError, match=r"must hold elements, got a meta tensor of \(2,\)"):
        summarize(torch.ones(2, device="meta"))


def test_what_pandas_lacks_is_absent_and_nan_is_not():
    assert summarize(pd.Series([1.0, None, -2.0], dtype="Float64")).n == 2
    assert summarize(pd.Series([1.0, None, -2.0])).nan == 1  # numpy's float64 has NaN alone


def test_lists_of_unlike_length_and_dicts_are_one_gradient():
    assert same(summarize([[1.0, 2.0], [-3.0], []]), summarize([1.0, 2.0, -3.0]))
    nested = torch.nested.nested_tensor([torch.ones(3), -torch.ones(2)], layout=torch.jagged)
    assert same(summarize(nested), summarize(torch.tensor([1.0, 1, 1, -1, -1])))
    grads = {"a": torch.ones(3), "b": None, "c": torch.full((2, 2), -5.0)}
    assert same(summarize(grads), summarize([grads["a"], grads["c"]]))


def test_families_fit_what_people_hold():
    masked = np.ma.array(np.r_[GRAD[0], 1e9], mask=np.arange(41) == 40)
    assert Laplace.fit(masked) == Laplace.fit(GRAD[0])
    assert Laplace.fit(GRAD.tolist()) == Laplace.fit(GRAD)
