"""Every limit that gradstats is held against, as ratios inside one run per part.

    python analyses/14_limits/run.py                  # about 15 minutes, alone on the machine
    python analyses/14_limits/run.py --part coding
    python analyses/14_limits/run.py --quick          # small sizes; fails where a ratio got worse

`report.json` is written after every part. `--quick` compares with the ratios that `--quick --keep`
wrote into it, the worst of three runs: one that is more than half as much again, in each of three
tries, fails. On another machine all ratios of a part move together; what counts there is the ratio
over the median move of its part, up to twice.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

import torch  # noqa: E402
from coding import ASKED as CODING  # noqa: E402
from coding import NUMEL, WAYS, speeds  # noqa: E402
from hook import ASKED as HOOK  # noqa: E402
from hook import PLAIN, TORCH, measured  # noqa: E402
from selecting import feedback, ratios, small  # noqa: E402
from sizes import LARGEST, MEMORY, costs, peaks  # noqa: E402
from store import ASKED as STORE  # noqa: E402
from store import throughputs  # noqa: E402
from summaries_and_replay import TOPK, replays, starts, summaries  # noqa: E402

import gradstats  # noqa: E402

WORSE = 1.5  # times a committed ratio
MOST_MOVED = 2.0  # times, that all ratios of a part may be worse on another machine
SEVERAL = 5  # ratios of a part, from which their median says something of the machine
TRIES = 3


@dataclass(frozen=True)
class Line:
    """One number, and what it is held against.

    Attributes:
        part: which measurement it comes from.
        case: what was measured.
        value: in the unit.
        unit: of value and asked.
        asked: the limit; None where there is none.
        more: whether more is better.
        ratio: time over that of what it is compared with in the same run; None where it has none.
    """

    part: str
    case: str
    value: float
    unit: str
    asked: float | None
    more: bool = False
    ratio: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the limit is kept; None where there is none."""
        if self.asked is None:
            return None
        return self.value >= self.asked if self.more else self.value <= self.asked


def of_coding(options: argparse.Namespace) -> list[Line]:
    """Encoding and decoding of the quantizers."""
    numel, rounds = (1 << 20, 5) if options.quick else (NUMEL, 15)
    rows = speeds(numel, rounds)
    read = rows.pop("read")["once"]
    lines = []
    for spec, row in rows.items():
        for way in (each for each in WAYS if each in row):
            case, asked = f"{spec}, {way}", CODING.get(spec, {}).get(way)
            lines.append(Line("coding", case, row[way], "GB/s", asked, True, read / row[way]))
    return [Line("coding", "read", read, "GB/s", None, True), *lines]


def of_selecting(options: argparse.Namespace) -> list[Line]:
    """Selecting: feedback and large ratios in reads, small vectors in times torch.topk."""
    numel, rounds = (1_000_000, 5) if options.quick else (10_000_000, 12)
    asked: dict[str, float] = {"ef(exact-threshold(0.01))": 6, "exact-threshold(0.1)": 6}
    reads = {**feedback(numel, rounds), **ratios(numel, rounds)}
    lines = [
        Line("selecting", case, reads[case], "reads", asked.get(case), ratio=reads[case])
        for case in reads
        if case != "read"
    ]
    faster = {10_000: (1, 0.5), 100_000: (4, 3)}
    for n, least in faster.items():
        times = small(n, rounds)
        for spec, limit in zip(("exact-threshold(0.01)", "sidco-e(0.01)"), least, strict=True):
            case, value = f"{spec}, {n:,} elements", times[spec]
            unit = "times as fast as torch.topk"
            lines.append(Line("selecting", case, value, unit, limit, True, 1 / value))
    return lines


def of_summaries(options: argparse.Namespace) -> list[Line]:
    """Summaries over torch.sum."""
    numel, rounds = (1_000_000, 5) if options.quick else (25_600_000, 15)
    asked = {("float16", "after a pause"): 3.5}
    asked |= {("float32", when): 4.5 for when in ("after a pause", "right after torch")}
    return [
        Line("summaries", f"{data}, {when}", value, "sums", asked.get((data, when)), ratio=value)
        for data, row in summaries(numel, rounds).items()
        for when, value in row.items()
        if when != "sum_ms"
    ]


def of_replay(options: argparse.Namespace) -> list[Line]:
    """Replay of tracked rows of 65,536 elements by one thread."""
    sparsifiers = ("topk", "exact-threshold", "sidco", "randomk")
    times, lines = replays(20 if options.quick else 100), []
    own = times.pop(TOPK)
    for spec, value in times.items():
        name = spec.removeprefix("ef(")
        asked = 3.0 if name.startswith("co3") else 0.8 if name.startswith(sparsifiers) else None
        lines.append(Line("replay", spec, value, "ms per row", asked, ratio=value / own))
    return [Line("replay", TOPK, own, "ms", None), *lines]


