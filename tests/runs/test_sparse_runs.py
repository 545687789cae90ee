"""Sparse gradients are gradients: every reader counts their elements, zeros too, or says so."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import gradstats
from gradstats.fitting.over_steps import rank_table
from gradstats.fitting.run import fit_tables
from gradstats.fitting.settings import FitSettings
from gradstats.recording import capture, every
from gradstats.replaying.factorised import factorised_rows
from gradstats.replaying.folding import replay_rows
from gradstats.runs.copying import copy
from gradstats.runs.groups import groups
from gradstats.runs.health import findings
from gradstats.runs.results import run_settings
from gradstats.runs.smaller import Layout, Smaller
from gradstats.store import GradientStore, Row, parameter_table
from gradstats.summary import summarize

ROWS, WIDTH, STEPS = 1_000, 8, 6
NAMES = ("words.weight", "head.weight", "head.bias")


class Words(nn.Module):
    """An embedding whose gradient is sparse, and a dense layer unless it is left out."""

    def __init__(self, head):
        super().__init__()
        self.words = nn.Embedding(ROWS, WIDTH, sparse=True)
        self.head = nn.Linear(WIDTH, 12) if head else nn.Identity()

    def forward(self, x):
        return self.head(self.words(x)).pow(2).mean() + self.words(x).pow(2).mean()


def words(step):
    return torch.randint(0, ROWS, (40,), generator=torch.Generator().manual_seed(step))


def trained(path, *, head=True, dtype=torch.float32, **settings):
    """The gradients of every step, dense, found without a hook."""
    torch.manual_seed(0)
    model, found = Words(head).to(dtype), []
    twin = nn.Embedding(ROWS, WIDTH, dtype=dtype)  # dense
    twin.weight = nn.Parameter(model.words.weight.detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {"full": every(1), "track": 30, "summary": True, **settings}
    with capture(model, optimizer, path, quiet=True, **settings):
        for step in range(STEPS):
            exact = Words(head).to(dtype)
            exact.load_state_dict(model.state_dict())
            exact.words.sparse = False
            grads = torch.autograd.grad(exact(words(step)), [*exact.parameters()])
            names = [name for name, _ in exact.named_parameters()]
            found.append(dict(zip(names, grads, strict=True)))
            optimizer.zero_grad()
            model(words(step)).backward()
            optimizer.step()
    return found


def flat(grads):
    return torch.cat([grad.reshape(-1) for grad in grads.values()])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / "run.zarr"
    return path, trained(path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "run.zarr"
    return path, trained(path, head=False)


@pytest.fixture(params=["mixed", "alone"])
def made(request):
    path, exact = request.getfixturevalue(request.param)
    return gradstats.open(path), exact


def same(summary, grad):
    """Counts are exact; sums depend on the order of the elements."""
    exact = summarize(grad)
    for name in ("n", "zeros", "max_abs", "dtype", "fraction"):
        assert getattr(summary, name) == getattr(exact, name)
    for name in ("bins", "positive", "negative"):
        np.testing.assert_array_equal(getattr(summary, name), getattr(exact, name))
    assert summary.total_sq == pytest.approx(exact.total_sq, rel=1e-12)


def close(grad, exact):
    assert grad.shape == exact.shape
    assert grad.dtype == exact.dtype
    torch.testing.assert_close(grad, exact, rtol=1e-6, atol=1e-6)  # repeated words, in any order
    assert torch.equal(grad == 0, exact == 0)


def test_whole_rows_are_read_with_their_zeros(made):
    run, exact = made
    for step, grad in run.gradients():
        close(grad, flat(exact[step]))
        close(run.read(step), flat(exact[step]))
        assert run.read(step, "words.weight").layout == torch.sparse_coo
        close(run.parameter(step, "words.weight"), exact[step]["words.weight"])
    parts = [(part.name, part.numel, part.shape) for part in run.parts()]
    assert parts == [(name, g.numel(), tuple(g.shape)) for name, g in exact[0].items()]


@pytest.mark.parametrize("glob", ["head.*", "words.*", "*weight"])
def test_a_selection_is_of_sparse_ones_too(mixed, glob):
    path, exact = mixed
    run = gradstats.open(path, parameters=glob)
    for step, grad in run.gradients():
        close(grad, flat({n: g for n, g in exact[step].items() if n in run.selected}))
        assert sum(part.numel for part in run.parts()) == len(grad)


@pytest.mark.parametrize("kind", ["full", "summary"])
def test_summaries_are_exact_over_all_elements(made, kind):
    run, _ = made
    read = [run.reader().gradient(row) for row in range(STEPS)]
    for row, (group,) in enumerate(groups(run, kind=kind)):
        same(group.summary, read[row])
    for row, found in enumerate(groups(run, kind=kind, by="parameter")):
        assert [group.name for group in found] == list(run.names)
        for group in found:
            same(group.summary, run.parameter(row, group.name))
    first = next(groups(run, kind=kind, by="module-type"))
    kinds = {"Embedding": 8_000, "Linear": 108}
    found = {group.name: group.summary.n for group in first}
    assert found == {name: kinds[name] for name in found}
    assert sum(found.values()) == len(run.reader().gradient(0))


def test_a_fit_covers_every_element(made):
    run, exact = made
    grads = flat(exact[0])
    table = gradstats.fit(run, families=["laplace"])
    assert set(table["n"]) == {len(grads)}
    assert table["zeros"][0] == int((grads == 0).sum())
    exact_law = gradstats.families.Laplace.fit(grads)
    assert table["scale"][0] == pytest.approx(exact_law.scale, rel=1e-6)
    tables = fit_tables(run, FitSettings(families=["laplace"], by="parameter"))
    assert set(tables["fits"]["group"]) == set(run.names)
    assert set(tables["thresholds"]["group"]) == set(run.names)


def test_a_replay_is_of_every_element(made):
    run, exact = made
    table = gradstats.replay(run, ["topk(0.01)", "fp16"], granularity=["model", "parameter"])
    assert (table["status"] == "ok").all()
    assert set(table["n"]) == {len(flat(exact[0]))}
    grad = flat(exact[0])
    kept = grad.abs().topk(round(0.01 * len(grad))).values.double()
    lost = (1 - kept.square().sum() / grad.double().square().sum()).sqrt()
    model = table[(table["method"] == "topk") & (table["granularity"] == "model")]
    assert model["error"].iloc[0] == pytest.approx(float(lost), rel=1e-5)


def test_feedback_runs_on_whole_rows_where_tracks_hold_nothing(alone):
    run = gradstats.open(alone[0])
    assert run.kind == run.consecutive == "full"
    table = gradstats.replay(run, ["topk(0.01)"], feedback=["ef"])
    assert (table["status"] == "ok").all()
    assert (table["residual_ratio"] > 0).any()


def test_what_tracks_leave_out_is_said_by_name(mixed, call, tmp_path):
    path, text = mixed[0], "track rows hold nothing of parameters with sparse gradients: words."
    code, out, _ = call("info", path)
    assert (code, out.count(text)) == (0, 1)
    words = ["--out", tmp_path / "out", "--ratios", "0.1"]
    code, _, err = call("fit", path, *words, "--families", "laplace")
    assert (code, err.count(text)) == (0, 1)
    code, _, err = call("replay", path, *words, "--compressors", "fp16")
    assert (code, err.count(text)) == (0, 1)
    assert gradstats.open(path).stream("track").sampling_fraction == 30 / 108


def test_the_tables_of_tracks_say_what_they_leave_out(mixed):
    run = gradstats.open(mixed[0])
    settings = {"families": ["laplace"], "ratios": [0.1]}
    for how in ({"kind": "track"}, {"compensated": "topk(0.1)"}):
        table = gradstats.fit(run, **settings, **how)
        assert (table["notes"].str.contains("without words.weight: tracks hold no sparse")).all()
        table = gradstats.fit(run, by="parameter", **settings, **how)
        status = table.groupby("group", sort=False)["status"].agg(set)
        assert list(status.index) == list(run.names)
        assert status["words.weight"] == {"tracks hold no sparse gradients; capture with full="}
        assert status["head.weight"] == {"ok"}
    table = gradstats.replay(run, ["ef(topk(0.1))", "topk(0.1)"])
    assert dict(zip(table["rows"], table["left_out"], strict=True)) == {
        "track": "words.weight",
        "full": "",
    }
    assert not gradstats.fit(run, **settings)["notes"].str.contains("words.weight").any()


def test_what_tracks_cannot_hold_is_not_dead(tmp_path):
    trained(tmp_path / "run.zarr", full=None, summary=False)
    assert findings(gradstats.open(tmp_path / "run.zarr")) == []


@pytest.fixture
def tracked(tmp_path):
    """Tracked rows of a parameter with sparse gradients alone: none has an element."""
    table = parameter_table([("words.weight", (9, 4), "float32")], sparse=["words.weight"])
    with GradientStore.create(tmp_path / "run.zarr", table) as store:
        store.set_track({"float32": np.zeros(0, np.int64)})
        rows = [Row(s, {"float32": torch.zeros(0)}, np.ones(1, bool)) for s in range(3)]
        store.append_rows(rows, kind="track")
    return tmp_path / "run.zarr"


@pytest.mark.parametrize("name", ["tracked", "alone"])
def test_the_steps_of_sparse_gradients_are_refused_by_name(request, name):
    made = request.getfixturevalue(name)
    run = gradstats.open(made if name == "tracked" else made[0], steps=(0, 5, 2))
    for refused in (
        lambda: gradstats.fit(run, axis="steps"),
        lambda: gradstats.fit(run, compensated="topk(0.1)"),
    ):
        with pytest.raises(ValueError, match=r"sparse gradients, and those of words\.weight are"):
            refused()
    (row,) = gradstats.replay(run, ["ef(topk(0.1))"]).to_dict("records")[:1]
    assert "words.weight are; capture with full=" in row["status"]


def test_tracks_alone_of_sparse_gradients_are_refused_by_name(tracked, tmp_path, call):
    run = gradstats.open(tracked)
    for refused in (
        gradstats.fit,
        lambda run: gradstats.fit(run, kind="track"),
        lambda run: list(groups(run, kind="track")),
        lambda run: gradstats.replay(run, ["topk"]),
    ):
        with pytest.raises(ValueError, match=r"those of words\.weight are; capture with full="):
            refused(run)
    for command in ("fit", "replay", "report"):
        code, _, err = call(command, tmp_path / "run.zarr")
        assert code == 1, (command, err)
        assert "words.weight are; capture with full=" in err


def test_tracks_without_an_element_of_the_selected_parameter_measure_nothing(tmp_path):
    with GradientStore.create(tmp_path / "run.zarr") as store:
        for step in range(3):
            store.append(step, {"a": torch.ones(4), "b": torch.ones(4)})
        store.set_track({"float32": np.array([0, 1])})
        rows = [Row(s, {"float32": torch.ones(2)}, np.ones(2, bool)) for s in range(3)]
        store.append_rows(rows, kind="track")
    run = gradstats.open(tmp_path / "run.zarr", parameters="b")
    assert run.consecutive == "full"
    with pytest.raises(ValueError, match="cannot read track rows: they hold no element of the"):
        gradstats.fit(run, kind="track")
    (row,) = replay_rows([(0, torch.zeros(0))], [gradstats.compressor("none")])
    assert row["status"] == "skipped: there is no element"
    assert np.isnan(row["error"])


def test_a_replay_of_several_workers_has_their_sparse_gradients(tmp_path):
    exact = [trained(tmp_path / f"{worker}.zarr", summary=False) for worker in range(2)]
    table = gradstats.open(tmp_path / "0.zarr").store.parameters
    with GradientStore.create(tmp_path / "both.zarr", table) as store:
        for worker in range(2):
            stream = gradstats.open(tmp_path / f"{worker}.zarr").stream()
            layout = Layout(stream, Smaller())
            rows = [layout.row(row, "full") for row in range(STEPS)]
            for row in rows:
                row.coordinates["point"] = "local"
            store.append_rows(rows, worker)
    rows = gradstats.replay(gradstats.open(tmp_path / "both.zarr"), ["fp16"], workers=2)
    assert (rows["status"] == "ok").all()
    assert set(rows["n"]) == {len(flat(exact[0][0]))}


def test_ranks_and_low_rank_read_embeddings_dense(mixed):
    run = gradstats.open(mixed[0])
    table = rank_table(run)
    found = table[table["parameter"] == "words.weight"]
    assert (found["status"] == "ok").all()
    assert set(found["full"]) == {WIDTH}
    exact = mixed[1][0]["words.weight"].double()
    sigma = torch.linalg.svdvals(exact).square()
    assert found["stable_rank"].iloc[0] == pytest.approx(float(sigma.sum() / sigma[0]), rel=1e-5)
    assert set(factorised_rows(run, rank_ratio=0.5)["status"]) >= {"ok"}


def test_the_weight_of_a_sparse_parameter_is_not_its_gradient(tmp_path):
    trained(tmp_path / "run.zarr", weights=True)
    run = gradstats.open(tmp_path / "run.zarr")
    with pytest.raises(LookupError, match=r"weight of 'words\.weight': its gradients are sparse"):
        run.stream().read(0, "words.weight", "weight")
    status = rank_table(run, quantity="weight").set_index("parameter")["status"]
    assert status["words.weight"].str.contains("its gradients are sparse").all()
    assert (status["head.weight"] == "ok").all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_copy_in_another_dtype_reads_all_elements(made, tmp_path, dtype):
    run, exact = made
    kind = getattr(torch, dtype)
    copy(run.store.path, tmp_path / "copy.zarr", Smaller(dtype=dtype))
    found = gradstats.open(tmp_path / "copy.zarr")
    assert {grad.dtype for _, grad in found.gradients()} == {kind}
    for row in run.rows():
        assert torch.equal(found.gradient(row)[1], run.gradient(row)[1].to(kind))
    (group,) = next(iter(groups(found, kind="full")))
    assert (group.summary.n, group.summary.dtype) == (len(flat(exact[0])), dtype)


def test_summaries_made_by_a_copy_count_all_elements(alone, tmp_path):
    copy(alone[0], tmp_path / "copy.zarr", Smaller(modes=("summary",)))
    for (group,) in groups(gradstats.open(tmp_path / "copy.zarr")):
        assert group.summary.n == ROWS * WIDTH


def test_a_row_without_a_sparse_gradient_is_zero_there(tmp_path):
    torch.manual_seed(0)
    model = Words(head=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with capture(model, optimizer, tmp_path / "run.zarr", full=every(1), track=None, quiet=True):
        for step in range(2):
            optimizer.zero_grad()
            (model.head(torch.ones(3, WIDTH)).sum() if step else model(words(0))).backward()
            optimizer.step()
    run = gradstats.open(tmp_path / "run.zarr")
    assert (run.read(1)[: ROWS * WIDTH] == 0).all()
    assert run.read(1)[ROWS * WIDTH :].any()
    *_, last = groups(run, by="parameter")
    assert [group.status for group in last] == ["no gradient at step 1", "ok", "ok"]
    (whole,) = [*groups(run)][1]
    assert whole.summary.n == 108  # what has no gradient is not counted, of either layout


def test_info_says_which_parameters_are_sparse_and_which_are_tied(tmp_path, call):
    model = nn.ModuleDict({"words": nn.Embedding(9, 4, sparse=True), "a": nn.Linear(4, 4)})
    model["b"] = nn.Linear(4, 4)
    model["b"].weight = model["a"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, optimizer, tmp_path / "run.zarr", full=every(1), quiet=True):
        model["b"](model["a"](model["words"](torch.tensor([1])))).sum().backward()
        optimizer.step()
    code, out, _ = call("info", tmp_path / "run.zarr")
    assert code == 0
    assert "words.weight  9×4  float32  Embedding  sparse gradients\n" in out
    assert "a.weight  4×4  float32  Linear  tied with b.weight\n" in out
    assert "a.bias  4  float32  Linear\n" in out


def test_nothing_of_a_sparse_embedding_is_dead(mixed):
    assert [one for one in findings(gradstats.open(mixed[0])) if one.state == "dead"] == []


def test_results_of_another_sparse_run_are_not_taken_for_ours(tmp_path):
    """The vectors of both are empty: what is sparse tells them apart."""
    sums = []
    for number in range(2):
        path = tmp_path / f"{number}" / "run.zarr"
        trained(path, head=False, summary=False)
        if number:
            with GradientStore.open(path, "a") as store:
                stream = store.stream()
                row = Layout(stream, Smaller()).row(0, "full")
                row.coordinates["segment"] = 1
                store.append_rows([row])
        sums.append(run_settings(gradstats.open(path))["checksum"])
    assert sums[0] != sums[1]


@pytest.mark.slow
def test_a_report_of_sparse_gradients_is_of_all_of_them(made, tmp_path, undrawn):
    run, exact = made
    settings = {"ratios": [0.1], "compressors": ["bf16", "topk"], "budget": 1.0}
    page = gradstats.report(run, out=tmp_path / "out", **settings).read_text(encoding="utf-8")
    assert f"{len(flat(exact[0])):,} elements in {len(run.names)} tensors" in page
    text = "Track rows hold nothing of parameters with sparse gradients: words.weight."
    assert (text in page) == ("head.bias" in run.names)  # else there are none
    replayed = pd.read_parquet(tmp_path / "out" / "replay.parquet")
    assert set(replayed[replayed["rows"] == "full"]["n"]) == {len(flat(exact[0]))}


@pytest.mark.slow
@pytest.mark.parametrize("head", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_run_of_summaries_is_fitted_and_reported_from_the_command_line(
    tmp_path, call, undrawn, head
):
    path = tmp_path / "run.zarr"
    trained(path, head=head, full=None, track=None)
    code, out, err = call("fit", path, "--families", "laplace", "--ratios", "0.1")
    assert (code, "laplace" in out) == (0, True), err
    code, out, err = call("report", path, "--ratios", "0.1", "--compressors", "topk,bf16")
    assert code == 0, err
    page = (tmp_path / "run.results" / "report.html").read_text(encoding="utf-8")
    assert "No method was timed or replayed: the rows are Summaries." in page
    assert "No advice: bf16, the baseline, was not replayed." in page
    assert "rows of Summaries <b>6</b>" in page
    settings = json.loads((tmp_path / "run.results" / "settings.json").read_text())
    assert (settings["rows"]["summary"], settings["last_step"]) == (6, 5)
    code, _, err = call("replay", path)
    assert code == 1
    assert "holds only Summaries" in err


def test_the_page_says_which_share_of_the_model_was_tracked(tmp_path):
    """Of all its elements, not of those that a track can hold."""
    from gradstats.reporting.facts import tracked_share

    model = torch.nn.ModuleList(
        [torch.nn.Embedding(2000, 16, sparse=True), torch.nn.Linear(16, 10)]
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradstats.capture(model, optimizer, tmp_path / "run.zarr", track=10_000, quiet=True):
        model[1](model[0](torch.tensor([1, 5]))).sum().backward()
        optimizer.step()
    assert tracked_share(gradstats.open(tmp_path / "run.zarr")) == pytest.approx(170 / 32_170)
