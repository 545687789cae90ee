"""Does a test notice when the code is wrong? Every mutant of tests/mutants, one by one.

Each is made in a copy of the package, never in the tree itself, and has to fail one of its tests.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.mutants import MUTANTS  # noqa: E402
from tests.mutants.base import Mutant  # noqa: E402

COPIED = ("gradstats", "tests", "docs", "pyproject.toml")
LIMIT = 600  # seconds, after which a mutant that hangs counts as noticed
OUTCOMES = {0: "survived", 1: "killed"}


def copy(folder: Path) -> Path:
    """What the tests need, compiled."""
    for name in COPIED:
        source, to = ROOT / name, folder / name
        shutil.copytree(source, to) if source.is_dir() else shutil.copy2(source, to)
    compile_all = [sys.executable, "-m", "compileall", "-q", "gradstats", "tests"]
    subprocess.run(compile_all, cwd=folder, check=True)
    return folder


def pytest(folder: Path, *words: str) -> tuple[int | None, str]:
    """Exit code, None after the limit, and what was printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *words]
    # bytecode of a mutant must not outlive it
    settings = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    settings["NUMBA_CACHE_DIR"] = str(folder / "numba")
    try:
        ran = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return ran.returncode, ran.stdout


def tried(mutant: Mutant, folder: Path) -> dict[str, object]:
    """Make one mutant, run its tests, and put the file back as it was."""
    file, start = folder / "gradstats" / mutant.file, time.monotonic()
    text, times = file.read_text(encoding="utf-8"), file.stat()
    if text.count(mutant.old) != 1:
        return {"outcome": f"error: its text is there {text.count(mutant.old)} times"}
    try:
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        code, printed = pytest(folder, *mutant.tests)
    finally:
        file.write_text(text, encoding="utf-8")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    outcome = "timed out" if code is None else OUTCOMES.get(code, f"error: exit code {code}")
    by = re.findall(r"^FAILED ([^ ]+)", printed, re.MULTILINE)
    seconds = round(time.monotonic() - start, 1)
    return {"outcome": outcome, "by": by[0] if by else "", "seconds": seconds}


def is_right(row: dict[str, object]) -> bool:
    """Whether a mutant was noticed, or was not and has a reason."""
    return (
        row["outcome"] == "survived"
        if row["reason"]
        else row["outcome"] in ("killed", "timed out")
    )


def rows_of(chosen: list[Mutant], places: list[Path]) -> list[dict[str, object]]:
    """A row per mutant, with as many at a time as there are copies."""
    free: queue.Queue[Path] = queue.Queue()
    for place in places:
        free.put(place)

    def row(mutant: Mutant) -> dict[str, object]:
        folder = free.get()
        try:
            found = tried(mutant, folder)
        finally:
            free.put(folder)
        found = {"mutant": mutant.name, "reason": mutant.survives, **found}
        print(f"{'' if is_right(found) else '!! '}{found['outcome']}: {mutant.name}", flush=True)
        return found

    with ThreadPoolExecutor(len(places)) as threads:
        return list(threads.map(row, chosen))


def main() -> None:
    """Write mutants.json; the exit code is 1 where a mutant was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="glob on file: change")
    parser.add_argument("--workers", type=int, default=2, help="mutants at a time")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("mutants.json"))
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if fnmatch.fnmatch(mutant.name, options.only)]
    words = sorted({word for mutant in chosen for word in mutant.tests})
    with tempfile.TemporaryDirectory() as base:
        places = [copy(Path(base, str(number))) for number in range(options.workers)]
        code, printed = pytest(places[0], "-n", str(options.workers), *words)
        if code:
            print(printed[-5_000:])
            sys.exit("cannot try mutants: their tests fail on the code as it is, see above")
        rows = rows_of(chosen, places)
    wrong = [row["mutant"] for row in rows if not is_right(row)]
    counts = {
        "mutants": len(rows),
        "noticed": sum(row["outcome"] in ("killed", "timed out") for row in rows),
        "with a reason": sum(bool(row["reason"]) for row in rows),
        "wrong": len(wrong),
    }
    options.out.write_text(
        json.dumps({**counts, "rows": rows}, indent=1, ensure_ascii=False) + "\n"
    )
    print(counts, *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
