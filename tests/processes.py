"""Processes that start fast, and what they say."""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import uuid
from functools import partial
from multiprocessing.process import current_process
from pathlib import Path

import pytest
import torch

from tests.waiting import PATIENCE

PRELOAD = [
    "torch._dynamo",
    "gradstats.kernels.counting_cpu",
    "tests.exchange.exchanges",
    "tests.exchange.trainings",
    "tests.recording.sharded",
    "tests.integrations.compressed_situations",
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


def run_script(words, folder, workers=1, **environment):
    """Run `python WORDS` in a folder, in as many processes as torchrun would start.

    The processes have imported torch and the trainers; a process that the script spawns is forked.

    Args:
        words: the script's path, and its arguments.
        folder: the working directory.
        workers: more than one have the ranks of a group, which meet at a port of this machine.
        environment: variables; those that are None are absent.

    Returns:
        For each worker its exit code, and what it printed to stdout and to stderr.
    """
    words = [str(word) for word in words]
    args = words, str(folder), environment, free_port()
    with tempfile.TemporaryDirectory() as printed:
        return run_workers(_run_script, workers, printed, *args)


def free_port():
    """A port of this machine that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _run_script(rank, world, _meeting, words, folder, environment, port):
    """One worker."""
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = str(value)
    if world > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in (ranks | meeting).items()})
    os.chdir(folder)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).absolute().parent))
    mp = torch.multiprocessing
    mp.spawn = partial(mp.start_processes, start_method="fork")
    runpy.run_path(words[0], run_name="__main__")


def _work(files, environment, work, args, _pipe):
    for stream, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()  # it is that of the process from which this one was forked
    os.environ.update(environment)
    current_process()._config["daemon"] = False  # a daemon may start no process
    work(*args)


def soaked(name, quick, full):
    """A test's size in the default suite, and in `make soak`."""
    return pytest.mark.parametrize(name, [quick, pytest.param(full, marks=pytest.mark.soak)])
