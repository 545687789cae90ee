"""Rows of factorised training, against dense algebra in numpy and finite changes of factors."""

import numpy as np
import pandas
import pytest
import torch
from torch import nn

import gradstats
from gradstats.lowrank import balanced, factorize
from gradstats.replaying.factorised import Share, factorised_rows
from gradstats.store import GradientStore, parameter_table

SHAPES = {"fc.weight": (30, 40), "conv.weight": (16, 8, 3, 3), "fc.bias": (30,)}


def tensors(seed, decay=0.85):
    """Matrices with falling singular values, and a vector."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in SHAPES.items():
        matrix = rng.standard_normal((shape[0], int(np.prod(shape[1:]))))
        if len(shape) > 1:
            u, s, vt = np.linalg.svd(matrix, full_matrices=False)
            matrix = (u * decay ** np.arange(len(s))) @ vt
        found[name] = torch.from_numpy(matrix.reshape(shape).astype("f4"))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("factorised") / "run.zarr"
    with GradientStore.create(path) as store:
        for step in range(3):
            store.append(step, tensors(step), weights=tensors(100))
    return gradstats.open(path)


@pytest.fixture(scope="module")
def table(run):
    return factorised_rows(run, rank_ratio=0.25, share=Share(1, 4))


def of(table, method, step=1):
    (line,) = table[(table["method"] == method) & (table["step"] == step)].to_dict("records")
    return line


def by_hand(step, rank_ratio=0.25):
    """Error of the bound, cosine and captured share of the implied one, in float64."""
    lost = total = inner = changed = captured = 0.0
    for name, grad in tensors(step).items():
        g = grad.double().numpy().reshape(len(grad), -1)
        total += (g**2).sum()
        if name == "fc.bias":
            inner, changed, captured = (each + (g**2).sum() for each in (inner, changed, captured))
            continue
        rank = int(rank_ratio * min(g.shape))
        w = tensors(100)[name].double().numpy().reshape(g.shape)
        u, s, vt = np.linalg.svd(w)
        u, s, v = u[:, :rank], s[:rank], vt[:rank].T
        lost += (np.linalg.svd(g, compute_uv=False)[rank:] ** 2).sum()
        d = g @ v @ np.diag(s) @ v.T + u @ np.diag(s) @ u.T @ g
        inner, changed = inner + (d * g).sum(), changed + (d**2).sum()
        p = g - (np.eye(len(u)) - u @ u.T) @ g @ (np.eye(len(v)) - v @ v.T)
        captured += (p**2).sum()
    return (lost / total) ** 0.5, inner / (changed * total) ** 0.5, captured / total


def test_the_bound_is_what_the_singular_values_say(table):
    error, _, _ = by_hand(1)
    line = of(table, "lowrank/bound(0.25)")
    assert line["error"] == pytest.approx(error, rel=1e-6)
    assert (line["kind"], line["error_on"]) == ("bound", "captured gradient")


def test_the_implied_row_is_that_of_the_factors_gradients(table):
    _, cosine, captured = by_hand(1)
    line = of(table, "pufferfish/implied(0.25)")
    assert line["cosine"] == pytest.approx(cosine, rel=1e-6)
    assert line["error"] == pytest.approx((1 - cosine**2) ** 0.5, rel=1e-6)
    assert line["captured"] == pytest.approx(captured, rel=1e-6)
    assert (line["kind"], line["error_on"]) == ("counterfactual", "product update")


def test_the_implied_change_is_that_of_a_small_step_of_the_factors():
    """(U - ηGV)(V - ηGᵀU)ᵀ - UVᵀ = -ηD, to first order in η."""
    grad, weight = (tensors(seed)["fc.weight"].double() for seed in (1, 100))
    second, first = balanced(weight, 7)
    eta = 1e-6
    moved = (second - eta * grad @ first.T) @ (first - eta * second.T @ grad)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    u, s, v = u[:, :7], s[:7], vt[:7].T
    change = (grad @ v * s) @ v.T + (u * s) @ (u.T @ grad)
    torch.testing.assert_close((second @ first - moved) / eta, change, rtol=1e-4, atol=1e-6)


def test_bytes_are_those_of_the_factorised_model(table):
    r = {"fc": 7, "conv": 4}
    floats = r["fc"] * (30 + 40) + r["conv"] * (16 + 72) + 30
    full = 30 * 40 + 16 * 72 + 30
    for method in ("lowrank/bound(0.25)", "pufferfish/implied(0.25)"):
        line = of(table, method)
        assert line["floats"] == floats
        assert line["nbytes"] == 4 * floats
        assert line["amortised_nbytes"] == full + 3 * floats
        assert line["encode_seconds"] == line["decode_seconds"] == 0


def test_the_rows_count_what_factorize_leaves(run):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.conv = nn.Linear(40, 30), nn.Conv2d(8, 16, 3, bias=False)

    for ratio in (0.1, 0.25, 0.5, 1.0):
        after = factorize(Net(), ratio).after
        assert set(factorised_rows(run, rank_ratio=ratio)["floats"]) == {after}


def test_a_native_run_is_exact_on_its_own_gradient(run, tmp_path):
    path = tmp_path / "native.zarr"
    shapes = {"fc.first.weight": (7, 40), "fc.second.weight": (30, 7), "fc.second.bias": (30,)}
    with GradientStore.create(path) as store:
        for step, seconds in enumerate((0.5, 0.25, 0.75)):
            grads = {name: torch.ones(shape) for name, shape in shapes.items()}
            store.append(step, grads, step_seconds=seconds)
    table = factorised_rows(run, native=gradstats.open(path), share=Share(1, 4))
    (line,) = table[table["method"] == "pufferfish/native"].to_dict("records")
    assert (line["error"], line["error_on"], line["kind"]) == (0, "own gradient", "model-change")
    assert line["nbytes"] == 4 * (7 * 70 + 30)
    assert line["amortised_nbytes"] == (30 * 40 + 16 * 72 + 30) + 3 * (7 * 70 + 30)
    assert line["step_seconds"] == 0.5
    assert np.isnan(line["cosine"])


def test_without_weights_there_is_a_bound_and_a_reason(run_writer, tmp_path, gradients_of):
    path = run_writer(tmp_path / "run.zarr", {0: gradients_of(0), 1: gradients_of(1)})
    table = factorised_rows(gradstats.open(path), rank_ratio=0.1)
    implied = table[table["kind"] == "counterfactual"]
    assert set(implied["status"]) == {
        "skipped: the run holds no weights, capture with weights=True"
    }
    assert (table[table["kind"] == "bound"]["status"] == "ok").all()
    assert isinstance(table, pandas.DataFrame)


def test_a_matrix_without_a_gradient_is_zero(run_writer, tmp_path):
    grads = {0: {"w": torch.ones(30, 40), "v": torch.eye(20)}, 1: {"w": torch.ones(30, 40)}}
    table = factorised_rows(gradstats.open(run_writer(tmp_path / "run.zarr", grads)))
    bound = table[table["kind"] == "bound"].set_index("step")["error"]
    assert bound[0] == pytest.approx((15 / (1200 + 20)) ** 0.5)
    assert bound[1] == pytest.approx(0, abs=1e-6)


def test_embeddings_stay_and_gates_are_matrices_of_their_own(tmp_path):
    path = tmp_path / "run.zarr"
    kinds = {"emb": "Embedding", "lstm": "LSTM", "attention": "MultiheadAttention"}
    shapes = {"emb": (64, 16), "lstm": (4 * 16, 16), "attention": (3 * 16, 16)}
    table = parameter_table(
        [(name, shape, torch.float32) for name, shape in shapes.items()], module_types=kinds
    )
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    with GradientStore.create(path, table) as store:
        store.append(0, grads)
    (floats,) = set(factorised_rows(gradstats.open(path))["floats"])
    assert floats == 64 * 16 + 4 * 4 * 32 + 3 * 4 * 32


@pytest.mark.parametrize(
    ("share", "full", "low", "expected"),
    [
        (Share(80, 300), 20_560_330, 8_370_634, 11_621_220),
        (Share(80, 300), 11_173_834, 3_336_138, 5_426_190),
        (Share(10, 90), 25_557_032, 15_202_344, 16_352_865),
        (Share(15, 90), 25_557_032, 15_202_344, 16_928_125),
        (Share(10, 40), 85_962_278, 67_962_278, 72_462_278),
        (Share(10, 400), 48_978_432, 26_696_192, 27_253_248),
    ],
)
def test_amortised_floats_of_the_published_trainings(share, full, low, expected):
    assert round(share.amortised(full, low)) == expected


def test_settings_out_of_range_are_refused(run, run_writer, tmp_path, gradients_of):
    for ratio in (0, 1.5):
        with pytest.raises(ValueError, match="rank_ratio must lie"):
            factorised_rows(run, rank_ratio=ratio)
    for numbers in ((2, 1), (-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="warm_up must be from 0 to the epochs"):
            Share(*numbers)
    tracked = run_writer(tmp_path / "t.zarr", {0: gradients_of(0)}, full=(), tracked=50)
    with pytest.raises(ValueError, match="must have whole gradients"):
        factorised_rows(gradstats.open(tracked))


def test_the_command_line_has_them_beside_a_replay(run, tmp_path):
    from typer.testing import CliRunner

    from gradstats.cli.app import app

    words = ["replay", str(run.store.path), "--compressors", "bf16", "--feedback", "none"]
    words += ["--rank-ratio", "0.25", "--out", str(tmp_path)]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert "Low rank: a changed model, not an encoder" in told.output
    kept = pandas.read_parquet(tmp_path / "factorised.parquet")
    assert set(kept["kind"]) == {"bound", "counterfactual"}
    refused = CliRunner().invoke(app, [*words[:-3], "2", "--out", str(tmp_path)])
    assert refused.exit_code == 2
