"""The full numbers of the tests marked soak, and random examples of those of hypothesis."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import torch

import gradstats

ROOT = Path(__file__).parents[2]
QUICK = ("test_kills", "test_full_disk", "test_restarts", "test_sizes")


def facts(case: ET.Element) -> dict[str, object]:
    """What one test measured: its outcome, seconds, and the numbers it gave."""
    outcome, reason = "passed", ""
    for tag in ("failure", "error", "skipped"):
        found = case.find(tag)
        if found is not None:
            outcome, reason = tag, found.get("message", "")
    given = {each.get("name", ""): int(each.get("value", "0")) for each in case.iter("property")}
    row = {"outcome": outcome, "seconds": round(float(case.get("time", "0")), 1), **given}
    return {**row, "reason": reason[:200]} if reason else row


def tests(words: list[str]) -> tuple[int, dict[str, dict[str, object]]]:
    """Run pytest; its exit code, and the facts by test."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "junit.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1"]
        command += [f"--junitxml={file}", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADSTATS_HYPOTHESIS": "soak"}
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        cases = ET.parse(file).iter("testcase")
        return code, {case.get("name", ""): facts(case) for case in cases}


def main() -> None:
    """Write report.json; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small numbers of the suite")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.json"))
    options = parser.parse_args()
    files = [f"tests/recording/{name}.py" for name in QUICK]
    started = time.monotonic()
    code, found = tests(files if options.quick else ["-m", "soak or hypothesis", "tests"])

    def total(name: str) -> int:
        return sum(int(row.get(name, 0)) for row in found.values())

    report = {
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "gradstats": gradstats.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "seconds": round(time.monotonic() - started, 1),
        "failures": sum(row["outcome"] in ("failure", "error") for row in found.values()),
        "skipped": sum(row["outcome"] == "skipped" for row in found.values()),
        **{name: total(name) for name in ("kills", "rows verified", "times the disk was full")},
        "tests": found,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print({key: value for key, value in report.items() if key != "tests"})
    sys.exit(code)


if __name__ == "__main__":
    main()
