"""Which compressors run on which rows of a run, and the table that comes of it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import gradstats
from gradstats.compressors import Compressor, Contract, Rng, compressor
from gradstats.payloads.sparse import Sparse
from gradstats.replaying.folding import replay_rows
from gradstats.replaying.planning import plan
from gradstats.replaying.run import replay_jobs, rows_expected, timing_rows
from gradstats.runs import open as open_run
from gradstats.store import GradientStore

N, TRACKED = 8_064, 2_000


@dataclass(frozen=True)
class EveryOther(Compressor):
    """A user's own class: every second element."""

    start: int = 0
    name: ClassVar[str] = "every-other"
    contract = Contract("all_gather")

    def encode(self, grad, state, rng=None):
        flat = grad.reshape(-1)
        return Sparse.at(flat, torch.arange(self.start, flat.numel(), 2)), state


@pytest.fixture(scope="module")
def run(small_run):
    return gradstats.open(small_run)


@pytest.fixture(scope="module")
def short(small_run):
    """Twelve tracked steps and one full row."""
    return gradstats.open(small_run, steps=(0, 12, 1))


@pytest.fixture(scope="module")
def untracked(run_writer, tmp_path_factory, gradients_of):
    grads = {step: gradients_of(step) for step in (0, 100)}
    return gradstats.open(run_writer(tmp_path_factory.mktemp("u") / "u.zarr", grads))


def lines(table, **wanted):
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


@pytest.mark.parametrize(
    ("spec", "feedback", "kind"),
    [
        ("none", "none", "full"),
        ("bf16", "none", "full"),
        ("topk(0.1)", "none", "full"),
        ("randomk(0.1)", "none", "full"),
        ("threshold(0.1)", "none", "track"),
        ("sidco-e(0.1)", "none", "track"),
        ("topk(0.1)", "ef", "track"),
        ("bf16", "ef", "track"),
        ("ef(topk(0.1))", "none", "track"),
    ],
)
def test_methods_with_memory_run_on_consecutive_rows_the_others_on_full_ones(
    run, spec, feedback, kind
):
    (job,) = plan(run, [spec], feedback=[feedback])
    assert (job.kind, job.labels["rows"], job.skipped) == (kind, kind, "")
    assert job.feedback == ("ef" if "ef(" in spec else feedback)


def test_a_replay_is_the_rows_of_its_compressors_with_their_labels(short):
    table = gradstats.replay(short, ["topk", "sidco-e(0.05)", "none"], ratios=[0.1, 0.01], seed=3)
    assert list(table.drop_duplicates("compressor")["compressor"]) == [
        "topk(0.1)",
        "topk(0.01)",
        "none",
        "sidco-e(0.05)",
    ]
    for spec, kind in (("topk(0.1)", "full"), ("topk(0.01)", "full"), ("sidco-e(0.05)", "track")):
        expected = list(replay_rows(short.gradients(kind), [compressor(spec)], seed=3))
        found = lines(table, compressor=spec).to_dict("records")
        assert len(found) == len(expected) == (1 if kind == "full" else 12)
        for row, wanted in zip(found, expected, strict=True):
            del wanted["index"]
            unknown = {name for name, value in wanted.items() if value != value}  # NaN
            assert all(math.isnan(row[name]) for name in unknown)
            assert all(row[name] == wanted[name] for name in wanted.keys() - unknown)
            assert row["target_ratio"] == compressor(spec).ratio
    assert lines(table, rows="full")["sampling_fraction"].eq(1).all()
    assert lines(table, rows="track")["sampling_fraction"].eq(TRACKED / N).all()
    assert lines(table, rows="track")["n"].eq(TRACKED).all()


def test_specs_ratios_feedback_and_granularity_multiply_and_repeat_nothing(run):
    jobs = plan(
        run,
        ["topk", "topk(0.1)", "ef(topk(0.1))", "bf16"],
        ratios=[0.1, 0.01],
        feedback=["none", "ef"],
        granularity=["model", "parameter"],
    )
    names = {(job.labels["compressor"], job.feedback, job.granularity) for job in jobs}
    assert len(jobs) == len(names) == 3 * 2 * 2


