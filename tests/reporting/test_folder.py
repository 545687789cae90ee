"""One results folder: what one verb has computed the others use, and the page needs no store."""

import shutil

import pandas
import pytest

import gradstats
from gradstats.fitting import over_steps, resumable
from gradstats.fitting.resumable import fit_into
from gradstats.fitting.settings import FitSettings
from gradstats.network import Network
from gradstats.replaying import resumable as replayed
from gradstats.replaying.columns import ReplayRow
from gradstats.replaying.into import replay_into
from gradstats.replaying.settings import ReplaySettings
from gradstats.reporting import facts
from gradstats.reporting import report as pipeline
from gradstats.reporting.report import render_folder
from gradstats.runs.results import Results
from gradstats.runs.tables import Made, frame
from tests.conftest import MODULE_TYPES, small_gradients, write_run

RATIOS = (0.1,)
FEW = ("bf16", "topk", "ef(sidco-e)", "powersgd")
MAKERS = {
    resumable: ("fit_steps",),
    over_steps: ("ranks", "series"),
    replayed: ("replay_jobs", "factorised_rows", "equal_bits_rows", "methods_table"),
    facts: ("groups",),
}


@pytest.fixture
def calls(monkeypatch):
    """Names of the functions that computed rows, as often as they were called."""
    seen = []

    def watch(module, name):
        original = getattr(module, name)

        def called(*args, **keywords):
            seen.append(name)
            return original(*args, **keywords)

        monkeypatch.setattr(module, name, called)

    for module, names in MAKERS.items():
        for name in names:
            watch(module, name)
    timed = replayed.timing_rows

    def timing_rows(*args, **keywords):
        rows = timed(*args, **keywords)
        seen.extend(["timing_rows"] * bool(rows))
        return rows

    monkeypatch.setattr(replayed, "timing_rows", timing_rows)
    return seen


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("folder") / "run.zarr"
    grads = {step: small_gradients(step) for step in range(6)}
    return write_run(path, grads, full=(0, 5), tracked=300, module_types=MODULE_TYPES)


@pytest.fixture(scope="module")
def reported_once(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "run.results"
    gradstats.report(gradstats.open(store), out=folder, ratios=RATIOS, compressors=FEW)
    return folder


@pytest.mark.slow
def test_a_second_report_computes_nothing(store, reported_once, tmp_path, calls, monkeypatch):
    """Nor does it draw here: test_the_page_renders_from_the_folder_alone draws all again."""

    def drawn(name, drawing, figures):
        return (figures / f"{name}.png").read_bytes()

    monkeypatch.setattr(pipeline, "draw", drawn)
    folder = shutil.copytree(reported_once, tmp_path / "again")
    before = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    page = (folder / "report.html").read_text(encoding="utf-8")
    again = gradstats.report(gradstats.open(store), out=folder, ratios=RATIOS, compressors=FEW)
    assert calls == []
    assert {path.name: path.read_bytes() for path in folder.glob("*.parquet")} == before
    assert again.read_text(encoding="utf-8") == page


@pytest.mark.slow
def test_a_report_uses_what_a_fit_and_a_replay_have_computed(
    store, tmp_path, calls, reported_once, undrawn
):
    run = gradstats.open(store)
    fit_into(run, FitSettings(ratios=RATIOS), tmp_path)
    fit_into(run, FitSettings(ratios=RATIOS, by="module-type"), tmp_path)
    fit_into(run, FitSettings(), tmp_path, axis="steps")
    both = {"feedback": ("none", "ef"), "granularity": ("model", "parameter")}
    replay_into(run, ReplaySettings(FEW, RATIOS, **both), tmp_path)
    assert {"fit_steps", "ranks", "series", "replay_jobs", "timing_rows"} <= set(calls)
    calls.clear()
    gradstats.report(run, out=tmp_path, ratios=RATIOS, compressors=FEW)
    # what is left: fits of compensated gradients, the last gradient, and what a report alone has
    expected = ["equal_bits_rows", "factorised_rows", "fit_steps", "groups", "methods_table"]
    assert sorted(set(calls)) == expected
    alone = pandas.read_parquet(reported_once / "methods.parquet")
    shared = pandas.read_parquet(tmp_path / "methods.parquet")
    columns = ["compressor", "feedback", "granularity", "rows", "error", "bits", "status"]
    pandas.testing.assert_frame_equal(shared[columns], alone[columns])


@pytest.mark.slow
def test_the_page_renders_from_the_folder_alone(store, reported_once, tmp_path, call):
    moved = shutil.move(shutil.copytree(store, tmp_path / "run.zarr"), tmp_path / "gone.zarr")
    folder = shutil.copytree(reported_once, tmp_path / "elsewhere")
    page = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "figures")
    shutil.rmtree(moved)
    assert call("report", folder)[:2] == (0, f"{folder / 'report.html'}\n")
    assert (folder / "report.html").read_text(encoding="utf-8") == page
    assert len(page) > 100_000  # the figures are in it


