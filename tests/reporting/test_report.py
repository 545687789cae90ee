"""The report: what is computed once, what the page says, and what it never does."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest
import torch
from matplotlib.figure import Figure

import gradstats
from gradstats.replaying import resumable
from gradstats.reporting import report as pipeline
from tests.conftest import fingerprint

pytestmark = pytest.mark.slow

SPECS = ("none", "bf16", "topk", "threshold", "sidco-e")
FEW = ("bf16", "topk", "sidco-e")
RATIOS = (0.1,)
STEPS = (0, 20, 1)


class Reader(HTMLParser):
    """Tags with their attributes, and text by the element it is in."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.rows = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") or "", []))

    def handle_data(self, data):
        if data.strip():
            self.text.append(data.strip())
            if self.rows:
                self.rows[-1][1].append(data.strip())


@pytest.fixture
def drawn_fast(monkeypatch):
    """Draw every figure, but write no file: layout and files take most of a report's time."""

    def draw(name, drawing, folder):
        figure = Figure(dpi=40)
        drawing(ax=figure.subplots())
        figure.canvas.draw()
        return b"png"

    monkeypatch.setattr(pipeline, "draw", draw)


@pytest.fixture
def counted(monkeypatch, undrawn):
    """How many jobs were replayed and how often methods were timed; nothing is drawn."""
    counts = {"jobs": 0, "timings": 0}
    replay, time = resumable.replay_jobs, resumable.timing_rows

    def replay_jobs(run, jobs, **settings):
        counts["jobs"] += len(jobs)
        return replay(run, jobs, **settings)

    def timing_rows(*args, **settings):
        rows = time(*args, **settings)
        counts["timings"] += bool(rows)
        return rows

    monkeypatch.setattr(resumable, "replay_jobs", replay_jobs)
    monkeypatch.setattr(resumable, "timing_rows", timing_rows)
    return counts


def test_the_store_is_left_untouched(small_run, reported):
    written = json.loads(small_run.with_suffix(".sha256").read_text())
    assert fingerprint(small_run) == written


def test_the_folder_holds_page_figures_and_tables(reported):
    _, folder = reported
    for name in ("fits", "thresholds", "timings", "replay", "methods", "factorised"):
        assert len(pandas.read_parquet(folder / f"{name}.parquet"))
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["report"]["ratios"] == [0.1]
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"density", "survival", "estimation-ef", "error-bytes", "overhead"} <= figures
    assert {"qq", "tail-error", "evolution", "winners", "thresholds", "reusable"} <= figures
    assert {"sorted", "best-k", "ranks", "compensated-evolution", "snr"} <= figures
    assert figures == {path.stem for path in (folder / "figures").glob("*.pdf")}


def test_the_page_is_small_and_loads_nothing(reported):
    page, folder = reported
    assert (folder / "report.html").stat().st_size < 5_000_000
    assert not re.search(r"https?://|@import|url\(", page)
    reader = Reader(page)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        assert "href" not in attributes
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
            assert attributes["alt"]
    assert sum(tag == "img" for tag, _ in reader.tags) >= 7


def test_the_first_screen_says_what_where_and_what_to_do(reported):
    page = reported[0]
    first = " ".join(Reader(page[: page.index("<h2>")]).text)
    for fact in ("Tiny", "8,064 elements", "local", "0–219", "220 of 2,000 elements", "cpu"):
        assert fact in first
    assert re.search(r"Use ef\(|Do not compress|No advice", first)
    assert re.search(
        r"(laplace|dgamma|dgenpareto|gennorm|dweibull|t|lognorm) describes the gradients best",
        first,
    )
    assert re.search(
        r"k̂/k at 0.1, on gradients without feedback.*SIDCo-E \d.*SIDCo-GP \d.*SIDCo-P \d", first
    )
    for caveat in ("Open loop", "have not settled", "Timings are of", "another device"):
        assert caveat in first
    assert 'id="ranking"' in page[: page.index("<h2>")]
    assert "bits sent/element" in first


