"""A loss scale that still multiplies stored rows is no part of any gradient that is read."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradstats
from gradstats.families import Laplace
from gradstats.fitting.bootstrap import bootstrap_p_value
from gradstats.fitting.run import fit_tables
from gradstats.fitting.settings import FitSettings
from gradstats.recording import capture, every
from gradstats.replaying.factorised import factorised_rows
from gradstats.replaying.run import last_finite
from gradstats.runs.compensated import compensated_groups
from gradstats.runs.copying import copy
from gradstats.runs.groups import groups
from gradstats.runs.health import findings
from gradstats.runs.reading import divisors
from gradstats.runs.smaller import Smaller
from gradstats.store import GradientStore, Row, parameter_table
from gradstats.summary import summarize
from gradstats.summary.encoding import from_bytes, to_bytes

STEPS, N = 9, 2_000
POINTS = ("local", "reduced")
TRUE = torch.from_numpy(np.random.default_rng(0).laplace(size=N).astype("float32"))
TRUE *= 4.2e-7 / TRUE.norm()


class Constant(nn.Module):
    """Its gradient is `TRUE`, whatever its weights are."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(N))

    def forward(self):
        return (self.weight * TRUE).sum()


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """A fused optimizer under a loss scale that doubles every other step: both points have it."""
    path, model = tmp_path_factory.mktemp("scaled") / "run.zarr", Constant()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    rows = {"full": every(1), "track": 500, "summary": True, "shadow": ["topk(0.1)"]}
    with capture(model, optimizer, path, at=POINTS, quiet=True, **rows):
        for _ in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(model()).backward()
            scaler.step(optimizer)
            scaler.update()
    return path


@pytest.fixture(params=POINTS)
def run(request, scaled):
    run = gradstats.open(scaled, point=request.param)
    stored = {float(run.stream().read(row).norm()) for row in run.rows()}
    assert len(stored) > 3
    assert min(stored) > 1000 * 4.2e-7
    return run


def places(run):
    return torch.from_numpy(run.stream("track").element_ids["float32"])


def test_every_row_that_is_read_is_the_gradient(run):
    for step in range(STEPS):
        assert torch.equal(run.read(step), TRUE)
        assert torch.equal(run.read(step, "weight"), TRUE)
        assert torch.equal(run.read(step, kind="track"), TRUE[places(run)])
    assert [step for step, grad in run.gradients() if torch.equal(grad, TRUE)] == [*range(STEPS)]
    assert all(torch.equal(grad, TRUE[places(run)]) for _, grad in run.gradients("track"))
    assert torch.equal(last_finite(run), TRUE)


@pytest.mark.parametrize("by", ["model", "parameter", "module-type"])
@pytest.mark.parametrize("kind", ["full", "summary", "track"])
def test_every_summary_is_that_of_the_gradient(run, kind, by):
    sample = TRUE[places(run)] if kind == "track" else TRUE
    exact = summarize(sample, fraction=500 / N if kind == "track" else 1.0)
    found = [group.summary for (group,) in groups(run, kind=kind, by=by)]
    assert found == [exact] * STEPS
    if kind == "summary":
        assert [*run.summaries(run.rows(kind)[-1]).values()] == [exact]


def test_fits_thresholds_and_their_reuse_do_not_see_the_scale(run):
    tables = fit_tables(run, FitSettings(families=["laplace"]))
    law = Laplace.fit(TRUE)
    assert set(tables["fits"]["scale"]) == {law.scale}
    for ratio, rows in tables["fits"].groupby("target_ratio"):
        assert set(rows["threshold"]) == {float(law.threshold(ratio))}
    spread = tables["thresholds"].groupby(["variant", "stages", "target_ratio"])["threshold"]
    assert (spread.std() == 0).all()
    assert (tables["reuse"]["ended"] == -1).all()  # a threshold of one row holds on all others
    assert math.isclose(
        tables["structure"]["mean_abs"].iloc[-1], float(TRUE.abs().double().mean())
    )