def test_ones_own_instances_run_beside_specs(short):
    table = gradstats.replay(short, ["ef(topk(0.01))", EveryOther(), EveryOther(1)])
    assert set(table["compressor"]) == {"topk(0.01)", "every-other", "every-other(1)"}
    first, second = (lines(table, compressor=name) for name in ("every-other", "every-other(1)"))
    assert 0 < first["nbytes"].iloc[0] - (4 * N // 2 + N // 8) < 36  # values, and a bitmap
    assert first["error"].iloc[0] ** 2 + second["error"].iloc[0] ** 2 == pytest.approx(1)
    assert first["target_ratio"].isna().all()
    assert first["khat_over_k"].isna().all()
    fed_back = gradstats.replay(short, [EveryOther()], feedback=["ef"])
    assert fed_back["residual_ratio"].notna().all()


def test_a_class_of_ones_own_is_named_by_its_module(short):
    module = EveryOther.__module__
    (job,) = plan(short, [f"{module}:EveryOther(1)"])
    assert job.labels["method"] == "every-other"


@pytest.mark.parametrize("feedback", ["none", "ef"])
def test_per_parameter_sends_small_parameters_whole(short, feedback):
    table = gradstats.replay(short, ["topk(0.01)"], feedback=[feedback], granularity=["parameter"])
    kind = "track" if feedback == "ef" else "full"
    numels = {part.name: part.numel for part in short.parts(kind)}
    sparse_parts = [n for name, n in numels.items() if name != "fc.bias"]
    k = sum(max(1, round(0.01 * n)) for n in sparse_parts) + numels["fc.bias"]
    assert table["k"].eq(k).all()
    assert table["khat_over_k"].eq(1).all()
    least = 4 * k + k - numels["fc.bias"]  # values, and a byte or more an index
    assert table["nbytes"].between(least, least + k + 5 * 16).all()


def test_per_parameter_is_each_parameter_by_itself(short, gradients_of):
    table = gradstats.replay(short, ["topk(0.01)"], granularity=["parameter"])
    grads = gradients_of(0)
    missed = 0.0
    for name, grad in grads.items():
        if name != "fc.bias":
            payload, _ = compressor("topk(0.01)").encode(grad, None, Rng())
            missed += float((grad.reshape(-1) - payload.decode()).double().square().sum())
    norm = sum(float(grad.double().square().sum()) for grad in grads.values())
    assert table["error"].iloc[0] == pytest.approx((missed / norm) ** 0.5, rel=1e-6)


def test_without_tracked_rows_methods_with_memory_are_rows_that_say_why(untracked):
    table = gradstats.replay(untracked, ["topk(0.1)", "sidco-e(0.1)"], feedback=["none", "ef"])
    open_loop = lines(table, compressor="topk(0.1)", feedback="none")
    assert open_loop["status"].eq("ok").all()
    assert list(open_loop["step"]) == [0, 100]
    skipped = table[table["status"] != "ok"]
    assert len(skipped) == 3
    assert (
        skipped["status"].str.contains("skipped: .*consecutive steps; .*capture with track=").all()
    )
    assert skipped["error"].isna().all()


def test_planning_opens_no_rows_for_each_method(small_run, monkeypatch):
    run, opened, original = gradstats.open(small_run), [], GradientStore.stream
    assert run.consecutive == "track"

    def stream(store, *args):
        opened.append(args)
        return original(store, *args)

    monkeypatch.setattr(GradientStore, "stream", stream)
    assert len(plan(run, ["topk", "sign", "randomk"], feedback=["none", "ef"])) > 6
    assert not opened


def test_tracked_rows_with_gaps_are_not_consecutive(small_run):
    run = gradstats.open(small_run, steps=(None, None, 2))
    (job,) = plan(run, ["ef(topk(0.1))"])
    assert "consecutive" in job.skipped


def test_full_rows_of_every_step_serve_methods_with_memory(run_writer, tmp_path, gradients_of):
    grads = {step: gradients_of(step) for step in range(4)}
    run = open_run(run_writer(tmp_path / "f.zarr", grads))
    table = gradstats.replay(run, ["ef(topk(0.1))"])
    assert table["status"].eq("ok").all()
    assert table["rows"].eq("full").all()
    assert len(table) == 4


def test_a_selection_of_parameters_is_what_is_replayed(small_run, gradients_of):
    run = gradstats.open(small_run, parameters="fc.*", steps=(0, 5, 1))
    table = gradstats.replay(run, ["topk(0.1)", "ef(topk(0.1))"], granularity=["parameter"])
    assert lines(table, rows="full")["n"].eq(64 * 50 + 64).all()
    whole = gradients_of(0)
    payload, _ = compressor("topk(0.1)").encode(whole["fc.weight"], None)
    error = float((whole["fc.weight"].reshape(-1) - payload.decode()).norm())
    norm = float(torch.cat([whole[name].reshape(-1) for name in ("fc.weight", "fc.bias")]).norm())
    found = lines(table, rows="full")["error"].iloc[0]
    assert found == pytest.approx(error / norm, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"specs": ["topq(0.1)"]}, "got 'topq'"),
        ({"specs": ["topk(1.5)"]}, r"must lie in \(0, 1\].*got 1.5"),
        ({"specs": ["topk"], "ratios": [0.0]}, r"must lie in \(0, 1\].*got 0.0"),
        ({"specs": ["topk"], "ratios": []}, "must be given a ratio"),
        ({"specs": ["bf16"], "feedback": ["momentum"]}, "none, ef, got 'momentum'"),
        ({"specs": ["bf16"], "granularity": ["layer"]}, "model, parameter, got 'layer'"),
    ],
)
def test_what_is_not_known_is_named(run, settings, message):
    with pytest.raises(ValueError, match=message):
        plan(run, settings.pop("specs"), **settings)


