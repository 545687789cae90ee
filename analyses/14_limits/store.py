"""Writing rows through capture, beside writing their bytes to one plain file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "06_capture_overhead/sustained.py"
# rows' size: times the throughput of the plain file
ASKED = {"1 MB": 0.5, "100 MB": 0.7}


def throughputs(*, quick: bool) -> dict[str, float]:
    """Throughput of the whole of capture over that of a plain file, fsync on both sides."""
    words = [sys.executable, SCRIPT, *(["--quick"] if quick else [])]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return {size: float(ratio) for size, ratio in json.loads(done.stdout).items()}
