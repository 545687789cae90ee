"""Every command: results on stdout, the rest on stderr, exit code 0, 1 or 2."""

import json
import re
import resource
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch

import gradstats
from gradstats.network import Network
from gradstats.reporting.settings import ReportSettings

TRAINING = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(5):
    optimizer.zero_grad()
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
raise SystemExit(3)
"""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results"


def test_info_says_what_a_run_holds(call, small_run):
    code, shown, err = call("info", small_run)
    assert (code, err) == (0, "")
    assert "3 full rows + 220 track rows, 4 parameters" in shown
    assert re.search(r"worker 0: 3 full rows, steps 0–200, local", shown)
    for line in ("model: Tiny", "embed.weight  60×48  float32  Embedding", "fc.bias  64"):
        assert line in shown


def test_fit_prints_and_writes_what_the_function_gives(call, small_run, out):
    code, shown, err = call(
        *("fit", small_run, "--families", "laplace,dgamma", "--ratios", "0.1, 0.01"),
        *("--group-by", "module-type", "--steps", "0:150", "--method", "moments", "--out", out),
    )
    assert (code, err) == (0, f"tables: {out}")
    run = gradstats.open(small_run, steps=(0, 150, 1))
    settings = {"families": ["laplace", "dgamma"], "ratios": [0.1, 0.01], "method": "moments"}
    expected = gradstats.fit(run, by="module-type", **settings)
    written = pandas.read_parquet(out / "fits_by_part.parquet")
    pandas.testing.assert_frame_equal(written, expected)
    medians = json.loads((out / "fit_by_part.json").read_text())
    assert set(medians["laws"]) == {"Embedding", "Linear"}
    assert not (out / "parts").exists()
    assert set(pandas.read_parquet(out / "thresholds_by_part.parquet")["target_ratio"]) == {
        0.1,
        0.01,
    }
    titles = ("Embedding: distributions", "Linear: distributions")
    for word in (*titles, "dgamma", "k̂/k at 0.01", "SIDCo"):
        assert word in shown


def test_fits_that_fail_are_counted_on_stderr(call, run_writer, tmp_path):
    path = run_writer(tmp_path / "z.zarr", {0: {"w": torch.zeros(2_000)}})
    code, shown, err = call("fit", path, "--ratios", "0.1")
    assert code == 0
    assert "warning: 8 of 8 rows could not be fitted" in err
    assert "no finite non-zero magnitude among 2000 elements" in shown
    assert f"tables: {tmp_path / 'z.results'}" in err


def test_replay_prints_whole_names_and_writes_what_reproduces_it(call, small_run, out):
    words = ("replay", small_run, "--compressors", "topk,ef(sidco-gp(0.05, stages=2)),bf16")
    words += (
        "--ratios",
        "0.1",
        "--steps",
        "0:20",
        "--seed",
        "3",
        "--granularity",
        "model,parameter",
    )
    code, shown, err = call(*words, "--out", out)
    assert (code, err) == (0, f"tables: {out}")
    for word in ("topk(0.1)", "sidco-gp(0.05, stages=2)", "bf16", "parameter", "khat_over_k"):
        assert word in shown
    assert "…" not in shown
    run = gradstats.open(small_run, steps=(0, 20, 1))
    expected = gradstats.replay(
        run,
        ["topk", "ef(sidco-gp(0.05, stages=2))", "bf16"],
        ratios=[0.1],
        feedback=["none", "ef"],
        granularity=["model", "parameter"],
        seed=3,
    )
    written = pandas.read_parquet(out / "replay.parquet")
    assert set(written.columns.difference(expected.columns)) == {"whole"}
    assert written["whole"].all()
    order = ["compressor", "feedback", "granularity", "rows", "step"]
    pandas.testing.assert_frame_equal(
        written[expected.columns].sort_values(order, ignore_index=True),
        expected.sort_values(order, ignore_index=True),
    )
    methods = pandas.read_parquet(out / "methods.parquet")
    assert not methods.duplicated(["compressor", "feedback", "granularity"]).any()
    assert methods["encode_seconds"].gt(0).all()
    settings = json.loads((out / "settings.json").read_text())
    assert settings["replay"]["compressors"] == ["topk", "ef(sidco-gp(0.05, stages=2))", "bf16"]
    assert settings["replay"]["seed"] == 3


def test_report_prints_the_path_of_the_page(call, small_run, out, monkeypatch):
    asked = []

    def make(run, settings, folder, *, executor, progress):
        assert executor is None
        asked.append((run, settings, folder, progress))
        return out / "report.html"

    monkeypatch.setattr("gradstats.reporting.report.report_into", make)
    words = ("report", small_run, "--budget", "1.5min", "--ratios", "0.1", "--seed", "2")
    words += ("--compressors", "topk,bf16", "--network-workers", "4", "--network-gbits", "1")
    code, shown, err = call(*words, "--parameters", "fc.*", "--steps", "5:", "--out", out)
    assert (code, shown, err) == (0, f"{out / 'report.html'}\n", "")
    ((run, settings, folder, progress),) = asked
    assert callable(progress)
    assert settings == ReportSettings(
        budget=90.0,
        by="module-type",
        ratios=(0.1,),
        compressors=("topk", "bf16"),
        network=Network(workers=4, bandwidth=1e9 / 8),
        factorised=None,
        seed=2,
    )
    assert (folder, run.names, run.steps) == (out, ("fc.weight", "fc.bias"), (5, None, 1))


def test_import_and_look_at_gradients_of_ones_own(call, tmp_path):
    rng = np.random.default_rng(0)
    grads = [rng.laplace(size=(40, 30)).astype(np.float32) for _ in range(2)]
    files = [tmp_path / f"grad{step}.npy" for step in (7, 9)]
    for file, grad in zip(files, grads, strict=True):
        np.save(file, grad)
    path = tmp_path / "mine.zarr"
    code, shown, err = call("import", *files, "--out", path)
    order = ["2 rows, in order of the numbers in the paths"]
    order += [f"  first: step 7, {files[0]}", f"  second: step 9, {files[1]}"]
    assert (code, shown.splitlines(), err) == (0, [*order, f"{path}: 2 rows"], "")
    run = gradstats.open(path)
    np.testing.assert_array_equal(run.read(9, "gradient").numpy(), grads[1])
    assert call("info", path)[0] == 0
    code, shown, _ = call("replay", path, "--compressors", "topk", "--ratios", "0.1")
    assert code == 0
    assert "capture with track=" in shown
    code, _, err = call("import", *files, "--out", path)
    assert code == 1
    assert f"cannot create {path}: it exists" in err
    assert "overwrite" in err


@pytest.mark.slow
def test_capture_runs_any_command_and_passes_its_exit_code_on(tmp_path, call):
    script, path = tmp_path / "train.py", tmp_path / "run.zarr"
    script.write_text(TRAINING)
    words = ["capture", "--full-every", "2", "--track", "50", "--out", str(path), "--"]
    command = [sys.executable, "-m", "gradstats.cli", *words, sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    run = gradstats.open(path)
    assert run.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert len(run.rows("track")) == 5
    code, _, err = call(*words, sys.executable, script)
    assert code == 1
    assert "it exists" in err


def test_brackets_in_names_and_paths_are_printed_as_they_are(call, run_writer, tmp_path):
    """Rich would read [bold] as markup, and fail on [/x]."""
    grads = {"w[/x]": torch.zeros(2_000), "v[bold]": torch.linspace(-1, 2, 2_000)}
    path = run_writer(tmp_path / "run[red].zarr", {0: grads})
    code, shown, _ = call("info", path)
    assert code == 0
    for text in ("run[red].zarr", "w[/x]", "v[bold]"):
        assert text in shown
    code, shown, err = call("fit", path, "--group-by", "parameter")
    assert code == 0
    assert "w[/x]: cannot fit" in shown
    assert "v[bold]: distributions" in shown
    assert "run[red].results" in err


def test_help_names_every_command_and_its_options(call):
    code, shown, _ = call("--help")
    assert code == 0
    commands = ("demo", "capture", "import", "info", "fit", "replay", "report")
    for command in commands:
        assert re.search(rf"^.\s*{command}\b", shown, re.MULTILINE)
        assert call(command, "--help")[0] == 0
    shared = ("--parameters", "--steps", "--ratios", "--device", "--out")
    for command in ("fit", "replay", "report"):
        _, shown, _ = call(command, "--help")
        assert all(option in shown for option in shared)
        assert command == "fit" or "--seed" in shown


def processor_seconds(*words):
    """Of a Python process, the least of three."""
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(took)


@pytest.mark.slow
def test_help_costs_little_beside_the_library_that_prints_it():
    bare = processor_seconds("-c", "import typer.rich_utils")
    assert processor_seconds("-m", "gradstats.cli", "--help") < 2 * bare


def test_help_imports_no_number_crunching():
    code = """
