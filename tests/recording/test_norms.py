"""The norm of a row, also where squares leave float64."""

import math

import pytest
import torch

import gradstats


@pytest.mark.parametrize("kind", ["full", "summary"])
@pytest.mark.parametrize("size", [1e200, 1.0, 1e-200])
def test_the_norm_of_a_row_is_finite_where_its_elements_are(tmp_path, kind, size):
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    model = torch.nn.ParameterDict({"weight": weight})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rows = {"full": gradstats.every(1)} if kind == "full" else {"summary": True}
    with gradstats.capture(model, optimizer, tmp_path / "run.zarr", **rows) as cap:
        weight.grad = torch.tensor([3.0, -4.0, 12.0], dtype=torch.float64) * size
        optimizer.step()
    assert cap.stats.nonfinite == 0
    (norm,) = gradstats.open(tmp_path / "run.zarr").stream(kind).coordinates["grad_norm"]
    assert math.isclose(norm / size, 13.0, rel_tol=1e-12)