def test_progress_counts_to_the_number_of_rows(short):
    seen = []
    jobs = plan(short, ["topk(0.1)", "ef(topk(0.1))"])
    replay_jobs(short, jobs, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 13) for i in range(1, 14)]


def test_timings_are_of_the_last_finite_full_row(run_writer, tmp_path, gradients_of):
    broken = {name: torch.full_like(grad, math.nan) for name, grad in gradients_of(2).items()}
    rows = {0: gradients_of(0), 1: gradients_of(1), 2: broken}
    run = open_run(run_writer(tmp_path / "t.zarr", rows))
    (two, _) = timing_rows(run, ["powersgd"])
    assert (two["collective"], two["rounds"]) == ("all_reduce", 2)
    timings = timing_rows(run, ["topk", "bf16"], ratios=[0.1, 0.01])
    names = [(row["compressor"], row["feedback"]) for row in timings]
    assert names == [
        (name, each) for name in ("topk(0.1)", "topk(0.01)", "bf16") for each in ("none", "ef")
    ]
    assert {row["collective"] for row in timings[:4]} == {"all_gather"}
    assert {row["collective"] for row in timings[4:]} == {"all_reduce"}
    assert {row["rounds"] for row in timings} == {1}
    for row in timings:
        assert row["n"] == N
        assert row["encode_seconds"] > 0 < row["decode_seconds"]


def test_timings_name_a_method_as_its_rows_do_and_once(short):
    specs = ["ef(topk)", "topk(0.1)", "topk"]
    timings = timing_rows(short, specs, ratios=[0.1])
    assert [row["compressor"] for row in timings] == ["topk(0.1)"] * 2  # without feedback, with


@dataclass(frozen=True)
class Fails(EveryOther):
    """Gives up at the third gradient it sees."""

    name: ClassVar[str] = "fails"

    def init(self, grad):
        return 0

    def encode(self, grad, state, rng=None):
        if state == 2:
            raise RuntimeError("no more")
        return super().encode(grad, state)[0], state + 1


def test_a_compressor_that_fails_is_a_row_with_its_reason(run):
    rows = replay_rows(((step, torch.ones(8)) for step in range(5)), [Fails(), EveryOther()])
    table = list(rows)
    status = [row["status"] for row in table if row["index"] == 0]
    assert status == ["ok", "ok", *["failed at step 2: RuntimeError: no more"] * 3]
    assert {row["status"] for row in table if row["index"] == 1} == {"ok"}
    timings = timing_rows(run, [Fails()])
    assert all(math.isnan(row["encode_seconds"]) for row in timings)


def test_a_replay_ends_at_its_deadline(short):
    jobs = plan(short, ["topk(0.1)"], feedback=["ef"])
    assert len(replay_jobs(short, jobs)) == rows_expected(short, jobs) == 12
    assert len(replay_jobs(short, jobs, deadline=0.0)) == 1
