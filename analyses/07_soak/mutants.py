"""Does a test notice when the code is wrong? Every mutant of tests/mutants, one by one.

Each is made in a copy of the package, never in the tree itself, and has to fail one of its tests.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.mutants import MUTANTS  # noqa: E402
from tests.mutants.base import Mutant  # noqa: E402

COPIED = ("gradstats", "tests", "docs", "pyproject.toml", "README.md")
# imported once, since every run of pytest is forked from this process
WARM = ("torch", "scipy.stats", "pandas", "pytest", "numba", "seaborn")
LIMIT = 600  # seconds, after which a mutant that hangs counts as noticed
OUTCOMES = {0: "survived", 1: "killed", -signal.SIGKILL: "timed out"}
NOTICED = ("killed", "timed out")


@dataclass
class Copy:
    """A copy of the package, and the run of pytest in it."""

    folder: Path
    pid: int = 0
    started: float = 0.0
    mutant: Mutant | None = None
    before: tuple[str, os.stat_result] | None = None

    @property
    def file(self) -> Path:
        """That the mutant changes."""
        assert self.mutant is not None
        return self.folder / "gradstats" / self.mutant.file

    @property
    def printed(self) -> Path:
        """What pytest printed."""
        return self.folder / "printed.txt"

    def mutate(self, mutant: Mutant) -> None:
        """Make a mutant.

        Raises:
            ValueError: its text is not there once.
        """
        self.mutant = mutant
        text = self.file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: the text is there {text.count(mutant.old)} times")
        self.before = text, self.file.stat()
        self.file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")

    def restore(self) -> None:
        """Put the file back, as old as it was: its bytecode is valid again."""
        assert self.before is not None
        text, stat = self.before
        self.file.write_text(text, encoding="utf-8")
        os.utime(self.file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def start(self, words: Sequence[str]) -> None:
        """Run pytest here."""
        self.started, self.pid = time.monotonic(), os.fork()
        if not self.pid:
            _run(self.folder, self.printed, words)

    def ended(self) -> int | None:
        """The exit code of the run; None while it goes on."""
        if time.monotonic() - self.started > LIMIT:
            os.kill(self.pid, signal.SIGKILL)
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if not done:
            return None
        with contextlib.suppress(ProcessLookupError):  # what its tests have left behind
            os.killpg(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(status)


def made(folder: Path) -> Copy:
    """A compiled copy of what the tests need."""
    for name in COPIED:
        source, to = ROOT / name, folder / name
        shutil.copytree(source, to) if source.is_dir() else shutil.copy2(source, to)
    compile_all = [sys.executable, "-m", "compileall", "-q", "gradstats", "tests"]
    subprocess.run(compile_all, cwd=folder, check=True)
    return Copy(folder)


def _run(folder: Path, printed: Path, words: Sequence[str]) -> None:
    """The process of one run: it ends here."""
    code = 3
    try:
        os.setsid()
        os.chdir(folder)
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # bytecode of a mutant must not outlive it
        settings = {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "numba")}
        os.environ.update(settings, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "gradstats")]:
            del sys.modules[name]
        code = int(
            importlib.import_module("pytest").main(["-q", "-x", "-p", "no:cacheprovider", *words])
        )
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def baseline(copies: list[Copy], words: list[str]) -> None:
    """Run all tests on the code as it is.

    Raises:
        SystemExit: one of them fails.
    """
    parts = [(copy, words[i :: len(copies)]) for i, copy in enumerate(copies)]
    running = [(copy, part) for copy, part in parts if part]
    for copy, part in running:
        copy.start(part)
    for copy, _ in running:
        while (code := copy.ended()) is None:
            time.sleep(0.1)
        if code:
            print(copy.printed.read_text()[-5_000:])
            sys.exit("cannot try mutants: their tests fail on the code as it is, see above")


def tried(copies: list[Copy], chosen: Sequence[Mutant]) -> Iterator[dict[str, Any]]:
    """A row per mutant, as they end, with as many at a time as there are copies."""
    waiting, idle, running = list(chosen), list(copies), []
    while waiting or running:
        while waiting and idle:
            copy = idle.pop()
            copy.mutate(waiting.pop(0))
            assert copy.mutant is not None
            copy.start(copy.mutant.tests)
            running.append(copy)
        time.sleep(0.1)
        for copy in list(running):
            code = copy.ended()
            if code is not None:
                yield row(copy, code)
                copy.restore()
                running.remove(copy)
                idle.append(copy)


def row(copy: Copy, code: int) -> dict[str, Any]:
    """What became of a mutant."""
    assert copy.mutant is not None
    by = re.findall(r"^(?:FAILED|ERROR) ([^ ]+)", copy.printed.read_text(), re.MULTILINE)
    return {
        "mutant": copy.mutant.name,
        # what a failed test leaves open may be an error of its own, after its end
        "outcome": "killed" if by and code > 0 else OUTCOMES.get(code, f"error: exit code {code}"),
        "by": by[0] if by else "",
        "reason": copy.mutant.survives,
        "seconds": round(time.monotonic() - copy.started, 1),
    }


def is_right(row: dict[str, Any]) -> bool:
    """Whether a mutant was noticed, or was not and has a reason."""
    return row["outcome"] == "survived" if row["reason"] else row["outcome"] in NOTICED


def kept(before: list[dict[str, Any]], chosen: Sequence[Mutant]) -> list[dict[str, Any]]:
    """The rows of an earlier report of mutants that there still are and that are not tried now."""
    others = {mutant.name for mutant in MUTANTS} - {mutant.name for mutant in chosen}
    return [row for row in before if row["mutant"] in others]


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """The report, after every mutant."""
    report = {
        "mutants": len(rows),
        "noticed": sum(row["outcome"] in NOTICED for row in rows),
        "with a reason": sum(bool(row["reason"]) for row in rows),
        "wrong": sum(not is_right(row) for row in rows),
        "rows": sorted(rows, key=lambda row: str(row["mutant"])),
    }
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Write mutants.json; the exit code is 1 where a mutant was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="glob: those, into a report")
    parser.add_argument("--workers", type=int, default=2, help="mutants at a time")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("mutants.json"))
    options = parser.parse_args()
    only = options.only or ["*"]
    chosen = [m for m in MUTANTS if any(fnmatch.fnmatch(m.name, glob) for glob in only)]
    for name in WARM:
        importlib.import_module(name)
    rows = []
    if options.only and options.out.exists():
        rows = kept(json.loads(options.out.read_text())["rows"], chosen)
    with tempfile.TemporaryDirectory() as base:
        copies = [made(Path(base, str(number))) for number in range(options.workers)]
        baseline(copies, sorted({word for mutant in chosen for word in mutant.tests}))
        for found in tried(copies, chosen):
            rows.append(found)
            print("  " if is_right(found) else "!!", found["outcome"], found["mutant"], flush=True)
            write(rows, options.out)
    wrong = [row["mutant"] for row in rows if not is_right(row)]
    print(f"{len(rows)} mutants", *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