@pytest.mark.slow
def test_a_folder_that_another_command_has_changed_is_not_mixed(store, reported_once, tmp_path):
    folder = shutil.copytree(reported_once, tmp_path / "changed")
    run = gradstats.open(store)
    fit_into(run, FitSettings(families="laplace", ratios=0.5, by="parameter"), folder)
    with pytest.raises(ValueError, match=r"table fits_by_part .* other settings; .* RUN again"):
        render_folder(folder)
    with pytest.raises(ValueError, match=r"it has no report\.json; run gradstats report"):
        render_folder(tmp_path)


@pytest.mark.slow
def test_a_replay_of_fewer_compressors_takes_nothing_from_the_page(
    store, reported_once, tmp_path, calls
):
    folder = shutil.copytree(reported_once, tmp_path / "fewer")
    page = (folder / "report.html").read_text(encoding="utf-8")
    settings = ReplaySettings(("topk",), RATIOS, "ef")
    methods = replay_into(gradstats.open(store), settings, folder).methods
    assert [*methods["compressor"]] == ["topk(0.1)"]
    assert calls == ["methods_table"]
    assert render_folder(folder).read_text(encoding="utf-8") == page


def test_an_interrupted_replay_goes_on_where_it_was(store, tmp_path, monkeypatch):
    run, batches = gradstats.open(store), []
    settings = ReplaySettings(("topk", "bf16"), (0.1, 0.01), "none", ("model", "parameter"))
    original = replayed.replay_jobs

    def dying(run, jobs, **keywords):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append([job.labels["compressor"] for job in jobs])
        return original(run, jobs, **keywords)

    monkeypatch.setattr(replayed, "replay_jobs", dying)
    with pytest.raises(KeyboardInterrupt):
        replay_into(run, settings, tmp_path)
    done, batches[:] = [*batches], []
    assert done == [["topk(0.01)", "bf16"], ["topk(0.1)"]]
    monkeypatch.setattr(replayed, "replay_jobs", original)
    methods = replay_into(run, settings, tmp_path).methods
    assert len(methods) == 6
    whole = gradstats.replay(run, **vars(settings))
    order = ["compressor", "granularity", "step"]
    written = pandas.read_parquet(tmp_path / "replay.parquet").sort_values(order)
    expected = whole.sort_values(order)
    assert written["error"].tolist() == expected["error"].tolist()


def test_a_table_of_another_key_or_layout_is_made_anew(store, tmp_path, monkeypatch):
    calls = []

    def make(results, settings, key):
        calls.append(settings)
        results.keep("mine", frame([{"x": 1}], ReplayRow), key)

    made = Made({"mine": ReplayRow}, make, ("workers",))
    results = Results(gradstats.open(store), tmp_path)
    few, many = Network(workers=2), Network(workers=4)
    for network, latency in ((few, 0.0), (few, 1.0), (many, 0.0), (many, 0.0)):
        results.ensure(made, Network(network.workers, latency=latency))
    assert [each.workers for each in calls] == [2, 4]
    (tmp_path / "mine.parquet").write_bytes(b"not Parquet")
    results.ensure(made, many)
    frame([{"x": 2}], ReplayRow).to_parquet(tmp_path / "mine.parquet")  # of an older layout
    results.ensure(made, many)
    monkeypatch.setattr("gradstats.runs.results.LAYOUT", 99)
    results.ensure(made, many)
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("function", "keywords", "message"),
    [
        ("fit", {"familes": ["laplace"]}, "fit has no setting 'familes'; did you mean families?"),
        ("replay", {"ratio": 0.1}, "replay has no setting 'ratio'; did you mean ratios?"),
        ("report", {"buget": 1}, "report has no setting 'buget'; did you mean budget?"),
        ("report", {"xyz": 1}, "report has no setting 'xyz'; it has budget, by, families, ratios"),
    ],
)
def test_a_setting_that_is_not_there_is_named(store, function, keywords, message):
    first = (["topk"],) if function == "replay" else ()
    with pytest.raises(TypeError, match=message.replace("?", r"\?")):
        getattr(gradstats, function)(gradstats.open(store), *first, **keywords)


def test_one_value_needs_no_list(store):
    run = gradstats.open(store)
    one = gradstats.replay(run, "topk", ratios=0.1, feedback="ef", granularity="parameter")
    several = gradstats.replay(
        run, ["topk"], ratios=[0.1], feedback=["ef"], granularity=["parameter"]
    )
    pandas.testing.assert_frame_equal(one, several)
    assert set(one["feedback"]) == {"ef"}
    grad = run.gradient(0, "full")[1]
    single = gradstats.equal_bits(grad, "topk", ratios=0.1)
    assert single.equals(gradstats.equal_bits(grad, ["topk"], ratios=[0.1]))
    with pytest.raises(ValueError, match="feedback must be one of none, ef, got 'e'"):
        gradstats.replay(run, "topk", feedback="e")
