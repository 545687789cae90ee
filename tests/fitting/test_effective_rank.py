"""Effective ranks against singular values, and their table over training."""

import math

import numpy as np
import pytest
import torch

import gradstats
from gradstats.fitting.effective_rank import effective_rank
from gradstats.fitting.over_steps import rank_table
from gradstats.store import GradientStore, parameter_table


def expected(matrix):
    sigma = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    share, energy = sigma / sigma.sum(), sigma**2 / (sigma**2).sum()
    share = share[share > 0]
    needed = [int(np.argmax(np.cumsum(energy) >= part - 1e-12)) + 1 for part in (0.9, 0.99)]
    return [1 / energy[0], math.exp(-(share * np.log(share)).sum()), *needed, len(sigma)]


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (7, 7), (2, 500)])
@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_ranks_are_those_of_the_singular_values(shape, unit):
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=rng) @ torch.diag(torch.linspace(1, 0.01, shape[1]) ** 2)
    found = effective_rank(matrix * unit)
    values = [found.stable_rank, found.entropy_rank, found.r90, found.r99, found.full]
    assert values == pytest.approx(expected(matrix * unit), rel=1e-4)


def test_known_ranks():
    rng = torch.Generator().manual_seed(1)
    one = torch.randn(9, 1, generator=rng) @ torch.randn(1, 12, generator=rng)
    found = effective_rank(one)
    assert (found.stable_rank, found.r90, found.r99) == pytest.approx((1, 1, 1), rel=1e-6)
    assert found.entropy_rank == pytest.approx(1, abs=1e-4)  # noise of float32 in the others
    convolution = torch.randn(8, 3, 3, 3, generator=rng)
    assert effective_rank(convolution) == effective_rank(convolution.reshape(8, 27))
    assert effective_rank(convolution.bfloat16()).full == 8


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.ones(5), r"must be a matrix .*got \(5,\)"),
        (torch.ones(1, 5), r"must be a matrix .*got \(1, 5\)"),
        (torch.ones(5, 1), r"must be a matrix .*got \(5, 1\)"),
        (torch.zeros(3, 4), r"rank of a \(3, 4\) gradient: every element is zero"),
        (torch.full((3, 4), torch.nan), "an element is NaN or inf"),
        (torch.full((3, 4), torch.inf), "an element is NaN or inf"),
    ],
)
def test_what_has_no_rank_is_named(grad, message):
    with pytest.raises(ValueError, match=message):
        effective_rank(grad)


def test_a_line_a_matrix_and_row(small_run, gradients_of):
    run = gradstats.open(small_run)
    table = rank_table(run)
    assert table["parameter"].tolist() == ["embed.weight", "fc.weight", "head.weight"] * 3
    assert set(table["status"]) == {"ok"}
    line = table[(table["step"] == 100) & (table["parameter"] == "fc.weight")].iloc[0]
    exact = expected(gradients_of(100)["fc.weight"])
    assert line[["stable_rank", "entropy_rank", "r90", "r99", "full"]].tolist() == pytest.approx(
        exact, rel=1e-4
    )
    assert rank_table(run, most_rows=2)["step"].unique().tolist() == [0, 200]


def test_a_matrix_without_a_gradient_has_a_status(run_writer, tmp_path):
    grads = {0: {"w": torch.zeros(3, 4), "v": torch.ones(3, 3)}, 1: {"w": torch.eye(3, 4)}}
    table = rank_table(gradstats.open(run_writer(tmp_path / "s.zarr", grads)))
    status = {(row["step"], row["parameter"]): row["status"] for row in table.to_dict("records")}
    assert "every element is zero" in status[0, "w"]
    assert "it had none at row 1" in status[1, "v"]
    assert status[0, "v"] == status[1, "w"] == "ok"
    vectors = gradstats.open(run_writer(tmp_path / "v.zarr", {0: {"b": torch.ones(3)}}))
    assert len(rank_table(vectors)) == 0


def test_weights_have_ranks_too(tmp_path):
    path = tmp_path / "run.zarr"
    with GradientStore.create(path) as store:
        store.append(0, {"w": torch.ones(4, 5)}, weights={"w": torch.eye(4, 5)})
    run = gradstats.open(path)
    assert rank_table(run)["stable_rank"].tolist() == [pytest.approx(1)]
    assert rank_table(run, quantity="weight")["stable_rank"].tolist() == [pytest.approx(4)]


def test_gates_and_projections_are_matrices_of_their_own(tmp_path):
    kinds = {"lstm": "LSTM", "attention": "MultiheadAttention", "fc": "Linear"}
    shapes = {"lstm": (12, 3), "attention": (9, 3), "fc": (12, 3)}
    table = parameter_table(
        [(name, shape, torch.float32) for name, shape in shapes.items()], module_types=kinds
    )
    grads = {name: torch.eye(3).repeat(shape[0] // 3, 1) for name, shape in shapes.items()}
    grads["lstm"][3:6] = torch.ones(3, 3)
    with GradientStore.create(tmp_path / "run.zarr", table) as store:
        store.append(0, grads)
    found = rank_table(gradstats.open(tmp_path / "run.zarr")).set_index("parameter")
    names = [f"lstm[{gate}]" for gate in range(4)] + [f"attention[{i}]" for i in range(3)]
    assert list(found.index) == [*names, "fc"]
    assert found["stable_rank"].tolist() == pytest.approx([3, 1, 3, 3, 3, 3, 3, 3])


def test_a_parameter_that_is_one_matrix_is_not_cut(tmp_path):
    """Attention to other keys has a weight per projection, an LSTM with projections one more."""
    from torch import nn

    model = nn.ModuleDict({
        "attention": nn.MultiheadAttention(12, 2, kdim=9, vdim=8),
        "lstm": nn.LSTM(6, 12, proj_size=4),
        "conv": nn.Conv2d(6, 8, 3, groups=2),
    })  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cap = gradstats.capture(
        model, optimizer, tmp_path / "run.zarr", full=gradstats.every(1), track=None, quiet=True
    )
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    cap.close()
    found = rank_table(gradstats.open(tmp_path / "run.zarr"))
    assert dict(zip(found["parameter"], found["full"], strict=True)) == {
        "attention.q_proj_weight": 12,
        "attention.k_proj_weight": 9,
        "attention.v_proj_weight": 8,
        "attention.out_proj.weight": 12,
        **{f"lstm.weight_ih_l0[{gate}]": 6 for gate in range(4)},
        **{f"lstm.weight_hh_l0[{gate}]": 4 for gate in range(4)},
        "lstm.weight_hr_l0": 4,
        "conv.weight[0]": 4,
        "conv.weight[1]": 4,
    }
