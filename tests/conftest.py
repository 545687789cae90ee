"""A small run, made once, and the means to make others."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from torch import Tensor

import gradstats
from gradstats.cli import app as cli
from gradstats.store import GradientStore, Row, parameter_table
from gradstats.store.rows import pack
from tests.processes import Nursery
from tests.store.s3 import server, url  # noqa: F401  (fixtures)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

# the same examples on every machine, and none fails by the clock; `make soak` draws others
settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "soak", settings.get_profile("suite"), derandomize=False, database=None, max_examples=2000
)
settings.load_profile(os.environ.get("GRADSTATS_HYPOTHESIS", "suite"))


class Figures:
    """Closes the figures that a test leaves open, doctests too: many of them are a warning."""

    def pytest_runtest_teardown(self) -> None:
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Figures())


Named = Mapping[str, Tensor]
SHAPES = {
    "embed.weight": (60, 48),
    "fc.weight": (64, 50),
    "fc.bias": (64,),
    "head.weight": (30, 64),
}
MODULE_TYPES = dict.fromkeys(SHAPES, "Linear") | {"embed.weight": "Embedding"}
SCALES = dict(zip(SHAPES, (3e-3, 1e-3, 2e-3, 1e-2), strict=True))
FULL_STEPS = (0, 100, 200)
TRACKED_STEPS = 220
TRACKED = 2_000


def small_gradients(step: int) -> dict[str, Tensor]:
    """The gradients of one step: Laplace, a scale a parameter; 7 % of the embedding is zero."""
    rng = np.random.default_rng([7, step])
    grads = {
        name: torch.from_numpy(rng.laplace(scale=SCALES[name], size=shape).astype(np.float32))
        for name, shape in SHAPES.items()
    }
    grads["embed.weight"][torch.from_numpy(rng.random((60, 48)) < 0.07)] = 0
    return grads


def write_run(
    path: Path,
    grads: Mapping[int, Named],
    *,
    full: Collection[int] | None = None,
    tracked: int = 0,
    module_types: Mapping[str, str] | None = None,
    point: str = "local",
) -> Path:
    """Write a run: whole rows of the steps in `full` (default: all), tracked rows of all steps.

    Args:
        path: of the store.
        grads: by step, by name; a parameter may have no gradient at some steps.
        full: steps of the whole rows.
        tracked: elements tracked of each dtype; none at 0.
        module_types: as in `parameter_table`.
        point: where the gradients were observed.
    """
    every = {name: grad for named in grads.values() for name, grad in named.items()}
    layout = [(name, tuple(grad.shape), grad.dtype) for name, grad in every.items()]
    table = parameter_table(layout, module_types=module_types)
    packed = {step: pack(named, table) for step, named in grads.items()}
    provenance = {"model": "Tiny", "device": "cpu", "seed": 7}
    with GradientStore.create(path, table, provenance=provenance) as store:
        whole = [
            Row(step, flat, present, {"point": point})
            for step, (flat, present) in packed.items()
            if full is None or step in full
        ]
        store.append_rows(whole)
        if tracked:
            ids = _draw(next(iter(packed.values()))[0], tracked)
            store.set_track(ids)
            rows = [
                Row(step, _picked(flat, ids), present, {"point": point})
                for step, (flat, present) in packed.items()
            ]
            store.append_rows(rows, kind="track")
    return path


def _draw(flat: Mapping[str, Tensor], tracked: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    return {
        dtype: np.sort(rng.choice(len(whole), min(tracked, len(whole)), replace=False))
        for dtype, whole in flat.items()
    }


def _picked(flat: Mapping[str, Tensor], ids: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {dtype: flat[dtype][torch.from_numpy(places)] for dtype, places in ids.items()}


@pytest.fixture(scope="session")
def run_writer() -> Callable[..., Path]:
    return write_run


@pytest.fixture(scope="session")
def gradients_of() -> Callable[[int], dict[str, Tensor]]:
    return small_gradients


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[..., Path]:
    """`made_once(name, make)`: a folder that the first of the test processes makes for all."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.made").exists():
                make(shared / name)
                (shared / f"{name}.made").touch()
        return shared / name

    return folder


@pytest.fixture(scope="session")
def small_run(made_once) -> Path:
    """3 whole rows at steps 0, 100 and 200; 2,000 of 8,064 elements tracked over 220 steps."""
    return made_once("small.zarr", write_small_run)


def write_small_run(path: Path) -> None:
    write_run(
        path,
        {step: small_gradients(step) for step in range(TRACKED_STEPS)},
        full=FULL_STEPS,
        tracked=TRACKED,
        module_types=MODULE_TYPES,
    )
    path.with_suffix(".sha256").write_text(json.dumps(fingerprint(path)))


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="session")
def reported(small_run, made_once) -> tuple[str, Path]:
    """A report on the small run: its page, and its folder."""

    def report(folder: Path) -> None:
        path = gradstats.report(
            gradstats.open(small_run),
            out=folder,
            ratios=(0.1,),
            compressors=("none", "bf16", "topk", "threshold", "sidco-e"),
        )
        assert path == folder / "report.html"

    folder = made_once("report", report)
    return (folder / "report.html").read_text(encoding="utf-8"), folder


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without figures, which take most of their time."""
    monkeypatch.setattr("gradstats.reporting.report.draw", lambda *_: b"png")


@pytest.fixture
def forked_pools(monkeypatch):
    """Pools whose processes are forked from one that has imported torch."""
    monkeypatch.setattr("gradstats.runs.tasks.get_context", lambda _: Nursery().context)


@pytest.fixture
def call(monkeypatch, capfd):
    """Run the command line in this process: (exit code, stdout, stderr in one line)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradstats", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return end.value.code or 0, out, " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())

    return run
