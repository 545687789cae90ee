"""The command that proves the GPU paths: every part in its CPU form, and what it does without."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.processes import run_script
from tests.test_suite import needed
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "analyses" / "11_gpu"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.exists(), reason="not in a source tree"),
]
PARTS = ("correct", "capture", "fast", "hook", "whole")
BLOCKED = """
import runpy, sys
for name in {names!r}:
    sys.modules[name] = None
sys.argv = ["run.py", *{words!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


def run(out, *words, without=()):
    """The report of a dry run; packages in `without` can't be imported."""
    words = ["--device", "cpu", "--quick", "--seconds", "3000", "--out", str(out), *words]
    code, err = (run_without if without else run_with_all)(words, out.parent, without)
    report = json.loads(out.read_text())
    failed = [row for row in report["rows"] if row["status"] == "failed"]
    assert code == bool(failed), err
    return report, failed


def run_with_all(words, folder, _without=(), script=FOLDER / "run.py", **environment):
    """The exit code and what was printed to stderr."""
    words, environment = [script, *words], {"TRITON_INTERPRET": None, **environment}
    ((code, _, err),) = run_script(words, folder, OMP_NUM_THREADS=1, **environment)
    return code, err


def run_without(words, folder, without):
    """The same in a Python of its own, which has imported nothing."""
    code = BLOCKED.format(names=without, words=words, script=str(FOLDER / "run.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return ran.returncode, ran.stderr


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    return run(tmp_path_factory.mktemp("gpu") / "report.json")


def test_every_part_runs_in_its_cpu_form(dry):
    report, failed = dry
    assert failed == []
    assert {row["part"] for row in report["rows"]} == set(PARTS)
    left_out = {(row["part"], row["reason"]) for row in report["rows"] if row["status"] != "ok"}
    assert left_out == {("capture", "needs a CUDA device")}


def test_the_report_has_its_schema(dry):
    report, _ = dry
    assert set(report) == {"machine", "rows"}
    assert {"device", "cuda", "clocks", "platform", "versions", "threads", "seconds"} <= set(
        report["machine"]
    )
    for row in report["rows"]:
        assert {"part", "check", "seconds", "status", "reason"} <= set(row)
        assert row["status"] in ("ok", "failed", "left out")
        assert bool(row["reason"]) == (row["status"] != "ok")
    by_part = {part: [r for r in report["rows"] if r["part"] == part] for part in PARTS}
    assert all(row.get("cases", 1) > 0 for row in by_part["correct"])
    assert {row["form"] for row in by_part["correct"] if "form" in row} == {"triton, interpreted"}
    assert all({"ms", "spread", "share_of_copy", "rounds"} <= set(row) for row in by_part["fast"])
    assert all(len(row["weights"]) == 64 for row in by_part["hook"])


def test_without_triton_and_zarr_those_parts_are_left_out(tmp_path):
    words = ("--part", "correct", "--part", "capture", "--part", "whole")
    report, failed = run(
        tmp_path / "report.json", *words, without=("triton", "zarr", "numba", "pandas", "rich")
    )
    assert failed == []
    rows = report["rows"]
    assert {row["form"] for row in rows if "form" in row} == {"torch"}
    assert report["machine"]["versions"]["zarr"] is None
    captures = [row for row in rows if row["part"] == "capture"]
    assert {row["status"] for row in captures} == {"left out"}
    assert all("zarr" in row["reason"] or "CUDA" in row["reason"] for row in captures)
    assert any("zarr" in row["reason"] for row in captures)
    assert any(row["status"] == "ok" for row in rows if row["part"] == "correct")


def test_a_failure_is_a_row_and_the_rest_goes_on(tmp_path):
    """A method that breaks: its check says how, the others are made."""
    script = tmp_path / "run.py"
    broken = "import gradstats\ndef summarize(values): return values[10**9]\n"
    broken += "gradstats.summarize = summarize\n"
    source = (FOLDER / "run.py").read_text()
    source = source.replace("Path(__file__).parent", f"Path({str(FOLDER)!r})")
    script.write_text(
        source.replace("    started =", f"    exec({broken!r}, {{}})\n    started =")
    )
    out = tmp_path / "report.json"
    words = ["--device", "cpu", "--quick", "--part", "fast", "--out", str(out)]
    code, err = run_with_all(words, tmp_path, script=script)
    assert code == 1, err
    rows = json.loads(out.read_text())["rows"]
    failed = {row["check"]: row["reason"] for row in rows if row["status"] == "failed"}
    assert set(failed) == {f"20,000 {dtype}: summarize" for dtype in ("float32", "bfloat16")}
    assert all(re.match(r"IndexError: index 1000000000 is out of", why) for why in failed.values())
    assert sum(row["status"] == "ok" for row in rows) > 20


def test_a_run_without_time_says_so_and_one_without_a_gpu_too(tmp_path):
    report, failed = run(tmp_path / "report.json", "--seconds", "0", "--part", "correct")
    assert failed == []
    assert {row["reason"] for row in report["rows"]} == {"out of time"}
    words = ["--quick", "--out", str(tmp_path / "other.json"), "--part", "correct"]
    code, err = run_with_all(words, tmp_path, CUDA_VISIBLE_DEVICES="")
    assert code == 0, err
    (row,) = json.loads((tmp_path / "other.json").read_text())["rows"]
    assert (row["status"], row["reason"]) == ("left out", "no CUDA device")


def test_wheels_are_what_capture_and_the_command_line_need_beyond_torch():
    there = set().union(*(needed(name) for name in ("torch", "numpy", "scipy", "triton")))
    due = set().union(*(needed(name) for name in ("zarr", "rich", "typer"))) - there
    lines = (FOLDER / "wheels.txt").read_text().splitlines()
    wheels = [line for line in lines if not line.startswith("#")]
    assert {canonicalize_name(line.split("==")[0]) for line in wheels} == due
    assert set(wheels) <= set((ROOT / "constraints.txt").read_text().split())


CAPTURE = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import torch, gradstats
from gradstats import ddp_hooks
from gradstats.cli import app as cli
from gradstats.exchange import driving as exchange
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with gradstats.capture(model, optimizer, "run.zarr", full=gradstats.every(1), summary=True) as cap:
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
grad = gradstats.open("run.zarr").read(step=0)
member = gradstats.compressor("ef(exact-threshold(0.1))")
print(member.encode(grad, member.init(grad))[0].count, gradstats.summarize(grad).n)
"""


def test_capture_and_compressors_need_nothing_else(tmp_path):
    """Whatever else is installed here can't be imported."""
    lines = (FOLDER / "wheels.txt").read_text().splitlines()
    brought = set().union(*(needed(name) for name in ("torch", "numpy", "scipy", "triton")))
    brought |= {canonicalize_name(line.split("==")[0]) for line in lines} | {"gradstats"}
    packages = packages_distributions().items()
    blocked = [
        name
        for name, owners in packages
        if not brought & {canonicalize_name(owner) for owner in owners}
    ]
    assert {"pandas", "numba", "constriction"} <= set(blocked)
    code = CAPTURE.format(blocked=blocked)
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-2:] == ["7", "72"]


def test_the_page_is_that_of_the_report():
    sys.path.insert(0, str(FOLDER))
    try:
        import plot
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("plot", None)
    file = FOLDER / "report.json"
    text = plot.text(json.loads(file.read_text()) if file.exists() else None)
    page = plot.PAGE.read_text()
    assert plot.filled(page, text) == page