import contextlib, sys
from gradstats.cli.app import main
sys.argv = ["gradstats", "--help"]
with contextlib.suppress(SystemExit): main()
print(*{"torch", "numpy", "scipy", "zarr", "pandas"} & set(sys.modules), file=sys.stderr)
"""
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == "\n"


@pytest.mark.parametrize(
    "words",
    [
        ("capture", "--full-evry", "5", "--", "true"),
        ("report", "RUN", "--network-workers", "1"),
        ("report", "RUN", "--network-gbits", "0"),
    ],
)
def test_a_wrong_option_is_the_callers_mistake(call, small_run, tmp_path, words):
    code, shown, _ = call(*(small_run if word == "RUN" else word for word in words))
    assert (code, shown) == (2, "")


def test_the_options_of_a_captured_command_are_its_own(call, tmp_path):
    out = tmp_path / "run.zarr"
    code, _, err = call(
        "capture", "--out", out, "python", "-c", "raise SystemExit(7)", "--seed", "x"
    )
    assert code == 7, err


def test_what_an_overwriting_capture_did_not_record_is_not_passed_off(call, run_writer, tmp_path):
    old = run_writer(tmp_path / "run.zarr", {0: {"w": torch.ones(40, 30)}})
    code, _, err = call("capture", "--if-exists", "overwrite", "--out", old, "true")
    assert (code, "nothing was recorded" in err) == (1, True)