def test_the_ranking_has_at_most_ten_ranked_lines_and_bf16(reported):
    page = reported[0]
    lines = Reader(page[page.index("<tbody>") : page.index("</tbody>")]).rows
    ranks = [cells[0] for style, cells in lines if "unsettled" not in style]
    assert ranks == [str(i) for i in range(1, len(ranks) + 1)]
    assert len(ranks) <= 10
    assert "bf16" in [cells[1] for _, cells in lines]
    for style, cells in lines:
        assert ("unsettled" in style) == (cells[0] == "unsettled")


def test_the_same_again_recomputes_nothing(small_run, reported, counted, tmp_path):
    folder = shutil.copytree(reported[1], tmp_path / "again")
    before = pandas.read_parquet(folder / "replay.parquet")
    path = gradstats.report(
        gradstats.open(small_run), out=folder, ratios=RATIOS, compressors=SPECS
    )
    assert counted == {"jobs": 0, "timings": 0}
    assert pandas.read_parquet(folder / "replay.parquet").equals(before)
    strip = re.compile(r"base64,[^\"]*")
    assert strip.sub("", path.read_text()) == strip.sub("", reported[0])


def test_a_larger_budget_adds_what_was_skipped(small_run, tmp_path, counted):
    run = gradstats.open(small_run, steps=STEPS)
    settings = {"out": tmp_path, "ratios": RATIOS, "compressors": FEW}
    page = gradstats.report(run, budget=0.0, **settings).read_text()
    first = counted["jobs"]
    assert first == 2 * 3 - 1  # with and without feedback, which bf16 does not want
    assert page.count("the budget was spent") == 1
    page = gradstats.report(run, budget=600.0, **settings).read_text()
    assert counted["jobs"] == 2 * (2 * 3 - 1)
    assert counted["timings"] == 1
    assert "the budget was spent" not in page
    keys = ["compressor", "feedback", "granularity", "rows", "step"]
    assert not pandas.read_parquet(tmp_path / "replay.parquet").duplicated(keys).any()


def test_other_settings_compute_anew(small_run, tmp_path, counted):
    settings = {"out": tmp_path, "budget": 0.0, "compressors": FEW}
    for changed, jobs, kept in (
        ({"ratios": (0.1,)}, 5, {0.1}),
        ({"ratios": (0.05,)}, 4, {0.1, 0.05}),  # bf16 has no ratio
        ({"ratios": (0.05,), "seed": 1}, 5, {0.05}),
    ):
        before = dict(counted)
        page = gradstats.report(gradstats.open(small_run, steps=STEPS), **settings, **changed)
        assert counted["jobs"] == before["jobs"] + jobs
        assert counted["timings"] == before["timings"] + 1
        ratios = pandas.read_parquet(tmp_path / "replay.parquet")["target_ratio"].dropna()
        assert set(ratios) == kept
        methods = pandas.read_parquet(tmp_path / "methods.parquet")["target_ratio"].dropna()
        assert set(methods) == set(changed["ratios"])
        assert ("topk(0.1)" in page.read_text()) == (0.1 in changed["ratios"])
    narrow = gradstats.open(small_run, parameters="fc.*", steps=STEPS)
    gradstats.report(narrow, **settings, ratios=(0.05,), seed=1)
    assert pandas.read_parquet(tmp_path / "replay.parquet")["n"].max() == 64 * 50 + 64


def test_another_run_at_the_same_path_is_not_taken_for_the_first(
    run_writer, tmp_path, undrawn, gradients_of
):
    """Overwritten by a run with as many rows: the gradients differ, so every number must."""
    errors = []
    for seed in (0, 10):
        grads = {step: gradients_of(step + seed) for step in range(2)}
        shutil.rmtree(tmp_path / "run.zarr", ignore_errors=True)
        run = gradstats.open(run_writer(tmp_path / "run.zarr", grads))
        gradstats.report(run, ratios=RATIOS, compressors=FEW, families="laplace", budget=0.0)
        replayed = pandas.read_parquet(tmp_path / "run.results/replay.parquet")
        errors.append(replayed["error"].dropna().tolist())
    assert errors[0] != errors[1]


