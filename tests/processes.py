"""Processes that start fast, and what they say."""

import multiprocessing
import os
import uuid
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

PRELOAD = [
    "torch._dynamo",
    "gradstats.kernels.counting_cpu",
    "tests.exchange.exchanges",
    "tests.exchange.trainings",
    "tests.recording.victims",
    "tests.recording.workers",
]


class Nursery:
    """Starts processes, each forked from one that has imported torch."""

    def __init__(self):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        self.children = []

    def start(self, target, *args):
        """The process, and the end of a pipe; the target gets the other end as its last."""
        ours, theirs = self.context.Pipe(duplex=False)
        child = self.context.Process(target=target, args=(*args, theirs), daemon=True)
        child.start()
        theirs.close()
        self.children.append(child)
        return child, ours

    def end(self):
        for child in self.children:
            child.kill()
            child.join()


def heard(pipe, patience=PATIENCE):
    """The next that a training says; None once it has ended."""
    try:
        assert pipe.poll(patience), "a training hangs"
        return pipe.recv()
    except (EOFError, OSError):
        return None


def run_workers(work, world, folder, *args):
    """Run `work(rank, world, meeting, *args)` in as many processes as there are ranks.

    Args:
        work: a function of a module.
        world: number of processes, which meet at the file `meeting`.
        folder: for that file, and for what they print.
        args: of every worker.

    Returns:
        For each its exit code, and what it printed to stdout and to stderr.
    """
    # a file of each run's own: what an earlier one left there would be believed
    run, nursery = Path(folder, f"meeting-{uuid.uuid4().hex}"), Nursery()
    said = [[Path(f"{run}-{rank}.{name}") for name in ("out", "err")] for rank in range(world)]
    try:
        for rank, files in enumerate(said):
            nursery.start(_work, files, dict(os.environ), work, (rank, world, str(run), *args))
        for child in nursery.children:
            child.join(PATIENCE)
        codes = [child.exitcode for child in nursery.children]
    finally:
        nursery.end()
    texts = [[file.read_text() for file in files] for files in said]
    return [(code, *both) for code, both in zip(codes, texts, strict=True)]


def _work(files, environment, work, args, _pipe):
    for stream, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()  # it is that of the process from which this one was forked
    os.environ.update(environment)
    work(*args)


def soaked(name, quick, full):
    """A test's size in the default suite, and in `make soak`."""
    return pytest.mark.parametrize(name, [quick, pytest.param(full, marks=pytest.mark.soak)])