def of_hook(options: argparse.Namespace) -> list[Line]:
    """A step under each hook, over plain DDP's and over that of torch's own hook."""
    ways = measured(options)
    lines = [Line("hook", name, ways[name] / ways[PLAIN], "plain", None) for name in TORCH]
    for spec, (beside, asked) in HOOK.items():
        ratio = ways[spec] / ways[beside]
        lines.append(Line("hook", spec, ratio, beside, asked, ratio=ratio))
    return lines


def of_store(options: argparse.Namespace) -> list[Line]:
    """Writing rows through capture, over writing one file; a matter of the disk, not compared."""
    return [
        Line("store", f"rows of {size}", value, "plain file", STORE[size], True)
        for size, value in throughputs(quick=options.quick).items()
    ]


def of_start(options: argparse.Namespace) -> list[Line]:
    """Start-up of processes; a matter of the disk too, not compared."""
    times = starts(1 if options.quick else 5)
    torch_alone, given = times["import torch"], times["gradstats --help"]
    over = times["import gradstats; gradstats.capture"] - torch_alone
    capture = Line("start", "import gradstats; gradstats.capture", over, "s over torch", 0.3)
    given_help = Line("start", "gradstats --help", given, "s", 0.3)
    return [capture, given_help]


def of_memory(_: argparse.Namespace) -> list[Line]:
    """The peak of memory while encoding, over the gradient's."""
    found = peaks(MEMORY)  # also in a quick run: what the allocator keeps counts less
    return [  # the ratio is that of gradient and peak to the gradient
        Line("memory", spec, value, "gradients", None, ratio=1 + value)
        for spec, value in found.items()
    ]


PARTS: dict[str, Callable[[argparse.Namespace], list[Line]]] = {
    "hook": of_hook,
    "coding": of_coding,
    "selecting": of_selecting,
    "summaries": of_summaries,
    "replay": of_replay,
    "store": of_store,
    "start": of_start,
    "memory": of_memory,
}


def main() -> int:
    """Write report.json; the exit code is 1 where a quick run is worse than the committed one."""
    options = parsed()
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    kept: dict[str, dict[str, float]] = report.get("quick", {})
    worse = []
    for part in options.part or [*PARTS, "sizes"]:
        started = time.perf_counter()
        if part == "sizes":
            if not options.quick:
                report["sizes"] = {str(n): costs(n, options.largest) for n in (1, 2)}
        elif not options.quick:
            report.setdefault("parts", {})[part] = [asdict(each) for each in PARTS[part](options)]
        elif options.keep:
            tries = [quick_ratios(part, options) for _ in range(TRIES)]
            report.setdefault("quick", {})[part] = {
                case: max(each[case] for each in tries) for case in tries[0]
            }
        else:
            worse += compared(part, options, kept.get(part, {}))
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
        if not options.quick or options.keep:
            report["machine"] = machine()
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    for each in worse:
        print(each, file=sys.stderr)
    return int(bool(worse))


def quick_ratios(part: str, options: argparse.Namespace) -> dict[str, float]:
    """The ratios of a part by case."""
    return {each.case: each.ratio for each in PARTS[part](options) if each.ratio is not None}


def compared(part: str, options: argparse.Namespace, kept: dict[str, float]) -> list[str]:
    """What is worse than it was, in each of several tries: a sentence per case."""
    best = quick_ratios(part, options)
    for _ in range(TRIES - 1):
        if not worse_than(kept, best):
            return []
        again = quick_ratios(part, options)
        best = {case: min(ratio, again[case]) for case, ratio in best.items()}
    return [f"{part}: {each}" for each in worse_than(kept, best)]


def worse_than(kept: dict[str, float], ratios: dict[str, float]) -> list[str]:
    """A sentence for each ratio that is worse than it was, beyond what the machine explains."""
    moves = {case: ratios.get(case, math.nan) / before for case, before in kept.items()}
    known = [move for move in moves.values() if math.isfinite(move)]
    moved = median(known) if len(known) >= SEVERAL else 1.0
    limit = WORSE * min(max(moved, 1.0), MOST_MOVED)
    return [
        f"{case} must be at most {limit:.2f} times {kept[case]:.2f}, got {ratios.get(case)}"
        for case, move in moves.items()
        if not move <= limit
    ]


def machine() -> dict[str, Any]:
    """Where it ran."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": " ".join([*models[:1], platform.machine()]),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gradstats": gradstats.__version__,
    }


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=[*PARTS, "sizes"], help="repeatable")
    parser.add_argument("--quick", action="store_true", help="small sizes, compared with before")
    parser.add_argument("--keep", action="store_true", help="quick ratios go into the report")
    parser.add_argument("--largest", type=int, default=LARGEST, help="elements of the sizes")
    parser.add_argument("--out", type=Path, default=HERE / "report.json")
    options = parser.parse_args()
    options.ways = [PLAIN, *TORCH, *HOOK]
    options.phases, options.batch, options.workers = [], 64, 2
    options.seconds = 10 if options.quick else 40
    return options


if __name__ == "__main__":
    sys.exit(main())
