"""Processes that start fast, and what they say."""

import multiprocessing

import pytest

from tests.waiting import PATIENCE

PRELOAD = ["torch._dynamo", "gradstats.kernels.cpu", "tests.recording.victims"]


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


def soaked(name, quick, full):
    """A test's size in the default suite, and in `make soak`."""
    return pytest.mark.parametrize(name, [quick, pytest.param(full, marks=pytest.mark.soak)])