def test_what_others_keep_in_the_folder_stays(small_run, tmp_path, undrawn):
    (tmp_path / "mine.parquet").write_bytes(b"precious")
    (tmp_path / "settings.json").write_text("not JSON of ours")
    run = gradstats.open(small_run, steps=(0, 3, 1))
    gradstats.report(run, out=tmp_path, ratios=RATIOS, compressors=FEW, budget=0.0)
    assert (tmp_path / "mine.parquet").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["replay", "timings"])
def test_a_table_of_another_command_is_not_taken_for_the_reports(
    small_run, reported, counted, tmp_path, name
):
    folder = shutil.copytree(reported[1], tmp_path / "copy")
    mine = pandas.read_parquet(folder / f"{name}.parquet")
    mine.attrs = {}
    mine.to_parquet(folder / f"{name}.parquet")
    run = gradstats.open(small_run)
    gradstats.report(run, out=folder, ratios=RATIOS, compressors=SPECS, budget=0.0)
    assert counted == (
        {"jobs": 8, "timings": 0} if name == "replay" else {"jobs": 0, "timings": 1}
    )


def odd(step, *, fill=None, shape=(40, 30)):
    if fill is not None:
        return {"w": torch.full(shape, fill)}
    rng = np.random.default_rng([3, step])
    return {"w": torch.from_numpy(rng.laplace(size=shape).astype("f4"))}


def with_nan(step):
    grad = odd(step)["w"]
    grad[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    return {"w": grad}


ODD_RUNS = {
    "some rows with NaN": ({0: odd(0), 1: with_nan(1), 2: odd(2)}, 300),
    "every row with NaN": ({0: with_nan(0), 1: with_nan(1)}, 300),
    "nothing but NaN": ({0: odd(0, fill=math.nan)}, 0),
    "all zero": ({0: odd(0, fill=0.0), 1: odd(1, fill=0.0)}, 300),
    "constant": ({0: odd(0, fill=0.25), 1: odd(1, fill=0.25)}, 300),
    "one row without a track": ({7: odd(7)}, 0),
    "one element": ({0: odd(0, shape=(1,)), 1: odd(1, shape=(1,))}, 1),
    "bfloat16": ({0: {"w": odd(0)["w"].bfloat16()}, 1: {"w": odd(1)["w"].bfloat16()}}, 300),
}


@pytest.mark.parametrize("name", ODD_RUNS)
def test_odd_gradients_still_give_a_report(run_writer, tmp_path, drawn_fast, name):
    grads, tracked = ODD_RUNS[name]
    run = gradstats.open(run_writer(tmp_path / "odd.zarr", grads, tracked=tracked))
    path = gradstats.report(run, ratios=RATIOS, compressors=FEW)
    assert path == tmp_path / "odd.results" / "report.html"
    page = Reader(path.read_text())
    words = " ".join(page.text)
    assert "No advice" in words
    cells = {cell for _, row in page.rows for cell in row}
    assert not {"nan", "NaN", "inf", "None"} & cells
    methods = pandas.read_parquet(path.parent / "methods.parquet")
    assert len(methods) == 2 * (2 * len(FEW) - 1)
    assert ("rows were skipped for NaN or inf" in words) == ("NaN" in name)
    if not tracked:
        skipped = methods[methods["feedback"] == "ef"]
        assert skipped["status"].str.contains("capture with track=").all()
        assert "replayed on the tracked elements" not in words
        assert "capture with track=" in words
    if name in ("nothing but NaN", "all zero"):
        assert "No family could be fitted" in words


def test_names_cannot_smuggle_markup_into_the_page(run_writer, tmp_path, drawn_fast):
    evil = '"><script>alert(1)<script>'
    grads = {0: {evil: odd(0)["w"], "<img src=x onerror=y>": odd(1)["w"]}}
    path = run_writer(tmp_path / "<img src=x onerror=alert(2)>.zarr", grads)
    run = gradstats.open(path)
    page = gradstats.report(run, ratios=RATIOS, compressors=("bf16",), by="parameter").read_text()
    reader = Reader(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert all("onerror" not in attributes for _, attributes in reader.tags)
    words = " ".join(reader.text)
    assert evil in words
    assert "<img src=x onerror=alert(2)>" in words