def test_a_replay_loses_what_the_true_gradient_loses(run):
    table = gradstats.replay(run, ["fp16", "none"])
    lost = float((TRUE - TRUE.half().float()).double().norm() / TRUE.double().norm())
    assert lost > 0.9
    assert table[table["method"] == "fp16"]["error"].to_numpy() == pytest.approx(lost, rel=1e-6)


def test_a_memory_holds_gradients_of_one_unit(run):
    """What is held back at one scale is sent at another."""
    table = gradstats.replay(run, ["topk"], ratios=[0.1], feedback=["ef"])
    tracked, memory = TRUE[places(run)], torch.zeros(500)
    for held in table["residual_ratio"]:
        waiting = memory + tracked
        kept = waiting.abs().topk(50).indices
        memory = waiting.index_fill(0, kept, 0)
        assert held == pytest.approx(float(memory.norm() / tracked.norm()), rel=1e-5)
    compensated = [
        group.summary for (group,) in compensated_groups(run, gradstats.compressor("topk(0.1)"))
    ]
    assert compensated[0].max_abs == float(tracked.abs().max())


def test_an_element_that_never_changes_has_no_variance(run):
    table = gradstats.fit(run, axis="steps")
    assert table["mean"].to_numpy() == pytest.approx(TRUE[places(run)].double().numpy(), rel=1e-12)
    assert (table["variance"] == 0).all()


