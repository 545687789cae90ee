"""A selection of parameters that have no element is an error that names them, in every verb."""

import pytest
import torch

import gradstats


@pytest.fixture(params=["full", "summary"])
def path(request, tmp_path):
    """Three rows of a linear layer beside two parameters without an element."""
    linear = torch.nn.Linear(12, 20)
    linear.register_parameter("none", torch.nn.Parameter(torch.zeros(0, 7)))
    linear.register_parameter("flat", torch.nn.Parameter(torch.zeros(0)))
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    rows = {"full": gradstats.every(1)} if request.param == "full" else {"summary": True}
    with gradstats.capture(linear, optimizer, tmp_path / "run.zarr", **rows):
        for _ in range(3):
            (linear(torch.randn(4, 12)).sum() + linear.none.sum() + linear.flat.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return tmp_path / "run.zarr"


SELECTED = r"hold an element, got only none of shape \(0, 7\).*with elements: weight, bias"


def test_a_selection_without_elements_is_named(path):
    run = gradstats.open(path, parameters="none")
    for verb in (
        lambda: gradstats.fit(run),
        lambda: gradstats.fit(run, by="parameter"),
        lambda: gradstats.replay(run, ["topk(0.1)"]),
    ):
        with pytest.raises(ValueError, match=SELECTED):
            verb()


def test_a_grouping_that_finds_empty_parameters_alone_is_named(path):
    with pytest.raises(ValueError, match=r"groups by 'none\|flat' must hold an element"):
        gradstats.fit(gradstats.open(path), by="none|flat")


def test_beside_others_empty_parameters_have_no_row(path):
    table = gradstats.fit(gradstats.open(path), by="parameter", families=["laplace"])
    assert set(table["group"]) == {"weight", "bias"}
    assert (table["status"] == "ok").all()