def test_a_growing_scale_is_no_exploding_gradient(tmp_path):
    with GradientStore.create(tmp_path / "run.zarr") as store:
        for step in range(12):
            scale = 1024.0 * 2 ** (step // 2)
            store.append(step, {"w": TRUE * scale}, loss_scale=scale, unscaled=0)
    assert findings(gradstats.open(tmp_path / "run.zarr")) == []


def test_info_and_the_commands_say_what_was_divided(scaled, call, tmp_path):
    said = "9 of 9 full rows: stored multiplied by a loss scale of 1,024 to 16,384, divided when"
    code, out, _ = call("info", scaled)
    assert code == 0
    assert said.replace("9 of 9", "18 of 18") in out
    assert "18 of 18 shadow rows: compressors ran on gradients multiplied by a loss scale" in out
    for command in ("fit", "replay"):
        words = [command, scaled, "--out", tmp_path / command, "--ratios", "0.1"]
        words += ["--compressors", "fp16"] if command == "replay" else ["--families", "laplace"]
        code, _, err = call(*words)
        assert code == 0
        assert err.count(said) == 1
        assert ("unless it is told of the GradScaler" in err) == (command == "replay")


@pytest.mark.slow
def test_the_report_says_what_was_divided(scaled, tmp_path, undrawn):
    run = gradstats.open(scaled, point="local")
    settings = {"ratios": [0.1], "compressors": ["fp16", "bf16", "topk"], "budget": 1.0}
    page = gradstats.report(run, out=tmp_path / "out", **settings).read_text(encoding="utf-8")
    assert "9 of 9 full rows: stored multiplied by a loss scale of 1,024 to 16,384" in page
    assert "unless it is told of the GradScaler" in page


def test_a_copy_reads_as_the_run_does(scaled, tmp_path):
    copy(scaled, tmp_path / "copy.zarr", Smaller(track=100))
    run = gradstats.open(tmp_path / "copy.zarr", point="reduced")
    assert all(torch.equal(grad, TRUE) for _, grad in run.gradients())
    assert all(group.summary == summarize(TRUE) for (group,) in groups(run, kind="summary"))


HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(params=HALVES, ids=str)
def half_run(request, tmp_path):
    """Half precision, times 65,536 but for the first row; (path, stored)."""
    dtype, path = request.param, tmp_path / "run.zarr"
    stored = (TRUE * 65536).to(dtype)
    table = parameter_table([("w", (N,), dtype), ("v", (3,), "float32")])
    with GradientStore.create(path, table) as store:
        store.add_stream("summary")
        for step, scale in enumerate((1.0, 65536.0, 65536.0)):
            grads = {"w": stored, "v": torch.ones(3) * scale}
            told = {"loss_scale": scale, "unscaled": 0}
            store.append(step, grads, **told)
            data = np.frombuffer(to_bytes([summarize(g) for g in grads.values()]), np.uint8)
            row = Row(step, {}, np.ones(2, bool), told, None, {"summary": data})
            store.append_rows([row], kind="summary")
    return path, stored


def test_half_precision_is_read_wide_enough_to_divide(half_run):
    path, stored = half_run
    run = gradstats.open(path, parameters="w")
    for step, scale in enumerate((1.0, 65536.0, 65536.0)):
        grad = run.read(step, "w")
        assert grad.dtype == torch.float32  # of all rows: a memory goes from one to the next
        assert torch.equal(grad.double(), stored.double() / scale)
        assert (grad == 0).sum() == (stored == 0).sum()
    assert {grad.dtype for _, grad in run.gradients()} == {torch.float32}


@pytest.mark.parametrize("by", ["model", "parameter"])
def test_stored_summaries_of_half_precision_lose_nothing(half_run, by):
    """Their bins are those of what was stored, and its smallest numbers are no float16."""
    path, stored = half_run
    run = gradstats.open(path, parameters="w")
    whole = [group.summary for (group,) in groups(run, kind="full", by=by)]
    kept = [group.summary for (group,) in groups(run, kind="summary", by=by)]
    for scale, full, summary in zip((1.0, 65536.0, 65536.0), whole, kept, strict=True):
        raw = summarize(stored)
        assert (summary.zeros, summary.n, summary.nonzero) == (full.zeros, full.n, full.nonzero)
        for name in ("total", "total_abs", "max_abs"):
            assert getattr(summary, name) == getattr(raw, name) / scale
        for ratio in (0.5, 0.1, 0.01):
            assert summary.quantile(ratio) == raw.quantile(ratio) / scale
            # a bin of 8 numbers at the bottom of float16 is as wide as its smallest
            assert summary.quantile(ratio) == pytest.approx(full.quantile(ratio), rel=0.02)


def test_parts_of_one_row_add_whether_or_not_the_grid_has_their_bins():
    tiny, large = torch.full((4,), 2.0**-21).half(), torch.full((5,), 2.0**10).half()
    parts = [summarize(part).scaled(2.0**-16) for part in (tiny, large)]
    assert [part.unit for part in parts] == [2.0**-16, 1.0]
    for both in (parts[0] + parts[1], parts[1] + parts[0]):
        assert both == summarize(torch.cat([tiny, large])).scaled(2.0**-16)
        assert both.quantile(1.0) == 2.0**-37
    assert parts[0] + summarize(torch.zeros(2).half()) == summarize(
        torch.cat([tiny, torch.zeros(2).half()])
    ).scaled(2.0**-16)
    with pytest.raises(ValueError, match=r"units 1 and 0\.3"):
        summarize(large) + summarize(large).scaled(0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("power", [-10, -1, 0, 3])
def test_a_summary_times_a_power_of_two_is_that_of_the_products(dtype, power):
    grad = torch.randn(3_000, generator=torch.Generator().manual_seed(1)).mul(0.3).to(dtype)
    grad = torch.where(grad.abs() > 0.1, grad, 0).to(dtype)  # normal before and after
    grad[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    grad = torch.cat([grad, grad.new_tensor([2.0])])
    assert summarize(grad).scaled(2.0**power) == summarize(grad * 2.0**power)
    assert summarize(grad).scaled(2.0**power).scaled(2.0**-power) == summarize(grad)


def test_a_summary_times_any_factor_keeps_its_counts():
    exact = summarize(TRUE.double() / 3)
    third = summarize(TRUE).scaled(1 / 3)
    assert third.unit == 1 / 3
    assert third.total_sq == pytest.approx(exact.total_sq, rel=1e-12)
    for ratio in (0.9, 0.1, 0.001):
        assert third.quantile(ratio) == pytest.approx(exact.quantile(ratio), rel=1 / 128)
        assert third.kept(third.quantile(ratio)) == pytest.approx(ratio * N)
    assert Laplace.fit(third).scale == pytest.approx(Laplace.fit(exact).scale, rel=1e-12)
    p = [bootstrap_p_value(
        Laplace, each, np.random.default_rng(0), replicates=9
    ) for each in (third, summarize(TRUE))]  # fmt: skip
    assert p[0] == pytest.approx(p[1], abs=0.3)
    with pytest.raises(ValueError, match="unit of a Summary must be 1"):
        to_bytes([third])
    for factor in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="factor must be positive and finite"):
            third.scaled(factor)


def test_a_scale_that_is_no_power_of_two_is_divided_too(tmp_path):
    with GradientStore.create(tmp_path / "run.zarr") as store:
        store.append(0, {"w": TRUE * 1000}, loss_scale=1000.0, unscaled=0)
    run = gradstats.open(tmp_path / "run.zarr")
    assert run.read(0).numpy() == pytest.approx(TRUE.numpy(), rel=1e-6)
    ((group,),) = groups(run)
    assert group.summary.max_abs == pytest.approx(float(TRUE.abs().max()), rel=1e-6)


UNKNOWN = [{"unscaled": 0}, {"unscaled": 0, "loss_scale": math.inf}, {"loss_scale": 1024.0}]


@pytest.fixture(params=UNKNOWN, ids=str)
def unknown(request, tmp_path):
    """Rows 0 and 1 do not tell their scale, rows 2 … 5 are told to have none."""
    path = tmp_path / "run.zarr"
    table = parameter_table([("w", (N // 10, 10), "float32")])
    ids = np.arange(0, N, 4)
    with GradientStore.create(path, table) as store:
        store.set_track({"float32": ids})
        for step in range(6):
            told = request.param if step < 2 else {"loss_scale": 1.0, "unscaled": 1}
            flat, there = {"float32": TRUE.clone()}, np.ones(1, bool)
            store.append_rows([Row(step, flat, there, told)])
            tracked = {"float32": TRUE[torch.from_numpy(ids)]}
            store.append_rows([Row(step, tracked, there, told)], kind="track")
    return path


REFUSED = {
    "read": lambda run: run.read(1),
    "gradients": lambda run: list(run.gradients()),
    "track": lambda run: list(run.gradients("track")),
    "together": lambda run: list(run.together(1)),
    "groups": lambda run: list(groups(run)),
    "fit": gradstats.fit,
    "compensated": lambda run: gradstats.fit(run, compensated="topk(0.1)"),
    "steps": lambda run: gradstats.fit(run, axis="steps"),
    "replay": lambda run: gradstats.replay(run, ["none"]),
    "low rank": lambda run: factorised_rows(run),
    "report": lambda run: gradstats.report(run, budget=1.0, compressors=["none"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_scale_that_is_not_known_is_refused_by_name(unknown, name):
    which = r"of steps (0, )?1 \((full|track) rows\): the loss scale .* was not recorded"
    with pytest.raises(ValueError, match=which):
        REFUSED[name](gradstats.open(unknown))
    if name != "read":
        with pytest.raises(ValueError, match=r"steps=\(2, None, 1\), --steps 2: on the command"):
            REFUSED[name](gradstats.open(unknown))


def test_rows_of_an_unknown_scale_are_left_out_by_steps_and_read_as_stored(unknown, call):
    run = gradstats.open(unknown, steps=(2, None, 1))
    assert all(torch.equal(grad, TRUE) for _, grad in run.gradients())
    assert len(gradstats.replay(run, ["none"])) == 4
    assert torch.equal(run.stream().read(0), TRUE)
    code, out, _ = call("info", unknown)
    assert code == 0
    assert "2 of 6 full rows: the loss scale was not recorded, they are refused" in out
    code, _, err = call("replay", unknown, "--compressors", "none")
    assert code in (1, 2)
    assert "--steps 2: on the command line" in err


def test_rows_that_say_nothing_are_taken_as_they_are():
    """Gradients that were imported, and those of stores from before the coordinate."""
    nothing = {"unscaled": np.array([-1, -1]), "loss_scale": np.array([np.nan, 1.0])}
    assert divisors(nothing).tolist() == [1, 1]
    assert from_bytes(to_bytes([summarize(TRUE)])) == [summarize(TRUE)]
